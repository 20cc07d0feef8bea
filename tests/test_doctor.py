"""Each examination finds what it is for; what cannot be had here (GPUs, torch) is described to it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from evotune.cli import doctor as printing
from evotune.doctor import examine, faults, gpus, machine, model, row, software, storage, walls
from evotune.doctor.examination import run_all
from evotune.doctor.row import Row
from evotune.gpu.detect import Gpu
from evotune.journal import Journal
from evotune.settings import Settings, load
from evotune.trial import Candidate, Trial

from .llm.fake_server import FAULTS, FakeServer

PLANTED = "planted-5c1e77a0-do-not-show"
NEEDED = ["Python", "packages", "C compiler", "torch", "triton", "helion", "GPU", "Monty", "Landlock", "seccomp"]
NEEDED += ["resource limits", "parent death", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "model", "journal"]
NEEDED += ["journal folder", "temporary files", "cache", "clock", "load", "CPU time"]


def doctor(*arguments: object, cwd: Path, check: int, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY") and not k.startswith("EVOTUNE_")}
    command = [sys.executable, "-m", "evotune", "doctor", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == check, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def only(rows: list[Row], name: str) -> Row:
    (found,) = [r for r in rows if r.name == name]
    return found


@pytest.mark.slow
def test_json_lists_every_check_with_four_fields_and_shows_no_key(tmp_path: Path) -> None:
    done = doctor("--json", cwd=tmp_path, check=0, OPENAI_API_KEY=PLANTED)
    (line,) = done.stdout.splitlines()
    checks = json.loads(line)["checks"]
    assert all(set(check) == {"name", "status", "found", "fix"} for check in checks)
    assert {check["status"] for check in checks} <= {"ok", "warn"}
    assert set(NEEDED) - {check["name"] for check in checks} <= {"GPU"}  # a GPU has its number
    assert PLANTED not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        (["--config", "wrong.yaml"], {}, 2, ["max_evaluation", "settings"]),
        (["--journal", "wrong.yaml"], {"CC": "/bin/false"}, 3, ["apt-get install gcc", "--journal PATH", "2 fail"]),
    ],
)
def test_the_exit_code_says_whose_the_failure_is(tmp_path, arguments, environment, code, words) -> None:
    (tmp_path / "wrong.yaml").write_text("run: {max_evaluation: 3}\n")
    shown = doctor(*arguments, cwd=tmp_path, check=code, **environment).stdout
    for word in words:
        assert word in shown


@pytest.mark.parametrize("columns", [30, 40, 100])
def test_every_width_says_the_same_and_breaks_no_word(monkeypatch, capsys, columns: int) -> None:
    rows = [
        row.ok("Python", "3.11 at /a/place/of/more/than/thirty/letters"),
        row.warn("disk", "nearly " * 9, "rm x"),
    ]
    said = []
    for width in (columns, 1000):
        monkeypatch.setenv("COLUMNS", str(width))
        printing._print(rows)
        said.append(capsys.readouterr().out)
    narrow, wide = said
    assert narrow.split() == wide.split()
    assert all(len(line) <= columns for line in narrow.splitlines() if "/" not in line)


def test_an_examination_that_crashes_or_hangs_is_a_failed_row_and_hides_no_other() -> None:
    release = threading.Event()

    def crash() -> list[Row]:
        raise RuntimeError("no driver today")

    def hang() -> list[Row]:
        release.wait(30)
        return []

    found = run_all({"a": crash, "b": hang, "c": lambda: [row.ok("c", "fine")]}, deadline_s=0.2)
    release.set()
    assert [r.status for r in found] == ["fail", "fail", "ok"]
    assert "no driver today" in found[0].found
    assert "0.2 s" in found[1].found


def test_examining_imports_neither_torch_nor_triton_nor_an_sdk(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from evotune.doctor import examine\nfrom evotune.settings import Settings\n"
        "examine(Settings(), {})\n"
        "print(sorted({'torch', 'triton', 'helion', 'openai', 'anthropic', 'openevolve'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_machines_fault_and_a_configurations_are_told_apart() -> None:
    rows = [row.fail("a", ""), row.fail("b", "", None, "configuration"), row.warn("c", ""), row.ok("d", "")]
    assert faults(rows) == {"machine", "configuration"}
    assert faults(rows[2:]) == set()


# -- packages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "clauses", "wanted"),
    [
        ("1.5.1", ">=1.5,<1.6", True),
        ("1.6.0", ">=1.5,<1.6", False),
        ("1.4.9", ">=1.5,<1.6", False),
        ("2.13.0+cpu", "==2.13", True),
        ("1.4.0", "==1.4.0", True),
        ("1.10", ">=1.9", True),
        ("3", "", True),
    ],
)
def test_versions_are_compared_as_numbers(found: str, clauses: str, wanted: bool) -> None:
    assert software.fits(found, clauses) is wanted


def test_every_requirement_of_evotune_is_understood() -> None:
    for line in software.requires("evotune") or []:
        name, clauses, marker = software.parse_requirement(line)
        assert name
        assert line.replace(" ", "").startswith(name)
        assert ("extra" in line) == ("extra" in marker)
        assert clauses or not any(c in line.split(";")[0] for c in "<>=")


GPU_PACKAGES = {"torch": "2.13.0", "triton": "3.9.0", "helion": "1.5.1", "packaging": "26.0"}


def gpu_rows(monkeypatch, *, has_gpu=False, torch_wants=(), **changes: str | None) -> dict[str, Row]:
    found = {**GPU_PACKAGES, **changes}
    monkeypatch.setattr(software, "installed", found.get)
    monkeypatch.setattr(software, "requires", lambda name: list(torch_wants) if name == "torch" else [])
    return {r.name: r for r in software.gpu_packages(has_gpu=has_gpu)}


def test_versions_that_fit_each_other_are_fine(monkeypatch) -> None:
    rows = gpu_rows(monkeypatch)
    assert [r.status for r in rows.values()] == ["ok", "ok", "ok"]
    assert "fits torch 2.13.0" in rows["triton"].found


@pytest.mark.parametrize(
    ("changes", "name", "status", "words"),
    [
        ({"triton": "3.8.0"}, "triton", "warn", ["3.8.0", "made with 3.9", "triton==3.9.*"]),
        ({"triton": "3.5.1"}, "triton", "fail", ["3.6 or later"]),
        ({"torch": None}, "triton", "fail", ["torch", "missing"]),
        ({"torch_wants": ["triton==3.8.1; platform_system == 'Linux'"]}, "triton", "warn", ["made with 3.8"]),
        ({"torch": "2.11.0"}, "triton", "ok", ["torch 2.11.0"]),
        ({"packaging": None}, "helion", "fail", ["packaging is missing", "pip install packaging"]),
        ({"helion": "1.6.0"}, "helion", "warn", ["helion>=1.5,<1.6"]),
        ({"torch": "2.13.0+cpu", "has_gpu": True}, "torch", "warn", ["cannot use the GPU"]),
        ({"helion": None, "has_gpu": True}, "helion", "warn", ["evotune[gpu]"]),
        ({"helion": None}, "helion", "ok", ["evotune[gpu]"]),
    ],
)
def test_what_does_not_fit_is_told_with_the_command_that_mends_it(
    monkeypatch, changes, name, status, words
) -> None:
    found = gpu_rows(monkeypatch, **changes)[name]
    assert found.status == status
    for word in words:
        assert word in f"{found.found} {found.fix}"


def test_a_requirement_that_is_missing_or_too_old_fails(monkeypatch) -> None:
    versions = {"numpy": "1.20.0", "scipy": "1.15.0"}
    monkeypatch.setattr(
        software, "requires", lambda _: ["numpy>=1.26", "scipy>=1.11", "rich>=13", "x; extra == 'y'"]
    )
    monkeypatch.setattr(software, "installed", versions.get)
    (found,) = software.packages()
    assert found.status == "fail"
    assert "numpy is 1.20.0, >=1.26 is needed; rich is missing" in found.found
    assert found.fix == "pip install 'numpy>=1.26' 'rich>=13'"


# -- GPUs ---------------------------------------------------------------------------------------


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


def refuse(*_: object) -> None:
    raise NVMLError(3)  # not supported


def with_nvml(monkeypatch, found: list[Gpu], **functions: object) -> None:
    fake = SimpleNamespace(
        NVMLError=NVMLError, NVML_ERROR_LIBRARY_NOT_FOUND=12, NVML_ERROR_DRIVER_NOT_LOADED=9,
        NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None, nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.65",
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetPowerUsage=lambda h: 71_250,
        nvmlDeviceGetEnforcedPowerLimit=lambda h: 700_000,
        nvmlDeviceGetClockInfo=lambda h, kind: {1: 345, 2: 2619}[kind],
        nvmlDeviceGetMaxClockInfo=lambda h, kind: 1980,
        nvmlDeviceGetTemperature=lambda h, kind: 31,
        nvmlDeviceGetCurrentClocksEventReasons=lambda h: 1,  # idle
        nvmlDeviceGetMigMode=lambda h: (0, 0),
        nvmlDeviceGetComputeRunningProcesses=lambda h: [SimpleNamespace(pid=os.getpid())],
    )  # fmt: skip
    fake.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(gpus, "detect", lambda: found)
    monkeypatch.setattr(gpus, "which", lambda _: None)


REASONS = "nvmlDeviceGetCurrentClocksEventReasons"
H100 = Gpu(0, "GPU-1111", "NVIDIA H100 80GB HBM3", 90, 81559 << 20)


def test_a_gpu_is_described_by_clocks_power_partitions_users_and_throttling(monkeypatch) -> None:
    with_nvml(monkeypatch, [H100])
    rows = gpus.gpus()
    assert {r.status for r in rows} == {"ok"}
    assert only(rows, "GPU 0").found == "NVIDIA H100 80GB HBM3, sm_90, 80 GiB, driver 580.65"
    assert only(rows, "GPU 0 clocks").found == "SM 345 MHz, of 1980 MHz, memory 2619 MHz, 71 W, of 700 W, 31 °C"


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({REASONS: lambda h: 0x4 | 0x40}, "throttling", ["power cap", "hardware thermal"]),
        ({REASONS: refuse, "nvmlDeviceGetCurrentClocksThrottleReasons": lambda h: 4}, "throttling", ["power cap"]),
        ({"nvmlDeviceGetMigMode": lambda h: (1, 1)}, "MIG", ["on", "nvidia-smi -mig 0"]),
        ({"nvmlDeviceGetMigMode": lambda h: (0, 1)}, "MIG", ["after the next reset"]),
        ({"nvmlDeviceGetComputeRunningProcesses": lambda h: [SimpleNamespace(pid=1)]}, "users", ["process 1"]),
        ({"nvmlDeviceGetComputeRunningProcesses": refuse}, "users", ["does not tell"]),
    ],
)  # fmt: skip
def test_what_disturbs_timings_on_a_gpu_is_a_warning(monkeypatch, changes, name, words) -> None:
    with_nvml(monkeypatch, [H100], **changes)
    found = only(gpus.gpus(), f"GPU 0 {name}")
    assert found.status == "warn"
    for word in words:
        assert word in f"{found.found} {found.fix}"


def test_without_a_gpu_that_is_said_and_is_no_failure(monkeypatch) -> None:
    def absent() -> None:
        raise NVMLError(12)

    with_nvml(monkeypatch, [], nvmlInit=absent)
    (found,) = gpus.gpus()
    assert found.status == "ok"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus.gpus() == [found]


def test_a_driver_that_does_not_start_beside_a_gpu_is_a_failure(monkeypatch) -> None:
    def mismatch() -> None:
        raise NVMLError(18)

    with_nvml(monkeypatch, [H100], nvmlInit=mismatch)
    assert only(gpus.gpus(), "NVML").status == "fail"


# -- the sandbox --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_layer_that_is_not_proven_is_a_warning_with_its_reason(monkeypatch) -> None:
    protection = SimpleNamespace(
        proven=("language", "limits", "seccomp"), unproven={"landlock": "not in this kernel"}
    )
    monkeypatch.setattr(walls.Sandbox, "protection", lambda self: protection)
    rows = walls.walls()
    assert only(rows, "Landlock").status == "warn"
    assert "not in this kernel" in only(rows, "Landlock").found
    assert only(rows, "seccomp").status == "ok"


@pytest.mark.slow
def test_a_process_that_outlives_its_parent_is_found(monkeypatch) -> None:
    assert walls.death_with_the_parent()[0].status == "ok"
    monkeypatch.setattr(walls, "DEATH_S", 0.2)
    monkeypatch.setattr(walls, "_LAST", "import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    assert walls.death_with_the_parent()[0].status == "warn"


# -- keys and models ----------------------------------------------------------------------------


def test_keys_are_told_of_by_name_and_never_shown(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(PLANTED)
    key_file.chmod(0o644)
    settings = load(None, {"llm.key_file": str(key_file)}, {})
    rows = model.keys(settings, {"OPENAI_API_KEY": PLANTED, "ANTHROPIC_API_KEY": f'"{PLANTED}"'})
    assert [r.status for r in rows] == ["ok", "warn", "fail"]
    assert rows[2].fix == f"chmod 600 {key_file}"
    assert PLANTED not in repr(rows)
    key_file.chmod(0o600)
    assert model.keys(settings, {})[2].status == "ok"


def test_a_provider_without_its_key_is_a_fault_of_the_configuration() -> None:
    (found,) = model.choice(load(None, {"llm.provider": "openai"}, {}), {})
    assert (found.status, found.fault) == ("fail", "configuration")
    assert "OPENAI_API_KEY" in found.found


def test_what_a_run_would_go_on_without_is_no_failure(server) -> None:
    flags = {"llm.provider": "openai", "llm.on_error": "fallback"}
    (found,) = model.choice(load(None, flags, {}), {})
    assert found.status == "ok"
    assert "OPENAI_API_KEY" in found.found
    server.script[:] = [FAULTS["401"]]
    asked = load(None, {**flags, "llm.model": "toy", "llm.base_url": f"{server.url}/v1"}, {})
    (found,) = model.endpoint(asked, {"OPENAI_API_KEY": PLANTED})
    assert found.status == "warn"
    assert "runs go on without it" in found.found


def test_a_search_that_asks_no_model_is_told_of_as_a_run_tells_it() -> None:
    (found,) = model.choice(load(None, {"llm.provider": "openai", "run.search": "random"}, {}), {})
    assert (found.status, found.found) == ("ok", "none: search random asks no model")


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.mark.parametrize(
    ("script", "status", "fault"),
    [([], "ok", None), ([FAULTS["401"]], "fail", "configuration"), ([FAULTS["404"]], "fail", "configuration"),
     ([FAULTS["503"]], "fail", "machine"), ([FAULTS["empty text"]] * 2, "warn", None)],
)  # fmt: skip
def test_an_endpoint_is_asked_one_question_and_judged_by_its_answer(server, script, status, fault) -> None:
    server.script[:] = script
    settings = load(None, {"llm.provider": "openai", "llm.model": "toy", "llm.base_url": f"{server.url}/v1"}, {})
    (found,) = model.endpoint(settings, {"OPENAI_API_KEY": PLANTED})
    assert found.status == status, found
    assert fault is None or found.fault == fault
    assert "toy" in found.found
    assert PLANTED not in repr(found)


def test_a_model_is_asked_only_when_that_was_asked_for(server, monkeypatch, tmp_path) -> None:
    for name in ("walls", "compilers", "death_with_the_parent"):
        monkeypatch.setattr("evotune.doctor.examination." + name, list)
    server.script[:], server.requests[:] = [], []
    flags = {"llm.provider": "openai", "llm.model": "toy", "llm.base_url": f"{server.url}/v1"}
    settings = load(None, {**flags, "run.journal": str(tmp_path / "j.db")}, {})
    examine(settings, {})
    assert server.requests == []
    assert only(examine(settings, {}, asks_model=True), "endpoint").status == "ok"
    assert len(server.requests) == 1


# -- the journal and the disks ------------------------------------------------------------------


def write_journal(path: Path, *, finished: bool) -> str:
    with Journal(path) as journal:
        run = journal.open_run("twice", "hash", {"seed": 0})
        run.begin(Trial(0, Candidate({"a": 1}, "program", "default")))
        if finished:
            run.finish("evaluations", {"evaluations": 1})
        else:
            run.release()
        return run.id


def test_a_journal_is_examined_without_leaving_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    run_id = write_journal(path, finished=True)
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.iterdir()}
    sound, runs = storage.journal(path)
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.iterdir()} == before
    assert sound.status == "ok"
    assert "passes its integrity check" in sound.found
    assert run_id in runs.found
    assert "the evaluations were used up" in runs.found
    assert "unfinished" not in runs.found


def test_unfinished_runs_and_those_at_work_are_named(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    run_id = write_journal(path, finished=False)
    assert f"unfinished: {run_id}" in storage.journal(path)[1].found
    with Journal(path) as journal:
        journal.open_run("twice", "hash", {"seed": 0})  # still owned, by this process
        assert f"at work: {run_id} (process {os.getpid()})" in storage.journal(path)[1].found


def test_a_journal_that_cannot_be_used_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    write_journal(path, finished=True)
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(4096)  # a page of it
    path.write_bytes(data)
    assert storage.journal(path)[0].status == "fail"
    path.write_text("not a database, and long enough to be looked at" * 100)
    assert storage.journal(path)[0].fault == "configuration"
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")
    (found,) = storage.journal(path)
    assert "schema version 99" in found.found


def test_a_journal_on_a_network_disk_is_a_warning(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "_file_system", lambda _: "nfs4")
    rows = storage.journal(tmp_path / "j.db")
    assert [r.status for r in rows] == ["ok", "warn"]


def test_a_full_or_read_only_disk_is_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=50 << 20))
    assert {r.status for r in storage.disks(tmp_path / "j.db")} == {"fail"}
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=500 << 20))
    assert {r.status for r in storage.disks(tmp_path / "j.db")} == {"warn"}
    monkeypatch.undo()
    (journal, *_) = storage.disks(Path("/proc/nowhere/j.db"))
    assert journal.status == "fail"


# -- clocks and load ----------------------------------------------------------------------------


def test_a_clock_that_is_years_off_fails_and_one_that_jumps_is_a_warning(monkeypatch) -> None:
    monkeypatch.setattr(machine.time, "gmtime", lambda: SimpleNamespace(tm_year=1970))
    assert machine.clocks()[0].status == "fail"
    monkeypatch.undo()
    jumps = iter([1000.0, 1003.0])
    monkeypatch.setattr(machine.time, "time", lambda: next(jumps))
    assert machine.clocks()[0].status == "warn"


def test_a_busy_machine_and_an_unsteady_one_are_warnings(monkeypatch) -> None:
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (64.0, 1.0, 1.0))
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    assert machine.load()[0].status == "warn"
    readings = iter(t for i in range(100) for t in (i * 10_000, i * 10_000 + (1000 if i % 2 else 3000)))
    monkeypatch.setattr(machine.time, "thread_time_ns", lambda: next(readings))
    assert machine.load()[1].status == "warn"


def test_settings_without_a_change_are_examined(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evotune.doctor.examination.walls", lambda: 1 / 0)
    assert only(examine(Settings(), {}), "sandbox").status == "fail"
