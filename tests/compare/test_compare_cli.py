import json
import signal
import subprocess
import sys

import pytest

from tests.test_cli import evotune

STUDY = ["evotune", "mfbo", "pattern", "de", "random", "genetic", "annealing"]


def test_the_studys_comparison_needs_no_options_and_prints_what_each_method_found(tmp_path):
    done = evotune("compare", "synthetic", "--budget", 4, "--json", "runs.json", cwd=tmp_path, check=0)
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert {(r["method"], r["seed"]) for r in runs} == {(m, s) for m in STUDY for s in (42, 123, 456, 789, 1011)}
    scores, found = done.stdout.split("\n\n")
    assert "score" in scores.splitlines()[0]
    rows, configs = found.split("best configurations\n")
    for word in ("synthetic", "latency_ms", "evaluations", "speedup", "pattern"):
        assert word in rows
    for table in (scores.splitlines()[1:], rows.splitlines()[2:], configs.splitlines()):
        assert sorted(line.split()[0] for line in table) == sorted(STUDY)
    best = dict(line.split(maxsplit=1) for line in configs.splitlines())
    fastest = min((e for r in runs if r["method"] == "de" for e in r["evaluations"]), key=lambda e: e["latency_ms"])
    assert best["de"] == " ".join(f"{n}={v}" for n, v in fastest["config"].items())
    again = evotune("compare", "synthetic", "--budget", 4, "--json", "runs.json", cwd=tmp_path, check=0)
    assert again.stdout == done.stdout
    assert "nothing was run again" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json", "nowhere/runs.json"], ["nowhere/runs.json", "there is no folder nowhere"]),
        (["--json", "notes"], ["notes exists", "move it away"]),
        (["--report", "nowhere/page.html"], ["nowhere/page.html", "there is no folder nowhere"]),
        (["--report", "."], ["it is not a file"]),
        (["--plot", "nowhere/plot.png"], ["nowhere/plot.png", "there is no folder nowhere"]),
        (["--plot", "plot.xyz"], ["cannot draw plot.xyz", ".png"]),
        (["--seeds", "many"], ["--seeds 'many'"]),
    ],
)
def test_what_could_not_be_written_is_found_before_the_work(tmp_path, arguments, words):
    if "plot.xyz" in arguments:
        pytest.importorskip("matplotlib")
    (tmp_path / "notes").write_text("mine\n")
    # So many evaluations would take minutes.
    everything = ["compare", "synthetic", "--budget", 100_000, "--json", "runs.json", *arguments]
    done = evotune(*everything, cwd=tmp_path, check=2)
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes"]


def test_without_matplotlib_a_plot_is_refused_before_the_work(tmp_path):
    hide = "import sys; sys.modules['matplotlib'] = None\nfrom evotune.cli import main; main()"
    command = [sys.executable, "-c", hide, "compare", "synthetic", "--budget", "100000", "--plot", "plot.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "pip install 'evotune[plot]'" in done.stderr


@pytest.mark.parametrize("is_kept", [True, False])
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path, is_kept):
    command = [sys.executable, "-m", "evotune", "compare", "synthetic", "--method", "random", "--seeds", "20000"]
    command += ["--budget", "5", *(["--json", "runs.json"] if is_kept else [])]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()  # a line of progress: runs have been made
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "/20000" in first
    assert out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: interrupted; ")
    if is_kept:
        assert "runs.json.partial" in last
        assert "and the same command goes on from there" in last
        assert (tmp_path / "runs.json.partial").read_text().count("\n") > 0
        assert not (tmp_path / "runs.json").exists()
    else:
        assert "no run was kept" in last
        assert list(tmp_path.iterdir()) == []
