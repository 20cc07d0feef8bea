"""Kernel files whose functions hang, exit, or raise: an error in words, soon, and Ctrl-C always works."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evotune import settings
from evotune.cpu import CpuEvaluator
from evotune.errors import Rejected, UsageError
from evotune.kernel import check_import, load_kernel
from evotune.subject import find_subject
from evotune.trial import Fidelity

HOSTILE = Path(__file__).with_name("hostile_file.py")
LINE = 1 + HOSTILE.read_text().splitlines().index('        raise ValueError("no such tile")')
LOW = Fidelity(1, "low", 5)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_needs_a_compiler")]


def evaluator(fault: str, **how: Any) -> CpuEvaluator:
    kernel = load_kernel(HOSTILE)
    return CpuEvaluator(kernel, kernel.problem(fault.replace(" ", "_"), "cpu"), fidelities=[LOW], **how)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("hang in build", r"build\(\) did not return within 1 s"),
        ("exit in build", r"build\(\) ended its process, which exited with status 4"),
        ("raise in build", rf"build\(\) raised ValueError: no such tile \(line {LINE} of hostile_file.py\)"),
    ],
)
def test_a_build_that_fails_costs_its_configuration_and_no_other(fault: str, said: str) -> None:
    with evaluator(fault, compile_timeout_s=1.0) as cpu:
        for _ in range(2):
            with pytest.raises(Rejected, match=said) as caught:
                cpu.compile({"opt": "-O2"})
            assert caught.value.stage == "build"
            assert cpu._compiler._builder.source({"opt": "-O1"}).flags == ("-O1",)


@pytest.mark.parametrize("function", ["inputs", "reference"])
def test_an_error_in_a_kernel_file_names_the_function_and_the_line(function: str) -> None:
    said = rf"{function}\(\) raised ValueError: no such tile \(line {LINE} of hostile_file.py\) for "
    with pytest.raises(UsageError, match=said) as caught:
        evaluator(f"raise in {function}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("function", "what"), [("inputs", "input 0"), ("reference", "the reference's result")])
def test_arrays_of_doubles_for_a_problem_of_floats_are_told_of_before_a_kernel_reads_them(
    function: str, what: str
) -> None:
    with pytest.raises(UsageError, match=f"{what} of .* has dtype float64, and the problem's is float32"):
        evaluator(f"double in {function}")


def test_an_error_in_flops_names_the_line() -> None:
    flags = {"run.shape": "raise_in_flops", "run.target": "cpu"}
    with pytest.raises(UsageError, match=rf"flops .* raised ValueError: no such tile \(line {LINE} of"):
        find_subject(str(HOSTILE), settings.load(None, flags, {}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import time; time.sleep(60)", "does not come to its end within 2 s"),
        ("while True: pass", "does not come to its end within 2 s"),
        (
            "import os; print('no licence', flush=True); os._exit(0)",
            "ends the process .* with status 0: no licence",
        ),
        ("import ctypes; ctypes.string_at(0)", "ends the process .* with status -11"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_of_and_not_imported_here(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "k.py").write_text(text)
    with pytest.raises(UsageError, match=said):
        check_import(tmp_path / "k.py", timeout_s=2.0)


@pytest.mark.parametrize("text", ["raise ValueError", "import sys; sys.exit(3)", "name = 1", "x = ("])
def test_what_a_file_raises_is_left_to_the_import_itself(tmp_path: Path, text: str) -> None:
    (tmp_path / "k.py").write_text(text)
    check_import(tmp_path / "k.py")
    with pytest.raises(UsageError):
        load_kernel(tmp_path / "k.py")


@pytest.mark.parametrize("fault", ["hang_in_build", "hang_in_inputs"])
def test_one_ctrl_c_ends_a_run_that_hangs_and_the_journal_can_be_resumed(tmp_path: Path, fault: str) -> None:
    kernel = Path(shutil.copy(HOSTILE, tmp_path))
    waits = kernel.with_suffix(".waits")
    waits.touch()
    command = [sys.executable, "-m", "evotune", "run", str(kernel), "--shape", fault, "--target", "cpu"]
    options = ["--provider", "none", "--search", "random", "--journal", str(tmp_path / "j.db"), "--json"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while waits.exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)  # not the 60 s that build() and the set-up may take
    assert process.returncode == 130, err
    assert "Traceback" not in err
    if fault == "hang_in_build":
        assert json.loads(out)["stopped"] == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("module", ["evotune.cli", "typer", "evotune.cli.run"])
def test_ctrl_c_while_the_command_is_still_being_imported_shows_no_traceback(module: str) -> None:
    code = f"""
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
runpy.run_module("evotune", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr


def test_a_run_of_a_file_that_exits_when_it_is_imported_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "k.py").write_text("import os; os._exit(0)")
    command = [sys.executable, "-m", "evotune", "run", str(tmp_path / "k.py"), "--target", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, "ends the process that imports it" in done.stderr) == (2, True), done


@pytest.mark.parametrize("command", [["run"], ["run", "--shapes", "a,b"], ["check", "--target", "h100"]])
def test_no_command_ends_as_the_file_wants_it_to(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "k.py").write_text("import os; print('no licence', flush=True); os._exit(0)")
    argv = [sys.executable, "-m", "evotune", *command, str(tmp_path / "k.py")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "with status 0: no licence" in " ".join(done.stderr.split())
