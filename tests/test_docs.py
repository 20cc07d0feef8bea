"""Every command and every Python block of the README and of docs/ is run as it stands.

A block that cannot be run here says why in an HTML comment on the line before it: `<!-- not run: needs a
GPU -->`. Blocks of one page share a folder, and the Python blocks of one page a namespace, as they would for a
reader who follows the page from top to bottom. Budgets are cut by environment variables, which the page's
commands obey like any other; nothing else differs.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CUT = {"EVOTUNE_RUN_MAX_EVALUATIONS": "6", "EVOTUNE_MEASURE_ULTRA_REPS": "30", "EVOTUNE_LLM_PROVIDER": "none"}
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    why_not: str | None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        excuse = NOT_RUN.search(before)
        indent = match[1]
        body = "\n".join(line.removeprefix(indent) for line in match[3].splitlines())
        found.append(Block(match[2], body, before.count("\n") + 1, excuse[1] if excuse else None))
    return found


def commands_of(text: str) -> str:
    """A block of commands without the prompts that some have."""
    return "\n".join(line.removeprefix("$ ") for line in text.splitlines())


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with links to what a checkout has."""
    for entry in ("kernels", "recordings", "examples", "config.yaml", "benchmarks", "scripts", "prompts"):
        (tmp_path / entry).symlink_to(ROOT / entry)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("EVOTUNE_", "OPENAI_", "ANTHROPIC_"))}
    # Coverage would count what a reader's command imports; its start-up costs more than the commands.
    kept = {k: v for k, v in kept.items() if not k.startswith("COV_")}
    return {**kept, **CUT, "PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_says_to_do_works(page: Path, folder: Path) -> None:
    python: list[str] = []
    for block in blocks_of(page):
        where = f"{name_of(page)}:{block.line}"
        if block.why_not is not None:
            continue
        if block.language in ("sh", "bash", "console"):
            script = f"set -eu\n{commands_of(block.text)}\n"
            done = subprocess.run(
                ["bash", "-c", script], cwd=folder, env=environment(folder), capture_output=True, text=True,
                timeout=240, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert done.returncode == 0, f"{where}\n{done.stdout}\n{done.stderr}"
        elif block.language == "python":
            # Blank lines keep the page's line numbers in tracebacks.
            python.append(block.text)
            done = subprocess.run(
                [sys.executable, "-c", "\n\n".join(python)], cwd=folder, env=environment(folder),
                capture_output=True, text=True, timeout=240, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert done.returncode == 0, f"{where}\n{done.stdout}\n{done.stderr}"


def test_blocks_are_found_with_their_excuses(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n```sh\n$ x\n```\n\n<!-- not run: needs a GPU -->\n```python\ny\n```\n- l\n\n  ```sh\n  z\n  ```\n"
    )
    blocks = blocks_of(page)
    assert [(b.language, b.text, b.line, b.why_not) for b in blocks] == [
        ("sh", "$ x", 3, None),
        ("python", "y", 8, "needs a GPU"),
        ("sh", "z", 13, None),
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_its_language(page: Path) -> None:
    assert not [b.line for b in blocks_of(page) if not b.language]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [m[1] for m in re.finditer(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in m[1]]
    missing = [link for link in links if not (page.parent / link).exists() and not (ROOT / link).exists()]
    assert not missing
    named = set(re.findall(r"`((?:benchmarks|kernels|docs|examples|scripts|evaluators|prompts)/[\w./-]*\w)`", text))
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]


def test_the_table_of_model_costs_is_what_the_price_file_says() -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "model_costs.py")]
    table = subprocess.run(script, capture_output=True, text=True, check=True).stdout.strip()
    assert table in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; it comes with the dev extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "index.html").is_file()
