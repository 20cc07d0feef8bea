"""What a person sees: on terminals of several widths, in a pipe, and as JSON."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from evotune import terminal
from evotune.budget import Budget, Meter
from evotune.cli import main
from evotune.gpu import check as check_module
from evotune.gpu.check import CheckRow
from evotune.progress import BLOCKS, DEVICE, JsonLines, Watch, sparkline
from evotune.terminal import Output, Terminal, device_of, print_table
from evotune.trial import Candidate, Fidelity, Measurement, Trial

ROOT = Path(__file__).parents[1]
RUN = ["run", "recordings/attention_cpu", "--provider", "none", "--search", "random", "--max-evaluations", "30"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(**more: str) -> dict[str, str]:
    left_out = ("EVOTUNE_", "OPENAI_", "ANTHROPIC_", "NO_COLOR", "FORCE_COLOR", "COLUMNS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **more}


def on_a_terminal(columns: int, *arguments: str, cwd: Path, check: int = 0, **more: str) -> str:
    """What the command writes to a terminal of so many columns, stdout and stderr together."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "evotune", *arguments]
    with subprocess.Popen(
        command, cwd=cwd, env=environment(**more), stdin=theirs, stdout=theirs, stderr=theirs
    ) as p:
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # Linux's way to say that the other side is closed
                break
            shown += chunk
        os.close(ours)
    assert p.returncode == check, shown.decode()
    return shown.decode()


def in_a_pipe(*arguments: str, cwd: Path, check: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evotune", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == check, done.stderr
    return done


def test_the_time_that_is_left_is_told_from_what_was_done_in_this_call(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with Terminal() as shown:
        clock[0] += 10
        shown.on_progress(41, 50)  # 40 of them were found done
        clock[0] += 10
        shown.on_progress(45, 50)
    assert capsys.readouterr().err.splitlines() == ["41/50  ETA 1:30", "45/50  ETA 0:20"]


# -- where a run stands -------------------------------------------------------------------------

GOOD = Measurement(
    Fidelity(3, "high", 50), "measured", (0.5,), context={"clock_mhz": 1980.0, "throttled": "power cap", "core": 3}
)
TRIAL = Trial(6, Candidate({"tile": 64}, "", "llm"), (GOOD,))
BAD = Trial(7, Candidate({"tile": 8}, "", "random"), (Measurement(GOOD.fidelity, "measured", (), "crash", "oops"),))


def tuner(**changes: object) -> SimpleNamespace:
    meter = Meter(Budget(60, max_seconds=100.0), 3)
    llm = {"provider": "openai", "model": "m", "calls": 2, "input_tokens": 90, "output_tokens": 10, "usd": 0.01}
    known = {"trials": [TRIAL], "best_ms": 0.5, "default_ms": 1.0, "speedup": 2.0, "meter": meter}
    return SimpleNamespace(**{**known, "model_state": "asked", "llm": lambda: llm, **changes})


def test_a_log_tells_best_speed_up_failures_device_model_cost_and_time(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "PLAIN_EVERY_S", 0.0)
    with Terminal() as shown:
        shown.on_trial(TRIAL, tuner(best_ms=0.7), is_best=False)
        shown.on_trial(BAD, tuner(), is_best=False)
    line = capsys.readouterr().err.splitlines()[-1]
    for part in ("1/60", "best 0.5 ms (2.00x)", "█▁", "1 failed", "1980 MHz, throttled: power cap", "ETA -:--"):
        assert part in line
    assert "model asked, 2 calls, 100 tokens, $0.0100" in line


def test_each_event_of_json_lines_is_an_object_with_the_documented_fields():
    file = io.StringIO()
    with JsonLines(file) as shown:
        shown.on_note("a note")
        shown.warn("a warning")
        shown.on_trial(TRIAL, tuner(), is_best=True)
        shown.on_trial(BAD, tuner(), is_best=False)
        shown.on_progress(1, 2)
    note, warning, good, bad, progress = map(json.loads, file.getvalue().splitlines())
    assert note == {"event": "note", "text": "a note"}
    assert warning == {"event": "warning", "text": "a warning"}
    assert progress == {"event": "progress", "done": 1, "total": 2}
    assert (good["event"], good["number"], good["origin"], good["config"]) == ("trial", 7, "llm", {"tile": 64})
    assert (good["latency_ms"], good["fidelity"], good["failed"], good["is_best"]) == (0.5, "high", None, True)
    assert (bad["latency_ms"], bad["failed"]) == (None, {"stage": "crash", "reason": "oops"})
    assert (bad["evaluations"], bad["max_evaluations"], bad["failures"]) == (1, 60, 1)
    assert (bad["best_ms"], bad["speedup"], bad["eta_s"], bad["eta_by"]) == (0.5, 2.0, None, None)
    assert bad["device"] == {"clock_mhz": 1980.0, "throttled": "power cap"}  # of the last that told
    assert (bad["model"], bad["llm"]["usd"]) == ("asked", 0.01)


def test_a_device_that_tells_nothing_is_not_shown_and_no_throttling_is_no_news():
    assert device_of({}) == ""
    assert device_of({"throttled": "no", "clock_mhz": 1410.0, "power_w": 300.4}) == "1410 MHz, 300 W"
    assert set(DEVICE) >= {"clock_mhz", "throttled", "power_w", "temperature_c"}
    assert Watch().see(BAD, tuner(best_ms=None)).course == ()


@pytest.mark.parametrize(
    ("values", "width", "wanted"),
    [([], 5, ""), ([1.0], 5, "▁"), ([3.0, 3.0], 5, "▁▁"), ([8, 7, 6, 5, 4, 3, 2, 1], 8, BLOCKS[::-1])],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest_block(values, width, wanted):
    assert sparkline(values, width) == wanted


def test_a_long_sparkline_keeps_its_width_and_its_last_value():
    line = sparkline([float(1000 - i) for i in range(1000)], 20)
    assert len(line) == 20
    assert line[-1] == BLOCKS[0]
    assert list(line) == sorted(line, reverse=True)


# -- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [20, 40, 60, 200])
def test_a_table_that_does_not_fit_becomes_lines_and_loses_nothing(columns):
    file = io.StringIO()
    console = Console(file=file, width=columns, soft_wrap=True, highlight=False)
    header, row = ["", "default", "best"], ["PARAMETER_WITH_A_LONG_NAME", "a long value to the left", "0.001234 ms"]
    print_table("a title that is longer than the narrowest of these terminals", header, [row], console)
    shown = file.getvalue()
    for cell in row:
        assert cell in shown
    assert ("┃" in shown) == (columns == 200)
    assert "…" not in shown


# -- the command --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_terminal_of_forty_columns_shows_all_that_a_pipe_gets(tmp_path):
    piped = in_a_pipe(*RUN, "--journal", "a.db", cwd=tmp_path)
    narrow = ESCAPES.sub("", on_a_terminal(40, *RUN, "--journal", "b.db", cwd=tmp_path))
    for line in piped.stdout.splitlines():
        if not line.startswith(("ended after", "┏", "┡", "└", "│", "┃")):
            assert line in narrow
    cells = [cell.strip() for line in piped.stdout.splitlines() if line[:1] == "│" for cell in line.split("│")]
    assert len(cells) > 20
    assert all(cell in narrow for cell in cells)
    trials = [line for line in piped.stderr.splitlines() if line.startswith("*")]
    assert trials
    assert all(line in narrow for line in trials)
    assert "…" not in narrow
    assert "30/30" in narrow
    assert "ETA 0:00" in narrow  # the last of the live line, on a line below


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_means_no_colour(monkeypatch, no_color):
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", closefd=True) as reader, os.fdopen(theirs, "w", encoding="utf-8") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        monkeypatch.setenv("NO_COLOR", no_color)
        Output().print(Text("careful", style="yellow"))
        shown = reader.read1(100).decode()
    assert ("\x1b[33m" in shown) == (not no_color)
    assert "careful" in shown


@pytest.mark.slow
def test_json_progress_leaves_stdout_to_the_result_and_quiet_contradicts_it(tmp_path):
    done = in_a_pipe(*RUN, "--progress", "json", "--json", cwd=tmp_path)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    trials = [e for e in events if e["event"] == "trial"]
    assert [e["evaluations"] for e in trials] == list(range(1, 31))
    assert json.loads(done.stdout)["evaluations"] == 30
    refused = in_a_pipe(*RUN, "--progress", "json", "--quiet", cwd=tmp_path, check=2)
    assert "give one of the two" in refused.stderr
    assert in_a_pipe(*RUN, "--progress", "lines", cwd=tmp_path, check=2).stdout == ""


def test_a_pipe_that_is_closed_raises_where_it_can_be_handled(monkeypatch):
    closed, open_end = os.pipe()
    os.close(closed)
    with open(open_end, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor has no path
        monkeypatch.setattr(sys, "stdout", file)
        console = Output()
        with pytest.raises(BrokenPipeError):
            console.print("x" * (1 << 17))
        os.dup2(os.open(os.devnull, os.O_WRONLY), open_end)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("{evotune} doctor | head -1", 141, ""),
        ("{evotune} {run} 2>&1 | head -1", 141, ""),
        ("{evotune} {run} --json > /dev/full", 3, "cannot be written"),
        ("{evotune} --version > /dev/full", 3, "cannot be written"),
    ],
)
def test_output_that_cannot_be_written_ends_with_a_code_and_no_traceback(tmp_path, command, code, words):
    text = command.format(evotune=f"{sys.executable} -m evotune", run=" ".join(RUN))
    done = subprocess.run(
        ["bash", "-c", f"{text}\nexit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_check_obeys_the_settings_and_in_json_is_one_object_though_the_kernel_prints(
    tmp_path, monkeypatch, capsys
):
    kernel = tmp_path / "k.py"
    kernel.write_text((ROOT / "kernels" / "vector_add.py").read_text() + "\nprint('hello from the kernel')\n")
    asked = {}

    def check(loaded, targets, **options):
        asked.update(options)
        sys.stdout.write("and from its space")
        return [CheckRow(targets[0], {"BLOCK": 1}, ok=True)]

    monkeypatch.setattr(check_module, "check", check)
    monkeypatch.setenv("EVOTUNE_MEASURE_COMPILE_TIMEOUT_S", "7")
    monkeypatch.setenv("EVOTUNE_RUN_SHAPE", "small")
    monkeypatch.setattr(sys, "argv", ["evotune", "check", str(kernel), "--target", "h100", "--seed", "3", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, [row["target"] for row in json.loads(out)["rows"]]) == (0, ["h100"])
    assert "hello from the kernel" in err
    assert (asked["timeout_s"], asked["shape"], asked["seed"]) == (7.0, "small", 3)
