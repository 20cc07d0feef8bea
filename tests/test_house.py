"""Tripwires: rules of the house that no other tool checks."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evotune import content

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for folder in ("evotune", "kernels", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
SCRIPTS = [ROOT / "scripts" / name for name in ("quickstart", "test", "venv.sh")] + [ROOT / ".ci" / "run"]

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
# What may be longer, and why: "evotune/module.py" or "evotune/module.py:function".
REASONS: dict[str, str] = {
    "evotune/cli/run.py:run": "its signature is the list of options, one to a line",
    "kernels/layer_norm.py:layer_norm_rows": "a kernel of Triton is one function, with each of its ways",
}

# Each costs a tenth of a second to several seconds; `evotune --help` needs none of them.
HEAVY = {"anthropic", "helion", "jinja2", "openai", "openevolve", "pydantic", "scipy", "sklearn", "torch", "triton"}
LIGHT = ["evotune", "evotune.cli", "evotune.content", "evotune.kernel", "evotune.journal", "evotune.replay"]


def _too_long() -> Iterator[tuple[str, int]]:
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > MAX_MODULE_LINES:
            yield name, lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    yield f"{name}:{node.name}", lines


def test_modules_and_functions_are_short_or_have_a_reason() -> None:
    found = dict(_too_long())
    assert {n: lines for n, lines in found.items() if n not in REASONS} == {}
    assert set(REASONS) <= set(found), "a reason is listed for something that is short by now"


def test_every_module_is_valid_in_the_oldest_python() -> None:
    for path in SOURCES:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


@pytest.mark.parametrize("module", LIGHT)
def test_importing_brings_in_nothing_heavy(module: str) -> None:
    if not (ROOT / Path(*module.split("."))).with_suffix(".py").exists() and module != "evotune":
        pytest.skip(f"{module} is not there")
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(json.loads(found.stdout))


def test_importing_does_not_touch_logging_or_the_environment() -> None:
    code = (
        "import logging, os; before = dict(os.environ), list(logging.root.handlers)\n"
        "import evotune\n"
        "assert before == (dict(os.environ), list(logging.root.handlers))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_imports_point_down() -> None:
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("import-linter is not installed")
    found = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_licence_is_there_and_so_is_that_of_the_recordings() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    notice = (ROOT / "recordings" / "LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in notice
    assert "AutoTuningAssociation" in notice


def test_every_shipped_kind_of_content_has_entries() -> None:
    for kind in (content.KERNELS, content.EVALUATORS, content.RECORDINGS):
        assert content.shipped(kind), kind


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_can_be_run(script: Path) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert script.suffix == ".sh" or os.access(script, os.X_OK)
