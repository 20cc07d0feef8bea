"""The Triton kernels of tensor cores: right in the interpreter, and with choices that the target has."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evotune.errors import UsageError
from evotune.gpu.compiler import CrossCompiler
from evotune.gpu.target import Target
from evotune.kernel import LoadedKernel, Problem, load_kernel, numpy_dtype
from evotune.space import ConfigSpace
from tests.kernels.interpret_jobs import interpret

ROOT = Path(__file__).parents[2]
FLOATS = ["float32", "float16", "bfloat16"]
DTYPES = {"attention": FLOATS, "conv2d": FLOATS, "grouped_gemm": FLOATS, "matmul": [*FLOATS, "int8"]}
CASES = [(name, dtype) for name, dtypes in DTYPES.items() for dtype in dtypes]
# Sizes that no tile divides, in rows of whole 16 bytes, as TMA takes them.
SIZES: dict[str, Problem] = {
    "attention": {"heads": 2, "seq": 37, "head_dim": 16, "causal": True},
    "conv2d": {
        "batch": 1, "height": 9, "width": 6, "channels": 24, "filters": 40, "taps": 3, "stride": 2, "padding": 1,
    },
    "grouped_gemm": {"tokens": 50, "experts": 3, "n": 40, "k": 40},
    "matmul": {"m": 35, "n": 48, "k": 80},
}  # fmt: skip
# All choices there are, and one multiprocessor, lest a persistent grid be larger than these problems.
BLACKWELL = {"capability": 100, "multiprocessors": 1}
H100, B200 = Target("h100", 90, 132), Target("b200", 100, 148)
MOST_SHARED_BYTES = 232448  # of a block, on both
SAMPLES = 12


def shipped(name: str) -> LoadedKernel:
    return load_kernel(ROOT / "kernels" / f"{name}.py")


def tiny(name: str, dtype: str) -> Problem:
    return {**SIZES[name], **BLACKWELL, "dtype": dtype}


def cuda_space(name: str, problem: Problem) -> ConfigSpace:
    return shipped(name).backend("cuda").space(problem)


# -- in the interpreter -------------------------------------------------------------------------


ODD_JOBS: list[tuple[str, Problem]] = [
    ("attention", {"heads": 1, "seq": 64, "head_dim": 16, "causal": False, "dtype": "float32", **BLACKWELL}),
    ("attention", {"heads": 1, "seq": 1, "head_dim": 16, "causal": True, "dtype": "float32"}),
    # Most experts have no row, and rows are not of whole 16 bytes.
    ("grouped_gemm", {"tokens": 3, "experts": 9, "n": 17, "k": 5, "dtype": "float32"}),
    ("conv2d", {**shipped("conv2d").definition.shapes["odd"], **BLACKWELL}),
    ("matmul", {"m": 3, "n": 1, "k": 7, "dtype": "float16"}),
]


@lru_cache
def interpreted() -> list[dict[str, Any]]:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("triton", reason="triton is not installed")
    jobs = [(name, tiny(name, dtype)) for name, dtype in CASES]
    return interpret([*jobs, *ODD_JOBS], SAMPLES)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_triton_kernel_agrees_with_the_reference_in_the_interpreter(name: str, dtype: str) -> None:
    rows = [row for row in interpreted() if row["kernel"] == name and row["problem"] == tiny(name, dtype)]
    assert len(rows) == 1 + SAMPLES
    assert [row for row in rows if row["wrong"]] == []


@pytest.mark.torch
@pytest.mark.slow
def test_sizes_below_a_tile_and_experts_without_rows_are_right_too() -> None:
    rows = [row for row in interpreted() if (row["kernel"], row["problem"]) in ODD_JOBS]
    assert len(rows) == len(ODD_JOBS) * (1 + SAMPLES)
    assert [row for row in rows if row["wrong"]] == []


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", list(DTYPES))
def test_what_was_interpreted_takes_each_way_through_the_kernel(name: str) -> None:
    # Branches depend on none of these; the interpreter does not know the last four.
    ignored = {"BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "num_ctas", "maxnreg"}
    space = cuda_space(name, tiny(name, "float32"))
    possible = {(n, v) for n, values in space.columns(space.keys).items() for v in values.tolist()}
    tried = {pair for row in interpreted() if row["kernel"] == name for pair in row["config"].items()}
    assert {(n, v) for n, v in possible - tried if n not in ignored} == set()


# -- compiled -----------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", list(DTYPES))
def test_defaults_use_the_tensor_cores_of_each_target_and_spill_nothing(name: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("triton", reason="triton is not installed")
    kernel = shipped(name)
    problem: Problem = {
        "attention": {"heads": 64, "seq": 128, "head_dim": 64, "causal": False},
        "conv2d": {**kernel.definition.shapes["gpu"], "batch": 1},
        "grouped_gemm": {"tokens": 1024, "experts": 8, "n": 1024, "k": 128},
        "matmul": {"m": 2048, "n": 2304, "k": 256},
    }[name] | {"dtype": "float16"}
    with CrossCompiler(kernel, problem, jobs=1) as compiler:
        for target, unit in ((H100, "wgmma"), (B200, "tcgen05_mma")):
            space = kernel.backend("cuda").space({**problem, **target.facts})
            facts = compiler.compile(space.default, target).facts
            assert facts[unit] > 0
            assert facts["spill_bytes"] == 0
            assert facts["shared_bytes"] <= MOST_SHARED_BYTES


# -- the spaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(DTYPES))
def test_the_default_gpu_space_is_worth_searching(name: str) -> None:
    kernel = shipped(name)
    assert cuda_space(name, kernel.problem(None, "cuda")).cardinality >= 500


@pytest.mark.parametrize("name", list(DTYPES))
def test_the_default_is_legal_at_every_shape_on_each_target(name: str) -> None:
    for problem in shipped(name).definition.shapes.values():
        for target in (H100, B200):
            space = cuda_space(name, {**problem, **target.facts})
            assert space.violations(space.default) == []


@pytest.mark.parametrize("name", ["attention", "grouped_gemm", "matmul"])
def test_warps_are_specialized_on_blackwell_only(name: str) -> None:
    problem = shipped(name).problem(None, "cuda")
    hopper, blackwell = (cuda_space(name, {**problem, **target.facts}) for target in (H100, B200))
    assert set(blackwell.names) - set(hopper.names) >= {"WARP_SPECIALIZE"}
    assert set(hopper.names) < set(blackwell.names)
    # Without facts about the device the choices are those that each target has.
    assert cuda_space(name, problem).names == hopper.names


@pytest.mark.parametrize("name", list(DTYPES))
def test_a_grid_is_persistent_only_where_programs_have_more_than_one_tile(name: str) -> None:
    small = {"attention": 2 * 3, "conv2d": 1 * 3, "grouped_gemm": 4 * 3, "matmul": 3 * 3}  # tiles of 16 by 16
    for multiprocessors, possible in ((small[name], False), (1, True)):
        space = cuda_space(name, {**tiny(name, "float16"), "multiprocessors": multiprocessors})
        assert bool((space.columns(space.keys)["PERSISTENT"] > 0).any()) == possible


@pytest.mark.parametrize("name", ["grouped_gemm", "matmul"])
def test_rows_that_tma_does_not_take_are_loaded_by_pointers(name: str) -> None:
    for n, possible in ((48, True), (47, False)):
        space = cuda_space(name, {**tiny(name, "float16"), "n": n})
        assert bool(space.columns(space.keys)["DESCRIPTORS"].any()) == possible


# -- dtypes -------------------------------------------------------------------------------------


def test_numpy_dtypes_include_bfloat16_and_others_are_named_in_the_refusal() -> None:
    assert numpy_dtype("float16") == np.float16
    assert (numpy_dtype("bfloat16").name, numpy_dtype("bfloat16").itemsize) == ("bfloat16", 2)
    with pytest.raises(UsageError, match="'float17' is no dtype"):
        numpy_dtype("float17")


def test_without_ml_dtypes_bfloat16_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(UsageError, match="pip install ml_dtypes"):
        numpy_dtype("bfloat16")


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_inputs_and_results_have_the_promised_dtype(name: str, dtype: str) -> None:
    definition, problem = shipped(name).definition, tiny(name, dtype)
    inputs = definition.inputs(problem, np.random.default_rng(0))
    assert {a.dtype.name for a in inputs} <= {dtype, "int32"}  # int32: offsets of experts
    assert definition.reference(problem, *inputs).dtype.name == ("int32" if dtype == "int8" else dtype)


# -- references and costs against values worked out by hand -------------------------------------


def test_int8_matrices_are_multiplied_exactly_in_int32() -> None:
    a, b = np.full((1, 3), -128, np.int8), np.full((3, 1), -128, np.int8)
    product = shipped("matmul").definition.reference({"dtype": "int8"}, a, b)
    assert product.tolist() == [[3 * 128 * 128]]


def test_rows_of_a_grouped_gemm_meet_the_weights_of_their_expert() -> None:
    x = np.array([[1.0], [2], [3]], np.float32)
    weights = np.array([[[10.0]], [[20]], [[30]]], np.float32)
    offsets = np.array([0, 1, 1, 3], np.int32)  # the second expert has no row
    out = shipped("grouped_gemm").definition.reference({"dtype": "float32"}, x, weights, offsets)
    assert out.tolist() == [[10], [60], [90]]


def test_experts_are_unevenly_busy_and_which_ones_is_drawn() -> None:
    definition = shipped("grouped_gemm").definition
    problem: Problem = {"tokens": 1000, "experts": 16, "n": 1, "k": 1, "dtype": "float32"}
    rows = [np.diff(definition.inputs(problem, np.random.default_rng(seed))[2]) for seed in (0, 1)]
    assert rows[0].tolist() != rows[1].tolist()
    assert sorted(rows[0]) == sorted(rows[1])  # so that timings compare
    assert rows[0].sum() == 1000
    assert rows[0].max() > 2 * rows[0].mean()


def test_a_convolution_of_ones_counts_the_neighbours() -> None:
    problem: Problem = {"height": 3, "width": 3, "taps": 3, "stride": 1, "padding": 1, "dtype": "float32"}
    x, weights = np.ones((1, 3, 3, 1), np.float32), np.ones((3, 3, 1, 1), np.float32)
    reference = shipped("conv2d").definition.reference
    assert reference(problem, x, weights)[0, :, :, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    assert reference({**problem, "stride": 2}, x, weights)[0, :, :, 0].tolist() == [[4, 4], [4, 4]]


@pytest.mark.torch
def test_the_convolution_is_torch_s() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    definition = shipped("conv2d").definition
    problem = definition.shapes["odd"]
    x, weights = definition.inputs(problem, np.random.default_rng(0))
    images, filters = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(weights).permute(3, 2, 0, 1)
    expected = torch.nn.functional.conv2d(images, filters, stride=2, padding=1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(definition.reference(problem, x, weights), expected.numpy(), rtol=1e-5, atol=1e-5)


IMAGE = {"batch": 1, "height": 3, "width": 5, "channels": 2, "filters": 4, "taps": 3, "stride": 2, "padding": 1}


@pytest.mark.parametrize(
    ("name", "problem", "flops", "bytes_moved"),
    [
        # The output is 2 by 3 pixels of 4 filters, 9 taps of 2 channels each.
        ("conv2d", {**IMAGE, "dtype": "float32"}, 2 * 24 * 18, (30 + 72 + 24) * 4),
        ("conv2d", {**IMAGE, "stride": 1, "dtype": "bfloat16"}, 2 * 60 * 18, (30 + 72 + 60) * 2),
        # All experts have rows: 3 x 2, weights 2 x 2 x 5, output 3 x 5, and three offsets.
        ("grouped_gemm", {"tokens": 3, "experts": 2, "n": 5, "k": 2, "dtype": "float16"}, 60, 41 * 2 + 12),
        # A single row has a single expert, whose weights alone are read.
        ("grouped_gemm", {"tokens": 1, "experts": 4, "n": 5, "k": 2, "dtype": "float32"}, 20, 17 * 4 + 20),
        ("matmul", {"m": 2, "n": 3, "k": 5, "dtype": "int8"}, 60, 10 + 15 + 6 * 4),
        ("matmul", {"m": 2, "n": 3, "k": 5, "dtype": "bfloat16"}, 60, (10 + 15 + 6) * 2),
        # A causal query sees 1, 2, …, 10 keys: 55 pairs instead of 100.
        ("attention", {"heads": 3, "seq": 10, "head_dim": 8, "causal": True, "dtype": "bfloat16"}, 5280, 1920),
    ],
)
def test_flops_and_bytes_are_as_counted_by_hand(
    name: str, problem: Problem, flops: float, bytes_moved: float
) -> None:
    definition = shipped(name).definition
    assert definition.flops(problem) == flops
    assert definition.bytes_moved(problem) == bytes_moved
