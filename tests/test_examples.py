"""Every example runs, and what the README says of its results is so."""

import contextlib
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from evotune.cli.batch import batch

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


# Stand-ins for a cluster: each writes down how it was called.
STAND_INS = {
    "srun": 'echo "srun $*" >> "$CALLS"',
    "ray": 'echo "ray $*" >> "$CALLS"',
    "python": "echo $SLURM_NNODES",
    "evotune": """
        echo "evotune $* ($EVOTUNE_RUN_ENGINE $EVOTUNE_RUN_RAY_ADDRESS $EVOTUNE_RUN_GPUS)" >> "$CALLS"
        cat "$4" >> "$CALLS"
        sleep 60 2> /dev/null & sleeper=$!
        trap 'echo interrupted >> "$CALLS"; kill $sleeper; exit 130' INT
        echo found > "$4"
        [ "$2" = forever.yaml ] && wait
        kill $sleeper
    """,
}


def allocation(folder: Path, jobs: str) -> subprocess.Popen[str]:
    """The script, begun as SLURM would on the first of two nodes."""
    stand_ins = folder / "bin"
    stand_ins.mkdir(exist_ok=True)
    for name, text in STAND_INS.items():
        (stand_ins / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (stand_ins / name).chmod(0o755)
    told = {
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        "TMPDIR": str(folder),
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_GPUS_ON_NODE": "8",
    }
    script = str(ROOT / "examples" / "slurm_ray.sh")
    return subprocess.Popen(
        ["bash", script, jobs], cwd=folder, env=told, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_the_slurm_script_starts_ray_on_all_nodes_and_keeps_the_journal(tmp_path):
    (tmp_path / "journal.db").write_text("earlier\n", encoding="utf-8")
    script = allocation(tmp_path, "jobs.yaml")
    _, err = script.communicate(timeout=30)
    assert script.returncode == 0, err
    calls = sorted((tmp_path / "calls").read_text(encoding="utf-8").splitlines())
    earlier, tuned, head, stopped, others = calls
    assert earlier == "earlier"
    assert re.fullmatch(r"evotune batch jobs\.yaml --journal \S+ --report \S+/pages \(ray auto all\)", tuned)
    assert head == "ray start --head --port=6379 --num-cpus=60 --num-gpus=8"
    assert stopped == "ray stop"
    assert re.match(r"srun --nodes=1 --ntasks-per-node=1 --exclude=(\S+) ray start --address=\1:6379 ", others)
    assert (tmp_path / "journal.db").read_text(encoding="utf-8") == "found\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "calls", "journal.db"]


def test_slurms_signal_reaches_evotune_and_what_was_found_is_kept(tmp_path):
    script = allocation(tmp_path, "forever.yaml")
    calls = tmp_path / "calls"
    while not any(tmp_path.glob("tmp.*/journal.db")) and script.poll() is None:
        time.sleep(0.02)
    script.send_signal(signal.SIGINT)  # to the shell alone
    try:
        _, err = script.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    assert script.returncode == 130, err
    assert "interrupted" in calls.read_text(encoding="utf-8").splitlines()
    assert (tmp_path / "journal.db").read_text(encoding="utf-8") == "found\n"


def test_the_rayjob_of_kuberay_holds_together():
    job = yaml.safe_load((ROOT / "examples" / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    command, name, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (command, name) == ("evotune", "batch")
    options = {a.removeprefix("--") for a in arguments if a.startswith("--")}
    assert options <= set(inspect.signature(batch).parameters)
    assert all(n.startswith("EVOTUNE_RUN_") for n in yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"])
    cluster = job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["replicas"] == workers["maxReplicas"]
    for group in (head, workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", ())}
        assert set(mounted) == {volume["name"] for volume in pod.get("volumes", ())}
        for path in mounted.values():
            assert any(a.startswith(f"{path}/") for a in arguments)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    (ours,) = head["template"]["spec"]["containers"]
    (theirs,) = workers["template"]["spec"]["containers"]
    assert ours["image"] == theirs["image"]
