"""Everything of the GPU's evaluator but the GPU: torch on the CPU stands in for the device, and a fake for
the compiler, which has tests of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_evaluator import CpuEvaluator, FakeCompiler

from evotune.errors import DeviceError, Rejected, UsageError
from evotune.gpu import cuda_compiler
from evotune.gpu.detect import Gpu
from evotune.gpu.device import throttled
from evotune.gpu.target import load_target
from evotune.inputs import UNSEEN_SETS, Inputs, Results
from evotune.kernel import SHORT_FLOATS, LoadedKernel, Tolerance, load_kernel, numpy_dtype
from evotune.trial import Fidelity

pytestmark = pytest.mark.torch

LOW, HIGH = Fidelity(1, "low", 4), Fidelity(3, "high", 20)
GPU = Gpu(0, "GPU-1", "NVIDIA H100 80GB HBM3", 90, 80 << 30)


@pytest.fixture(scope="module")
def make() -> Iterator[Callable[..., CpuEvaluator]]:
    made: list[CpuEvaluator] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_compiler, "CrossCompiler", FakeCompiler)
        patch.setattr(cuda_compiler, "compiler_versions", dict)

        def make_one(shape: str = "default", **options: Any) -> CpuEvaluator:
            kernel = load_kernel(Path(__file__).with_name("torch_saxpy.py"))
            arguments = {
                "gpus": [GPU],
                "target": load_target("h100"),
                "fidelities": [LOW, HIGH],
                "run_timeout_s": 2.0,
            }
            made.append(CpuEvaluator(kernel, kernel.problem(shape, "cuda"), **{**arguments, **options}))
            return made[-1]

        yield make_one
        for evaluator in made:
            evaluator.close()


@pytest.fixture(scope="module")
def evaluator(make: Callable[..., CpuEvaluator]) -> CpuEvaluator:
    return make()


def of(variant: str) -> dict[str, str]:
    return {"variant": variant}


def test_a_right_kernel_has_samples_and_the_conditions_they_were_taken_in(evaluator: CpuEvaluator) -> None:
    found = evaluator.measure(of("right"), HIGH)
    assert found.ok
    assert len(found.samples_ms) == 20
    assert found.provenance == "measured"
    assert found.context["clock_mhz"] == found.context["clock_mhz_before"] == 1980.0
    assert found.context["throttled"] == "no"


@pytest.mark.parametrize(
    ("variant", "stage", "reason"),
    [
        ("nothing", "incorrect", "1024 of 1024 values are wrong, 1024 of them not finite or never written"),
        ("half", "incorrect", "512 of 1024 values are wrong, 512 of them not finite or never written"),
        ("one_off", "incorrect", r"1 of 1024 values are wrong, the largest error is 1 at \[17\]"),
        ("nan", "incorrect", "1 of 1024 values are wrong, 1 of them not finite"),
        ("mutates", "incorrect", r"changed its inputs \[0\]"),
        ("beyond", "incorrect", "wrote outside of its output"),
        ("by_address", "incorrect", "values are wrong"),
        ("last_cached", "incorrect", "values are wrong"),
        ("build_raises", "build", "ValueError: no such tile"),
        ("refused", "launch", "RuntimeError: invalid argument"),
        ("out_of_resources", "limits", "Required: 262144"),
        ("fault", "crash", "illegal memory access"),
        ("hang", "timeout", "no reply within 2 s"),
        ("exit", "crash", "exited with status 3"),
        ("refused_by_compiler", "compile", "ptxas does not like it"),
        ("too_large", "limits", "240000 bytes of shared memory, the limit is 232448"),
    ],
)
def test_whatever_a_kernel_does_wrong_it_has_no_time_and_the_next_one_is_measured(
    evaluator: CpuEvaluator, variant: str, stage: str, reason: str
) -> None:
    found = evaluator.measure(of(variant), LOW)
    assert not found.samples_ms
    assert found.failed_stage == stage
    assert found.reason is not None
    assert re.search(reason, found.reason), found.reason
    assert evaluator.measure(of("right"), LOW).ok


@pytest.mark.parametrize("shape", ["half", "int"])
def test_other_dtypes_are_checked_in_their_own(make: Callable[..., CpuEvaluator], shape: str) -> None:
    with make(shape) as evaluator:
        assert evaluator.measure(of("right"), LOW).ok
        assert evaluator.measure(of("nothing"), LOW).failed_stage == "incorrect"
        assert evaluator.measure(of("one_off"), LOW).failed_stage == "incorrect"


def test_a_kernel_that_killed_two_processes_is_not_run_a_third_time(make: Callable[..., CpuEvaluator]) -> None:
    with make() as evaluator:
        worker = evaluator._supervisor._workers[0]
        first = evaluator.measure(of("exit"), LOW)  # in a used process: tried again in a new one
        starts = worker.starts
        second = evaluator.measure(of("exit"), LOW)
        assert first.failed_stage == second.failed_stage == "crash"
        if "quarantined" not in (second.reason or ""):
            starts = worker.starts
            second = evaluator.measure(of("exit"), LOW)
        assert "quarantined" in (second.reason or "")
        assert worker.starts == starts


@pytest.mark.slow
def test_a_kernel_that_dies_of_what_another_left_behind_is_measured(make: Callable[..., CpuEvaluator]) -> None:
    with make() as evaluator:
        assert evaluator.measure(of("right"), LOW).ok
        assert evaluator.measure(of("abort_if_used"), LOW).ok
        assert evaluator._supervisor._workers[0].starts == 2


def test_interleaved_samples_belong_to_the_same_rounds(evaluator: CpuEvaluator) -> None:
    fast, wrong, slow = evaluator.interleave([of("right"), of("one_off"), of("slower")], HIGH)
    assert wrong.failed_stage == "incorrect"
    assert len(fast.samples_ms) == len(slow.samples_ms) == 20
    assert all(f < s for f, s in zip(fast.samples_ms, slow.samples_ms, strict=True))


def test_rounds_alternate_their_order_and_rotate_their_inputs_and_blocks_have_buffers_of_their_own(
    tmp_path: Path,
) -> None:
    from cpu_device import CpuDevice

    from evotune.gpu.worker import open_on

    timed: list[Any] = []

    class Recorder(CpuDevice):
        def time_ms(self, launches: Any) -> list[float]:
            timed.extend(launches)
            return super().time_ms(launches)

    kernel = load_kernel(Path(__file__).with_name("torch_saxpy.py"))
    problem = kernel.definition.shapes["default"]
    setup = {
        "kernel": str(kernel.path),
        "problem": problem,
        "device": {},
        "seed": 0,
        "uuid": "GPU-0",
        "results": str(tmp_path),
    }
    measure = open_on(Recorder(), setup)
    timed.clear()
    measure({"runs": [of("right"), of("slower"), of("right")], "reps": 6, "limit_s": 9.0})
    functions = [launch.func for launch in timed]
    a, b, c = functions[:3]
    assert len({a, b, c}) == 3
    assert functions == [a, b, c, c, b, a, c, b, a, a, b, c, a, b, c, c, b, a]
    addresses = [launch.args[0].data_ptr() for launch in timed]
    rounds = [set(addresses[i : i + 3]) for i in range(0, 18, 3)]
    assert all(len(r) == 1 for r in rounds)
    blocks = [first | second for first, second in zip(rounds[::2], rounds[1::2], strict=True)]
    assert [len(b) for b in blocks] == [2, 2, 2]
    assert blocks[0].isdisjoint(blocks[1])
    assert blocks[1].isdisjoint(blocks[2])


@pytest.mark.slow
def test_the_guilty_one_is_found_among_those_interleaved(make: Callable[..., CpuEvaluator]) -> None:
    with make() as evaluator:
        found = evaluator.interleave([of("right"), of("exit"), of("too_large"), of("slower")], LOW)
        assert [m.failed_stage for m in found] == [None, "crash", "limits", None]
        assert len(found[0].samples_ms) == len(found[3].samples_ms) == 4


@pytest.mark.slow
def test_candidates_that_only_fail_together_stop_the_run(make: Callable[..., CpuEvaluator]) -> None:
    with make() as evaluator, pytest.raises(DeviceError, match="run alone fail in alternation"):
        evaluator.interleave([of("right"), of("fault_if_used")], LOW)


@pytest.mark.slow
def test_finalists_are_timed_after_the_device_has_been_kept_busy(
    make: Callable[..., CpuEvaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(settle_s=0.5) as evaluator:
        asked: list[dict[str, Any]] = []
        call = evaluator._supervisor._workers[0].call
        monkeypatch.setattr(
            evaluator._supervisor._workers[0], "call", lambda request, s: asked.append(request) or call(request, s)
        )
        evaluator.measure(of("right"), LOW)
        evaluator.interleave([of("right"), of("slower")], LOW)
        assert [request.get("settle_s", 0.0) for request in asked] == [0.0, 0.5]


def test_a_configuration_is_compiled_once_and_described(make: Callable[..., CpuEvaluator]) -> None:
    with make() as evaluator:
        static = evaluator.compile(of("right"))
        assert static.compile_s == 1.5
        assert static.facts["occupancy"] == 0.5  # 64 registers; see test_occupancy.py
        evaluator.measure(of("right"), LOW)
        assert evaluator._compiler._compiler.asked == [of("right")]
        for _ in range(2):
            with pytest.raises(Rejected, match="shared memory"):
                evaluator.compile(of("too_large"))


def inputs_on_cpu(kernel: LoadedKernel, shape: str, seed: int, results: Path) -> Inputs[Any]:
    from evotune.gpu.inputs import InputSet

    place = partial(InputSet.of, device="cpu")
    return Inputs(kernel, kernel.definition.shapes[shape], seed, place, Results(results))


def test_the_same_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    kernel = load_kernel(Path(__file__).with_name("torch_saxpy.py"))
    one, same, other = (inputs_on_cpu(kernel, "default", seed, tmp_path) for seed in (1, 1, 2))
    first = [inputs.timing[0].arguments[0] for inputs in (one, same, other)]
    assert first[0].equal(first[1])
    assert not first[0].equal(first[2])
    assert not one.timing[0].arguments[0].equal(one.timing[1].arguments[0])
    assert not one.unseen().arguments[0].equal(one.unseen().arguments[0])


def test_a_slow_reference_is_not_run_while_a_measurement_has_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = load_kernel(Path(__file__).with_name("torch_saxpy.py"))
    inputs = inputs_on_cpu(kernel, "slow", 0, tmp_path)
    monkeypatch.setattr(kernel.definition, "reference", None)
    drawn = [inputs.unseen() for _ in range(2 * UNSEEN_SETS)]
    assert len({id(s) for s in drawn}) == UNSEEN_SETS
    assert drawn[0] is not drawn[1]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("nan", "not finite"),
        ("unknown", "no tolerance for float64"),
        ("double", "input 0 of .* has dtype float64, and the problem's is float16.*use .astype"),
        ("raises", r"reference\(\) raised ZeroDivisionError: .* \(line \d+ of torch_saxpy.py\) for "),
    ],
)
def test_inputs_that_cannot_be_checked_with_are_the_users_mistake(
    make: Callable[..., CpuEvaluator], shape: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make(shape)


def test_a_device_that_does_not_start_is_the_machines_fault(
    make: Callable[..., CpuEvaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_FAULT", "no_gpu")
    with pytest.raises(DeviceError, match=r"cannot be measured on NVIDIA H100.*no device"):
        make()


def test_a_target_of_another_architecture_is_refused(make: Callable[..., CpuEvaluator]) -> None:
    with pytest.raises(DeviceError, match="sm_90; target b200 is sm_100"):
        make(target=load_target("b200"))


def test_a_device_that_is_not_what_kernels_are_told_is_not_measured_on() -> None:
    from evotune.gpu.worker import check_facts

    check_facts({"capability": 90, "multiprocessors": 132}, {"capability": 90, "multiprocessors": 132})
    with pytest.raises(DeviceError, match="its multiprocessors is 114, not 132; give a recipe of your own"):
        check_facts({"capability": 90, "multiprocessors": 132}, {"capability": 90, "multiprocessors": 114})


def test_versions_name_the_driver_and_its_cuda(make: Callable[..., CpuEvaluator]) -> None:
    with make(gpus=[replace(GPU, driver="580.65.06", cuda="13.0")]) as evaluator:
        versions = evaluator.device.versions
        assert (versions["driver"], versions["cuda"]) == ("580.65.06", "13.0")
        assert evaluator.device.facts["gpus"] == "GPU-1"
    with make() as evaluator:
        assert not {"driver", "cuda"} & set(evaluator.device.versions)


def test_closing_leaves_nothing_behind(make: Callable[..., CpuEvaluator]) -> None:
    evaluator = make()
    pid, folder = evaluator._supervisor._workers[0].pid, evaluator._compiler.triton_cache
    assert pid is not None
    assert folder.is_dir()
    evaluator.close()
    evaluator.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "bool"])
def test_tensors_have_the_values_and_the_dtype_of_their_array(dtype: str) -> None:
    from evotune.gpu.inputs import to_tensor

    array = np.arange(12).reshape(3, 4).T.astype(dtype)  # not contiguous
    tensor = to_tensor(array, "cpu")
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert np.array_equal(tensor.numpy(), array)
    assert to_tensor(np.float32(3), "cpu").item() == 3


def test_the_comparison_agrees_with_numpy_and_is_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from evotune.gpu import inputs

    monkeypatch.setattr(inputs, "CHUNK", 7)
    rng = np.random.default_rng(0)
    right = rng.standard_normal((5, 8)).astype(np.float32)
    found = right + rng.standard_normal((5, 8)).astype(np.float32) * 0.01
    tolerance = Tolerance(rtol=0.01, atol=0.001)
    error = np.abs(found.astype(float) - right)
    wrong = error > tolerance.atol + tolerance.rtol * np.abs(right.astype(float))
    worst = np.unravel_index(np.argmax(np.where(wrong, error, -1)), error.shape)
    said = inputs.compare(inputs.to_tensor(found, "cpu"), inputs.to_tensor(right, "cpu"), tolerance)
    assert said is not None
    assert said.startswith(f"{wrong.sum()} of 40 values are wrong")
    assert f"at {[int(i) for i in worst]}" in said
    same = inputs.to_tensor(right, "cpu")
    assert inputs.compare(same, same, Tolerance(0, 0)) is None


def test_reasons_to_slow_down_are_named_and_idling_is_none() -> None:
    assert throttled(0x1) == "no"  # idle
    assert throttled(0x4 | 0x20) == "power cap, software thermal"


@pytest.mark.parametrize("dtype", [*SHORT_FLOATS, "float16", "int8"])
def test_arrays_of_every_dtype_are_told_right_from_wrong_on_the_device(dtype: str) -> None:
    from evotune.gpu.inputs import compare, to_tensor

    values = np.arange(-8, 8).reshape(2, 8).astype(numpy_dtype(dtype))
    tensor = to_tensor(values, "cpu")
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert compare(tensor.clone(), tensor, Tolerance(0, 0)) is None
    off = values.copy()
    off[1, 3] = 5
    assert "1 of 16 values are wrong" in str(compare(to_tensor(off, "cpu"), tensor, Tolerance(0, 0)))
