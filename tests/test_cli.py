import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEYS = {"run_id", "kernel", "target", "device", "provenance", "best", "default", "speedup", "speedup_ci95"} | {
    "evaluations", "failures", "proposals", "llm", "stopped", "seconds", "journal"
}  # fmt: skip
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")


def evotune(*arguments, cwd, check=None, **environment) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY") and not k.startswith("EVOTUNE_")}
    command = [sys.executable, "-m", "evotune", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env={**variables, **environment}, capture_output=True, text=True, check=False, timeout=120
    )
    if check is not None:
        assert done.returncode == check, done.stderr
    return done


def test_json_prints_one_object_with_the_documented_fields_and_nothing_else(tmp_path):
    done = evotune("run", "recordings/pnpoly_3090", "--max-evaluations", 20, "--json", cwd=tmp_path, check=0)
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert set(result) == KEYS
    assert result["provenance"] == "replayed"
    assert result["evaluations"] == 20
    assert set(result["best"]) == {"config", "latency_ms", "ci95_ms"}
    assert set(result["default"]) == {"config", "latency_ms"}
    assert set(result["llm"]) == {"provider", "model", "calls", "input_tokens", "output_tokens", "usd"}
    assert (tmp_path / result["journal"]).is_file()


def test_a_run_without_the_time_to_evaluate_anything_says_so(tmp_path):
    done = evotune("run", "recordings/pnpoly_3090", "--max-seconds", "1e-9", cwd=tmp_path, check=1)
    for said in ("evaluations 0\n", "the time was used up", "nothing was evaluated"):
        assert said in done.stdout


def test_the_same_seed_gives_the_same_trials_under_another_hash_seed(tmp_path):
    found = []
    for i, hash_seed in enumerate(("0", "1", "2")):
        arguments = ["run", "recordings/gemm_3090", "--max-evaluations", 40, "--journal", f"{i}.db", "-v"]
        done = evotune(*arguments, cwd=tmp_path, check=0, PYTHONHASHSEED=hash_seed)
        found.append([line for line in done.stderr.splitlines() if "MWG=" in line])
    assert len(found[0]) == 40
    assert found[0] == found[1] == found[2]


@needs_compiler
def test_the_multi_fidelity_search_measures_at_four_fidelities_and_counts_each_as_an_evaluation(tmp_path):
    arguments = ["run", "kernels/attention.py", "--search", "mfbo", "--target", "cpu", "--max-evaluations", 20]
    few = {f"EVOTUNE_MFBO_FIDELITY_{name}": str(reps) for name, reps in {"HIGH": 16, "ULTRA": 20}.items()}
    done = evotune(*arguments, "--json", "--journal", "j.db", cwd=tmp_path, check=0, **few)
    assert json.loads(done.stdout)["evaluations"] == 20
    with contextlib.closing(sqlite3.connect(tmp_path / "j.db")) as db:
        query = "SELECT fidelity, reps, COUNT(*) FROM trial JOIN measurement ON trial = number"
        query += " WHERE rank = fidelity_rank AND rank < 4 GROUP BY rank ORDER BY rank"
        assert db.execute(query).fetchall() == [("low", 5, 11), ("medium", 15, 5), ("high", 16, 3)]
        assert db.execute("SELECT DISTINCT reps FROM measurement WHERE rank = 4").fetchall() == [(20,)]


def test_an_interrupted_and_resumed_replay_makes_the_same_trials_as_one_that_was_not(tmp_path):
    lines = {}
    for name, budgets in {"straight": [45], "resumed": [7, 23, 45]}.items():
        lines[name] = []
        for n in budgets:
            arguments = [
                "run",
                "recordings/conv_A4000",
                "--max-evaluations",
                n,
                "--journal",
                f"{name}.db",
                "-v",
                "--provider",
                "none",
            ]
            done = evotune(*arguments, cwd=tmp_path, check=0)
            lines[name] += [line.lstrip("* ") for line in done.stderr.splitlines() if "block_size_x=" in line]
    assert len(lines["straight"]) == 45
    assert lines["resumed"] == lines["straight"]


def test_the_mock_model_is_said_to_be_one_and_its_calls_are_counted(tmp_path):
    done = evotune("run", "recordings/conv_A100", "--max-evaluations", 60, "--json", cwd=tmp_path, check=0)
    assert "mock" in done.stderr
    result = json.loads(done.stdout)
    assert result["llm"]["provider"] == "mock"
    assert result["llm"]["calls"] > 0
    assert "llm" not in result["proposals"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "kernels/atention.py"], 2, ["atention.py", "did you mean", "attention.py"]),
        (["run", "recordings/conv_A10"], 2, ["conv_A100"]),
        (["run", "recordings/conv_A100", "--target", "cpu"], 2, ["recording", "cpu"]),
        (["run", "kernels/matmul.py", "--target", "h1000"], 2, ["h1000", "h100"]),
        (["run", "kernels/matmul.py", "--target", "h100"], 3, ["h100", "evotune check"]),
        (["run", "kernels/matmul.py", "--shape", "smal"], 2, ["smal", "did you mean 'small'"]),
        (["run", "recordings/conv_A100", "--provider", "opnai"], 2, ["opnai", "openai"]),
        (["run", "recordings/conv_A100", "--provider", "openai"], 2, ["OPENAI_API_KEY"]),
        (["run", "recordings/conv_A100", "--max-evaluations", "0"], 2, ["max-evaluations"]),
        (["run", "recordings/conv_A100", "--max-evaluations", "many"], 2, ["max-evaluations", "integer"]),
        (["run", "recordings/conv_A100", "--search", "grid"], 2, ["search", "evotune"]),
        (["run", "recordings/conv_A100", "--journal", "/proc/nowhere/j.db"], 2, ["journal", "--journal"]),
        (["run", "recordings/conv_A100", "--config", "missing.yaml"], 2, ["missing.yaml"]),
        (["run", "recordings/conv_A100", "--no-such-option"], 2, ["--no-such-option"]),
        (["run"], 2, ["KERNEL_OR_RECORDING"]),
    ],
)
def test_wrong_use_ends_with_its_code_and_says_what_to_do(tmp_path, arguments, code, words):
    done = evotune(*arguments, cwd=tmp_path, check=code)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def write_kernel(path: Path, **changes: str) -> Path:
    """A one-line kernel; ``changes`` replace its parts."""
    parts = {
        "name": 'name = "twice"',
        "shapes": 'shapes = {"default": {"n": 4096, "dtype": "float32"}}',
        "space": 'ConfigSpace.from_dict({"unroll": [1, 2, 4], "wide": [False, True]}, ["unroll < 4 or wide"])',
        "body": "for (int i = 0; i < 4096; i++) out[i] = 2 * x[i];",
        "reference": "return 2 * x",
        **changes,
    }
    path.write_text(f"""
import numpy as np
from evotune.kernel import Backend, CSource, Tolerance
from evotune.space import ConfigSpace

{parts["name"]}
{parts["shapes"]}
tolerance = {{"float32": Tolerance(1e-6, 1e-6)}}

def space(problem):
    return {parts["space"]}

def build(config, problem):
    return CSource("void evotune_kernel(const float *x, float *out) {{ {parts["body"]} }}", ("-O1",))

backends = {{"cpu": Backend(space, build)}}

def inputs(problem, rng):
    return (rng.standard_normal(problem["n"]).astype(np.float32),)

def reference(problem, x):
    {parts["reference"]}

def flops(problem):
    return problem["n"]

def bytes_moved(problem):
    return 8 * problem["n"]
""")
    return path


@needs_compiler
def test_a_users_own_kernel_is_tuned_by_real_time_in_an_empty_folder(tmp_path):
    kernel = write_kernel(tmp_path / "twice.py")
    done = evotune("run", kernel, "--json", cwd=tmp_path, check=0)
    result = json.loads(done.stdout)
    assert result["provenance"] == "measured"
    assert result["stopped"] == "exhausted"
    assert result["evaluations"] == 5
    assert result["best"]["latency_ms"] > 0
    shown = evotune("run", kernel, cwd=tmp_path, check=0)
    assert "config to paste" in shown.stdout
    assert str(result["best"]["config"]) in shown.stdout


@needs_compiler
def test_a_kernel_file_that_prints_does_not_disturb_the_json(tmp_path):
    kernel = write_kernel(tmp_path / "twice.py", name='name = "twice"; print("hello")')
    assert json.loads(evotune("run", kernel, "--json", cwd=tmp_path, check=0).stdout)["kernel"] == "twice"


@needs_compiler
def test_an_edited_kernel_starts_a_new_run_in_the_same_journal_and_says_so(tmp_path):
    kernel = write_kernel(tmp_path / "twice.py")
    first = json.loads(evotune("run", kernel, "--json", cwd=tmp_path, check=0).stdout)
    write_kernel(kernel, body="for (int i = 4095; i >= 0; i--) out[i] = 2 * x[i];")
    done = evotune("run", kernel, "--json", cwd=tmp_path, check=0)
    assert "has changed" in done.stderr
    second = json.loads(done.stdout)
    assert second["run_id"] != first["run_id"]
    assert second["journal"] == first["journal"]


@needs_compiler
def test_a_kernel_whose_every_configuration_is_wrong_ends_with_1_and_the_reason(tmp_path):
    kernel = write_kernel(tmp_path / "twice.py", body="for (int i = 0; i < 4096; i++) out[i] = 3 * x[i];")
    done = evotune("run", kernel, cwd=tmp_path, check=1)
    assert "5 x incorrect" in done.stdout


@needs_compiler
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "", "shapes": ""}, ["name", "shapes", "lacks"]),
        ({"name": "def (:"}, ["does not import", "SyntaxError"]),
        ({"space": 'ConfigSpace.from_dict({"unroll": [1, 2]}, ["unroll > 2"])'}, ["no legal configuration"]),
        ({"space": 'ConfigSpace.from_dict({"unroll": [1, 2]}, ["unrol > 2"])'}, ["unknown parameters ['unrol']"]),
        ({"name": "name = 5"}, ["name is 5, not a string"]),
        ({"shapes": 'shapes = {"default": {"n": 4096}}'}, ["has no 'dtype'"]),
        ({"name": "raise SystemExit(7)"}, ["does not import", "SystemExit"]),
        ({"space": "1 / 0"}, ["ZeroDivisionError"]),
        ({"space": "{}"}, ["ConfigSpace"]),
        ({"reference": "raise RuntimeError('no reference today')"}, ["no reference today"]),
    ],
)
def test_a_broken_kernel_file_ends_with_2_and_says_how_it_is_broken(tmp_path, changes, words):
    kernel = write_kernel(tmp_path / "twice.py", **changes)
    done = evotune("run", kernel, cwd=tmp_path, check=2)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@needs_compiler
def test_no_compiler_ends_with_2_and_says_how_to_get_one(tmp_path):
    kernel = write_kernel(tmp_path / "twice.py")
    hide = "import sys; sys.modules['ziglang'] = None\nfrom evotune.cli import main; main()"
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", hide, "run", str(kernel)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "apt-get install gcc" in done.stderr
    assert "evotune[cc]" in done.stderr


def finished_trials(journal: Path) -> int:
    """As another process sees them; 0 while there is no journal."""
    if not journal.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        try:
            return db.execute("SELECT COUNT(*) FROM trial WHERE done_order IS NOT NULL").fetchone()[0]
        except sqlite3.OperationalError:  # it is just being made
            return 0


@needs_compiler
def test_ctrl_c_ends_with_130_reports_what_was_found_and_the_same_command_resumes(tmp_path):
    command = [sys.executable, "-m", "evotune", "run", "kernels/matmul.py", "--shape", "small", "--json"]
    endless = [*command, "--max-evaluations", "5000"]
    process = subprocess.Popen(endless, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 60
    while finished_trials(tmp_path / ".evotune" / "journal.db") < 5:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    partial = json.loads(out)
    assert partial["stopped"] == "interrupted"
    done = evotune(*command[3:], "--max-evaluations", partial["evaluations"] + 3, cwd=tmp_path, check=0)
    result = json.loads(done.stdout)
    assert result["run_id"] == partial["run_id"]
    assert result["evaluations"] == partial["evaluations"] + 3


@needs_compiler
def test_a_recording_that_was_just_made_can_be_replayed(tmp_path):
    kernel = write_kernel(tmp_path / "twice.py")
    evotune("record", kernel, "--out", "rec", cwd=tmp_path, check=0)
    meta = json.loads((tmp_path / "rec" / "meta.json").read_text())
    assert meta["n_valid"] == 5
    assert meta["exhaustive"]
    assert not (tmp_path / "rec" / "partial.jsonl").exists()
    again = evotune("record", kernel, "--out", "rec", cwd=tmp_path, check=2)
    assert "holds a recording already" in again.stderr
    result = json.loads(evotune("run", "rec", "--json", cwd=tmp_path, check=0).stdout)
    assert result["best"]["latency_ms"] == pytest.approx(meta["optimum_ms"], rel=1e-5)


def test_version_and_help_name_what_there_is(tmp_path):
    assert evotune("--version", cwd=tmp_path, check=0).stdout.startswith("evotune 0.")
    shown = evotune("run", "--help", cwd=tmp_path, check=0).stdout
    for word in ("--max-evaluations", "--json", "--fresh", "resumes"):
        assert word in shown
