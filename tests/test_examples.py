"""Every example runs, and what the README says of its results is so."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")


def run(*arguments, cwd) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_tunes_a_kernel_by_real_time(tmp_path, example):
    out = run(example, "--target", "cpu", "--provider", "mock", "--evaluations", 6, cwd=tmp_path)
    assert out.count("Evaluation ") == 6
    rate = [float(x) for x in re.findall(r"([0-9.]+) (?:GB|GFLOP|TFLOP)/s", out)]
    assert len(rate) == 2
    assert rate[1] >= rate[0] * 0.5


@needs_compiler
def test_simple_times_one_configuration_and_tunes_nothing(tmp_path):
    out = run(ROOT / "examples" / "vector_add_tuning.py", "--simple", "--target", "cpu", cwd=tmp_path)
    assert "GB/s" in out
    assert "Evaluation" not in out


def test_the_readme_shows_what_its_tuner_finds(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    tuning = [block for block in blocks if "tune()" in block]
    assert tuning
    for block in tuning:
        (tmp_path / "block.py").write_text(block + "\nprint('found', best)\n")
        out = run("block.py", cwd=tmp_path)
        promised = re.search(r"tune\(\)\s+# (\{.*\})", block)
        assert f"found {promised.group(1)}" in out


def test_every_command_of_the_readme_exists(tmp_path):
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"^evotune (\w+)", text, re.MULTILINE))
    assert commands >= {"run", "compare", "record", "check"}
    for command in commands:
        options = set(re.findall(rf"^evotune {command} .*", text, re.MULTILINE))
        shown = run("-m", "evotune", command, "--help", cwd=tmp_path)
        for option in re.findall(r"--[a-z-]+", " ".join(options)):
            assert option in shown


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_shows_what_it_prints():
    notebook = json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = "".join("".join(out["text"]) for cell in cells for out in cell["outputs"])
    # Only the names of runs differ from one time to the next.
    assert re.sub(r"r-[0-9a-f]{8}", "r-", done.stdout) == re.sub(r"r-[0-9a-f]{8}", "r-", shown)
