from __future__ import annotations

import ctypes
import math
import os
import shlex
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

import evotune.cpu
from evotune.cpu import Compiler, CpuCompiler, CpuEvaluator, find_compiler
from evotune.cpu.builder import Builder
from evotune.cpu.inputs import GuardedArray, InputSet, compare
from evotune.cpu.toolchain import code_bytes
from evotune.cpu.worker import Harness, Session
from evotune.errors import DeviceError, Rejected, UsageError
from evotune.inputs import UNSEEN_SETS, Inputs, Results
from evotune.interval import MAX_BLOCKS
from evotune.kernel import LoadedKernel, Tolerance, load_kernel
from evotune.process import Worker
from evotune.trial import BLOCKS, Fidelity

LOW = Fidelity(1, "low", 5)
HIGH = Fidelity(3, "high", 40)
pytestmark = pytest.mark.usefixtures("_needs_a_compiler")


@pytest.fixture(scope="module")
def kernel() -> LoadedKernel:
    return load_kernel(Path(__file__).with_name("saxpy.py"))


@pytest.fixture(scope="module")
def cpu(kernel: LoadedKernel) -> Iterator[CpuEvaluator]:
    with CpuEvaluator(kernel, kernel.problem(None, "cpu"), fidelities=[LOW, HIGH], run_timeout_s=5) as evaluator:
        yield evaluator


def config(variant: str = "right", tag: int = 0, opt: str = "-O2") -> dict[str, Any]:
    return {"variant": variant, "opt": opt, "tag": tag}


def worker_of(cpu: CpuEvaluator) -> Worker:
    return cpu._supervisor._workers[0]


def worker_pid(cpu: CpuEvaluator) -> int | None:
    return worker_of(cpu).pid


@pytest.fixture(scope="module", autouse=True)
def _a_folder_for_temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Other tests leave files in the common one, at the same time."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("temporary"))
    yield
    tempfile.tempdir = before


def leftovers(before: set[str]) -> set[str]:
    return {p.name for p in Path(tempfile.gettempdir()).glob("evotune-cpu-*")} - before


def compiler_that_first(does: str, folder: Path) -> str:
    """A compiler with a delay for all but the evaluator's own sources."""
    real = shlex.join(find_compiler(folder).argv)
    script = folder / "delayed-cc"
    script.write_text(f"""#!/bin/sh
case "$*" in *probe.c*|*harness.c*|*--version*) exec {real} "$@";; esac
{does}
exec {real} "$@"
""")
    script.chmod(0o755)
    return str(script)


# -- timing ---------------------------------------------------------------------------------------


def test_a_measurement_has_as_many_samples_as_its_fidelity_asks_for(cpu: CpuEvaluator) -> None:
    static = cpu.compile(config())
    assert static.compile_s > 0
    assert static.facts["code_bytes"] > 16
    for fidelity in (LOW, HIGH):
        found = cpu.measure(config(), fidelity)
        assert len(found.samples_ms) == fidelity.reps
        assert found.provenance == "measured"
        assert set(found.context) >= {"wall_ms", "load_1min", "core"}


def test_eight_times_the_work_takes_several_times_as_long(cpu: CpuEvaluator) -> None:
    fast, slow = (cpu.measure(config(v), HIGH).latency_ms for v in ("right", "slower"))
    assert slow > 3 * fast


def test_a_kernel_that_keeps_its_last_result_gains_nothing_by_it(cpu: CpuEvaluator) -> None:
    honest, cached = (cpu.measure(config(v), HIGH).latency_ms for v in ("slower", "last_cached"))
    assert cached > honest / 2


def test_a_time_limit_cuts_repetitions_but_leaves_three(cpu: CpuEvaluator) -> None:
    assert len(cpu.measure(config(), Fidelity(4, "ultra", 10_000_000, limit_s=0.0)).samples_ms) == 3
    some = len(cpu.measure(config(), Fidelity(4, "ultra", 10_000_000, limit_s=0.05)).samples_ms)
    assert 3 <= some < 10_000


def test_a_reported_time_is_that_of_one_call_not_of_a_batch(cpu: CpuEvaluator) -> None:
    """4096 fused multiply-adds take microseconds; a sample is made of many calls."""
    found = cpu.measure(config(), HIGH)
    calls = float(found.context["calls_per_sample"])
    assert calls > 1
    assert found.latency_ms * calls == pytest.approx(0.05, rel=2)
    assert found.latency_ms < 0.05


def test_interleaved_samples_are_aligned_and_rank_as_alone(cpu: CpuEvaluator) -> None:
    found = cpu.interleave([config("slower"), config(), config("half"), config("syntax")], HIGH)
    assert [m.ok for m in found] == [True, True, False, False]
    assert [m.failed_stage for m in found[2:]] == ["incorrect", "compile"]
    assert len(found[0].samples_ms) == len(found[1].samples_ms) >= HIGH.reps
    ratios = [a / b for a, b in zip(found[0].samples_ms, found[1].samples_ms, strict=True)]
    assert median(ratios) > 3


@pytest.mark.parametrize("bad", ["crash", "detached"])
def test_one_that_breaks_the_worker_does_not_spoil_the_others_rounds(cpu: CpuEvaluator, bad: str) -> None:
    found = cpu.interleave([config(), config(bad, tag=90), config("slower")], LOW)
    assert [m.ok for m in found] == [True, False, True]
    assert len(found[0].samples_ms) == len(found[2].samples_ms) >= LOW.reps


def test_finalists_that_differ_in_speed_have_as_many_calls_in_a_sample(cpu: CpuEvaluator) -> None:
    """Reading the clock is part of a sample: 2 % of one of 20 us, 1 % of one of 40 us."""
    slow, fast = cpu.interleave([config("slower"), config()], HIGH)
    assert slow.context["calls_per_sample"] == fast.context["calls_per_sample"]


def test_each_block_of_rounds_has_code_and_buffers_elsewhere(
    cpu: CpuEvaluator, kernel: LoadedKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the place that each got by chance would be taken for a difference in speed."""
    harness = Harness(cpu._compiler._folder.path / "harness.so")
    seen: list[tuple[str, tuple[int, ...]]] = []
    original = Harness.time

    def watched(self: Harness, code: int, sets: Any, calls: int, first: int = 0) -> tuple[int, int, int]:
        seen.append((mapped_file(code), tuple(a % 4096 for s in sets for a in s)))
        return original(self, code, sets, calls, first)

    monkeypatch.setattr(Harness, "time", watched)
    monkeypatch.setattr("evotune.cpu.worker._has_child", lambda: False)  # this process has some
    session = Session(
        harness, Inputs(kernel, kernel.problem(None, "cpu"), 0, InputSet.of, Results(tmp_path)), core=0
    )
    libraries = [str(cpu._compiler.library(config(tag=tag)).path) for tag in (70, 71)]
    found = session.measure({"runs": libraries, "reps": 32, "limit_s": 60.0})["runs"]
    assert [len(run["samples_ms"]) for run in found] == [32, 32]
    assert [run["context"][BLOCKS] for run in found] == [MAX_BLOCKS] * 2
    timed = seen[-MAX_BLOCKS * 8 :]  # of each: a check, two rounds, a check
    assert len({code for code, _ in timed}) == 2 * MAX_BLOCKS
    assert len({offsets for _, offsets in timed if len(offsets) == 9}) == MAX_BLOCKS


def mapped_file(address: int) -> str:
    """The file whose code is at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if start <= address < end:
            return line.split(maxsplit=5)[5]
    raise AssertionError("nothing is mapped there")


# -- checking; what is wrong never wins: test_wrong_winners.py -------------------------------------
@pytest.mark.parametrize("variant", ["flush_denormals", "fast_math"])
def test_a_kernel_cannot_change_how_the_next_one_is_computed(cpu: CpuEvaluator, variant: str) -> None:
    """The reference in saxpy.py fails when denormals are flushed to zero."""
    for _ in range(3):
        assert cpu.measure(config(variant), LOW).ok


def test_what_a_kernel_prints_is_not_taken_for_a_reply(cpu: CpuEvaluator) -> None:
    assert cpu.measure(config("prints"), LOW).ok


def test_comparison_agrees_with_numpys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        want = rng.standard_normal(50).astype(np.float32)
        got = want + rng.choice([0, 1e-7, 1e-4, np.nan, np.inf], 50, p=[0.9, 0.07, 0.01, 0.01, 0.01]).astype(
            np.float32
        )
        right = np.allclose(got.astype(float), want.astype(float), rtol=1e-5, atol=1e-6)
        assert (compare(got, want, Tolerance(1e-5, 1e-6)) is None) == right


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8", "bool"])
def test_integers_are_compared_exactly_up_to_the_ends_of_their_range(dtype: str) -> None:
    ends = (
        [0, 1] if dtype == "bool" else [np.iinfo(dtype).min, np.iinfo(dtype).max, 2**53 + 1 if "64" in dtype else 5]
    )
    want = np.array(ends, dtype=dtype)
    assert compare(want.copy(), want, Tolerance(0, 0)) is None
    for i in range(len(want)):
        got = want.copy()
        got[i] = not got[i] if dtype == "bool" else got[i] - 1 if i else got[i] + 1
        assert compare(got, want, Tolerance(0, 0)) is not None
    extremes = compare(want[::-1].copy(), want, Tolerance(0, 0))
    assert extremes is not None


@pytest.mark.parametrize("shape", [(1,), (7, 3), (1000, 33)])
def test_a_guarded_array_notices_one_byte_on_either_side(shape: tuple[int, ...]) -> None:
    guarded = GuardedArray(shape, np.dtype("float32"))
    guarded.array.fill(1.0)
    assert guarded.is_intact
    assert guarded.array.ctypes.data % 64 == 0
    memory = guarded.array.ctypes.data
    for address in (memory - 1, memory + guarded.array.nbytes):
        byte = ctypes.c_uint8.from_address(address)
        byte.value ^= 1
        assert not guarded.is_intact
        guarded.repair()
        assert guarded.is_intact


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "stage", "said"),
    [
        ("syntax", "compile", "error"),
        ("undefined", "compile", "no_such_function"),
        ("unknown_flag", "compile", "-fwombat"),
        ("one_too_many", "compile", "must have 3 parameters, one for each input and output"),
        ("one_too_few", "compile", "must have 3 parameters, one for each input and output"),
        ("build_raises", "build", "ValueError: no such tile"),
        ("build_returns_text", "build", "returned str"),
    ],
)
def test_what_cannot_be_built_is_rejected_with_the_reason(
    cpu: CpuEvaluator, variant: str, stage: str, said: str
) -> None:
    for _ in range(2):  # the second time from the cache
        with pytest.raises(Rejected) as caught:
            cpu.compile(config(variant))
        assert caught.value.stage == stage
        assert said in caught.value.reason
        assert len(caught.value.reason) <= 400
        assert "/" not in caught.value.reason.replace("/usr/bin", "")
    assert cpu.measure(config(variant), LOW).failed_stage == stage


def test_counting_a_kernels_parameters_changes_neither_its_code_nor_its_lines(
    cpu: CpuEvaluator, kernel: LoadedKernel, tmp_path: Path
) -> None:
    compiled = cpu._compiler.library(config()).path
    source = kernel.backend("cpu").build(config(), kernel.problem(None, "cpu"))
    alone = tmp_path / compiled.with_suffix(".c").name
    alone.write_text(source.text)
    cpu._compiler._toolchain.compile(alone, tmp_path / "alone.so", source.flags, timeout_s=60)
    assert code_bytes(tmp_path / "alone.so") == code_bytes(compiled)
    last = len(source.text.splitlines())
    with pytest.raises(Rejected, match=rf"^compile: \w+\.c:{last}:"):
        cpu.compile(config("syntax"))


def test_a_kernel_that_leaves_its_parameters_open_is_measured(cpu: CpuEvaluator) -> None:
    assert cpu.measure(config("no_prototype"), LOW).failed_stage == "incorrect"


def test_a_library_without_the_kernel_is_rejected_not_called(cpu: CpuEvaluator) -> None:
    found = cpu.measure(config("no_symbol"), LOW)
    assert (found.failed_stage, "evotune_kernel" in str(found.reason)) == ("compile", True)


@pytest.mark.parametrize(
    ("variant", "stage", "said"),
    [
        ("crash", "crash", "SIGSEGV"),
        ("abort", "crash", "SIGABRT"),
        ("exit", "crash", "exited with status 0"),
        ("sigkill", "crash", "SIGKILL"),
        ("scribbles", "crash", "announced a reply of"),
        ("closes_files", "crash", "exited with status"),
    ],
)
def test_a_crash_is_named_and_the_third_attempt_is_refused(
    cpu: CpuEvaluator, variant: str, stage: str, said: str
) -> None:
    assert cpu.measure(config(), LOW).ok
    found = cpu.measure(config(variant), LOW)
    assert (found.failed_stage, said in str(found.reason)) == (stage, True)
    assert cpu.measure(config(), LOW).ok
    starts = worker_of(cpu).starts
    again = cpu.measure(config(variant), LOW)
    assert again.failed_stage == stage
    assert str(again.reason).startswith("quarantined")
    assert worker_of(cpu).starts == starts
    assert not cpu.interleave([config(variant)], LOW)[0].ok
    assert worker_of(cpu).starts == starts


@pytest.mark.parametrize("variant", ["hang", "sigstop"])
def test_a_hang_is_killed_at_its_deadline_and_quarantined_after_two(kernel: LoadedKernel, variant: str) -> None:
    problem = kernel.problem(None, "cpu")
    with CpuEvaluator(kernel, problem, fidelities=[LOW], run_timeout_s=0.5) as cpu:
        first, second = (cpu.measure(config(variant), LOW) for _ in range(2))
        assert [first.failed_stage, second.failed_stage] == ["timeout"] * 2
        assert "0.5 s" in str(first.reason)
        starts = worker_of(cpu).starts
        assert "quarantined" in str(cpu.measure(config(variant), LOW).reason)
        assert worker_of(cpu).starts == starts
        assert cpu.measure(config(), LOW).ok


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("inputs", "no such data set"),
        ("reference", "cannot be computed"),
        ("not_finite", "not finite"),
        ("exit", "status 4"),
    ],
)
def test_a_kernel_file_that_cannot_make_its_inputs_is_refused_before_any_work(
    kernel: LoadedKernel, fault: str, said: str
) -> None:
    before = leftovers(set())
    with pytest.raises(UsageError, match=said):
        CpuEvaluator(kernel, {**kernel.problem(None, "cpu"), "fault": fault}, fidelities=[LOW])
    assert not leftovers(before)


def test_a_slow_reference_is_not_run_while_a_measurement_has_its_deadline(
    kernel: LoadedKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Inputs(kernel, {**kernel.problem(None, "cpu"), "fault": "slow"}, 0, InputSet.of, Results(tmp_path))
    monkeypatch.setattr(kernel.definition, "reference", None)
    drawn = [inputs.unseen() for _ in range(2 * UNSEEN_SETS)]
    assert len({id(s) for s in drawn}) == UNSEEN_SETS


def test_inputs_of_a_slow_reference_rotate_and_still_catch_caching(kernel: LoadedKernel) -> None:
    with CpuEvaluator(kernel, {**kernel.problem(None, "cpu"), "fault": "slow"}, fidelities=[LOW]) as cpu:
        for _ in range(3):
            assert cpu.measure(config(), LOW).ok
            assert cpu.measure(config("cached_forever"), LOW).failed_stage == "incorrect"
        started = time.perf_counter()
        assert cpu.measure(config(tag=1), LOW).ok
        assert time.perf_counter() - started < 30


def test_a_dtype_without_tolerance_is_refused(kernel: LoadedKernel) -> None:
    with pytest.raises(UsageError, match=r"no tolerance for float16"):
        CpuEvaluator(kernel, {"n": 16, "dtype": "float16"}, fidelities=[LOW])


def test_a_broken_harness_is_the_machines_fault(kernel: LoadedKernel, tmp_path: Path) -> None:
    """After a kill the new process must compute the canary's known result, or nothing is measured."""
    with CpuEvaluator(kernel, kernel.problem(None, "cpu"), fidelities=[LOW], run_timeout_s=5) as cpu:
        assert cpu.measure(config(), LOW).ok
        folder = cpu._compiler._folder.path
        source = tmp_path / "harness.c"
        text = Path(evotune.cpu.__file__).with_name("harness.c").read_text()
        source.write_text(text.replace("k < 1000", "k < 999"))
        worker_of(cpu).stop()
        cpu._compiler._toolchain.compile(source, folder / "harness.so", timeout_s=60)
        with pytest.raises(DeviceError, match="known result"):
            cpu.measure(config(), LOW)


# -- compile --------------------------------------------------------------------------------------


def test_equal_code_is_compiled_once_however_many_threads_ask(
    cpu: CpuEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries: list[Path] = []
    original = type(cpu._compiler._toolchain).compile

    def counted(self: Any, source: Path, library: Path, *args: Any, **kwargs: Any) -> float:
        libraries.append(library)
        return original(self, source, library, *args, **kwargs)

    monkeypatch.setattr(type(cpu._compiler._toolchain), "compile", counted)
    with ThreadPoolExecutor(8) as pool:
        same = list(pool.map(cpu.compile, [config(tag=51)] * 8))
        several = list(pool.map(cpu.compile, [config(tag=52 + i % 3) for i in range(6)]))
    assert len(set(map(id, same))) == 1
    assert len(several) == 6
    assert len(libraries) == len(set(libraries)) == 4


def test_what_one_machine_compiled_is_measured_on_another_that_compiles_nothing(
    kernel: LoadedKernel, cpu: CpuEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CpuCompiler(kernel, kernel.problem(None, "cpu"), timeout_s=60) as elsewhere:
        assert elsewhere.device.name == cpu.device.name
        assert elsewhere.device.versions == cpu.device.versions
        packed = elsewhere.pack(config(tag=81))
    monkeypatch.setattr(Compiler, "compile", None)
    monkeypatch.setattr(Builder, "source", None)
    cpu.accept(config(tag=81), packed)
    cpu.accept(config(tag=81), packed)  # it does no harm twice
    assert cpu.compile(config(tag=81)) == packed.static
    assert cpu.measure(config(tag=81), LOW).ok


def test_different_configurations_compile_at_the_same_time(
    kernel: LoadedKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two compilers wait for each other: one after the other, neither would ever finish."""
    waiting = f"""touch {tmp_path}/started.$$
while [ $(ls {tmp_path}/started.* | wc -l) -lt 2 ]; do sleep 0.01; done"""
    monkeypatch.setenv("CC", compiler_that_first(waiting, tmp_path))
    problem = kernel.problem(None, "cpu")
    with (
        CpuEvaluator(kernel, problem, fidelities=[LOW], compile_timeout_s=20) as cpu,
        ThreadPoolExecutor(2) as pool,
    ):
        assert len(list(pool.map(cpu.compile, [config(tag=1), config(tag=2)]))) == 2


def test_a_compiler_that_hangs_is_killed_and_blamed(
    kernel: LoadedKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler_that_first("sleep 60", tmp_path))
    problem = kernel.problem(None, "cpu")
    with (
        CpuEvaluator(kernel, problem, fidelities=[LOW], compile_timeout_s=2) as cpu,
        pytest.raises(Rejected, match="took more than 2 s"),
    ):
        cpu.compile(config())


# -- leaving --------------------------------------------------------------------------------------


def test_closing_during_a_compile_leaves_no_file_and_no_process(
    kernel: LoadedKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = leftovers(set())
    temporary = f"mktemp >{tmp_path}/name; mv {tmp_path}/name {tmp_path}/started"
    monkeypatch.setenv("CC", compiler_that_first(f"{temporary}; sleep 60", tmp_path))
    cpu = CpuEvaluator(kernel, kernel.problem(None, "cpu"), fidelities=[LOW])
    pid = worker_pid(cpu)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cpu.compile, config())
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        cpu.close()
        assert isinstance(running.exception(), Rejected)
    cpu.close()
    assert not leftovers(before)
    assert not Path((tmp_path / "started").read_text().strip()).exists()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(DeviceError, match="closed"):
        cpu.measure(config(), LOW)


def test_ctrl_c_while_measuring_leaves_no_file_and_no_process(kernel: LoadedKernel) -> None:
    before = leftovers(set())
    with CpuEvaluator(kernel, kernel.problem(None, "cpu"), fidelities=[LOW]) as cpu:
        pid = worker_pid(cpu)
        cpu.compile(config("hang"))
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            cpu.measure(config("hang"), LOW)
    assert not leftovers(before)
    assert not Path(f"/proc/{pid}").exists()


def test_a_measured_kernel_is_unloaded_again(cpu: CpuEvaluator) -> None:
    for i in range(5):
        assert cpu.measure(config(tag=60 + i), LOW).ok
    maps = Path(f"/proc/{worker_pid(cpu)}/maps").read_text().splitlines()
    ours = {Path(line.split()[-1]).name for line in maps if "/evotune-cpu-" in line}
    assert ours == {"harness.so"}


def test_many_measurements_in_one_process_do_not_fill_its_memory(cpu: CpuEvaluator) -> None:
    def resident_bytes() -> int:
        return int(Path(f"/proc/{worker_pid(cpu)}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(10):
        assert cpu.measure(config(), LOW).ok
    before = resident_bytes()
    for _ in range(100):
        assert cpu.measure(config(), LOW).ok
    assert resident_bytes() < before + (4 << 20)


def test_the_device_says_what_the_journal_needs_to_know(cpu: CpuEvaluator) -> None:
    assert cpu.device.kind == "cpu"
    assert cpu.device.name
    assert set(cpu.device.versions) == {"compiler", "python", "numpy", "evotune"}
    assert math.isfinite(float(cpu.device.facts["cores"]))
