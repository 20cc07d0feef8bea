"""The shipped kernels: complete, right in every corner of their spaces, and honest about their cost."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from evotune.errors import UsageError
from evotune.kernel import Array, CSource, LoadedKernel, Problem, load_kernel
from evotune.space import Config, ConfigSpace

ROOT = Path(__file__).parents[2]
NAMES = ["attention", "cross_entropy", "layer_norm", "matmul", "rms_norm", "softmax", "vector_add"]
HELION = ["helion_attention", "helion_matmul", "helion_rms_norm"]
ON_GPUS_ONLY = ["conv2d", "grouped_gemm", *HELION]
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler (cc, gcc or clang) on PATH")


@pytest.fixture(params=NAMES)
def kernel(request: pytest.FixtureRequest) -> LoadedKernel:
    return shipped(request.param)


@pytest.fixture(params=[*NAMES, *ON_GPUS_ONLY])
def any_kernel(request: pytest.FixtureRequest) -> LoadedKernel:
    return shipped(request.param)


def shipped(name: str) -> LoadedKernel:
    return load_kernel(ROOT / "kernels" / f"{name}.py")


def cpu_space(kernel: LoadedKernel, problem: Problem) -> ConfigSpace:
    return kernel.backend("cpu").space(problem)


# -- the files ----------------------------------------------------------------------------------


def test_every_shipped_kernel_is_tested_here() -> None:
    assert sorted([*NAMES, *ON_GPUS_ONLY]) == sorted(path.stem for path in (ROOT / "kernels").glob("*.py"))


def test_a_kernel_is_named_after_its_file_and_has_the_backends_that_are_promised(any_kernel: LoadedKernel) -> None:
    assert any_kernel.name == any_kernel.path.stem
    promised = {"cuda"} if any_kernel.name in ON_GPUS_ONLY else {"cpu", "cuda"}
    assert set(any_kernel.definition.backends) == promised


def test_each_default_shape_exists_and_each_dtype_has_a_tolerance(any_kernel: LoadedKernel) -> None:
    shapes = any_kernel.definition.shapes
    assert {"small", "odd", "default", "gpu"} <= set(shapes)
    for backend in any_kernel.definition.backends:
        assert any_kernel.problem(None, backend) == shapes[{"cpu": "default", "cuda": "gpu"}[backend]]
    assert {shape["dtype"] for shape in shapes.values()} <= set(any_kernel.definition.tolerance)


def test_loading_a_kernel_imports_neither_torch_nor_triton(any_kernel: LoadedKernel) -> None:
    # The space of Helion's kernels needs Helion, if in another process: tests/helion/ has that.
    space = "" if any_kernel.name in HELION else "k.backend('cuda').space(problem).default\n"
    code = (
        "import sys; from pathlib import Path; from evotune.kernel import load_kernel\n"
        f"k = load_kernel(Path({str(any_kernel.path)!r}))\n"
        f"problem = k.problem(None, 'cuda')\n{space}"
        "assert not {'torch', 'triton', 'helion'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_inputs_are_contiguous_and_follow_the_generator(any_kernel: LoadedKernel) -> None:
    problem = any_kernel.definition.shapes["small"]
    first, again, other = (any_kernel.definition.inputs(problem, np.random.default_rng(seed)) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        assert a.flags.c_contiguous
        assert a.dtype == problem["dtype"] or np.issubdtype(a.dtype, np.integer)  # numbers, or indices of such
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


# -- the spaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("attention", 2560),
        ("cross_entropy", 240),
        ("layer_norm", 672),
        ("matmul", 1680),
        ("rms_norm", 336),
        ("softmax", 256),
        ("vector_add", 256),
    ],
)
def test_the_default_cpu_space_has_the_promised_size(name: str, legal: int) -> None:
    kernel = shipped(name)
    assert cpu_space(kernel, kernel.problem(None, "cpu")).cardinality == legal


def test_the_default_is_legal_in_every_shape_the_backend_supports(kernel: LoadedKernel) -> None:
    for problem in kernel.definition.shapes.values():
        for backend in kernel.definition.backends.values():
            if backend is kernel.backend("cpu") and problem["dtype"] != "float32":
                continue
            space = backend.space(problem)
            assert space.violations(space.default) == []


def test_the_cpu_says_that_it_takes_single_precision_only(kernel: LoadedKernel) -> None:
    half = {**kernel.definition.shapes["small"], "dtype": "float16"}
    with pytest.raises(UsageError, match="dtype == 'float32'"):
        cpu_space(kernel, half).validate({})
    with pytest.raises(UsageError, match="dtype == 'float32'"):
        _ = cpu_space(kernel, half).keys


# -- the C --------------------------------------------------------------------------------------


def covering(space: ConfigSpace, rng: Random) -> list[Config]:
    """Few legal configurations in which each value of each parameter occurs."""
    rows = space.sample(rng, 200)
    missing = {(n, v) for row in rows for n, v in row.items()}
    found = [space.default]
    while missing := missing - set(found[-1].items()):
        found.append(max(rows, key=lambda row: len(missing & set(row.items()))))
    return found


def compiled(source: CSource, folder: Path, number: int) -> Callable[..., None]:
    text, library = folder / f"{number}.c", folder / f"{number}.so"
    text.write_text(source.text, encoding="utf-8")
    command = [str(CC), *source.flags, "-shared", "-fPIC", "-w", "-o", str(library), str(text), "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(library)).evotune_kernel


def before_a_guard_page(a: Array) -> Array:
    """A copy that ends where the process may not read, so that reading on kills it."""
    size = -(-a.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    copy = np.frombuffer(memory, a.dtype, a.size, size - a.nbytes).reshape(a.shape)
    copy[...] = a
    return copy


def run(function: Callable[..., None], inputs: Sequence[Array], expected: Sequence[Array]) -> list[Array]:
    """The outputs; what lies before and behind them must stay untouched."""
    guard = 1 << 14
    buffers = [np.full(e.size + 2 * guard, np.nan, e.dtype) for e in expected]
    outs = [b[guard:-guard].reshape(e.shape) for b, e in zip(buffers, expected, strict=True)]
    arrays = [*map(before_a_guard_page, inputs), *outs]
    function(*(ctypes.c_void_p(a.ctypes.data) for a in arrays))
    for buffer in buffers:
        assert np.isnan(np.r_[buffer[:guard], buffer[-guard:]]).all(), "wrote outside the output"
    return outs


def assert_right(kernel: LoadedKernel, problem: Problem, config: Config, out: Array, expected: Array) -> None:
    tolerance = kernel.definition.tolerance[str(problem["dtype"])]
    np.testing.assert_allclose(out, expected, tolerance.rtol, tolerance.atol, err_msg=f"{problem} {config}")


ODD_ATTENTION = {"heads": 2, "seq": 77, "head_dim": 24, "causal": False, "dtype": "float32"}
PROBLEMS = [
    *((name, shipped(name).definition.shapes[shape]) for name in NAMES for shape in ("small", "odd")),
    ("attention", ODD_ATTENTION),
    ("attention", {**ODD_ATTENTION, "seq": 1, "causal": True}),
    ("matmul", {"m": 3, "n": 1, "k": 300, "dtype": "float32"}),
    ("softmax", {"rows": 3, "cols": 16, "dtype": "float32"}),
    ("rms_norm", {"rows": 1, "cols": 5, "dtype": "float32"}),
    ("layer_norm", {"rows": 1, "cols": 5, "dtype": "float32"}),
    ("layer_norm", {"rows": 7, "cols": 131, "training": True, "dtype": "float32"}),
    ("cross_entropy", {"rows": 1, "vocab": 16, "dtype": "float32"}),
    ("vector_add", {"n": 1, "dtype": "float32"}),
]


@needs_cc
@pytest.mark.parametrize(("name", "problem"), PROBLEMS, ids=lambda x: x if isinstance(x, str) else "")
def test_the_c_code_agrees_with_the_reference(name: str, problem: Problem, tmp_path: Path) -> None:
    kernel = shipped(name)
    rng = np.random.default_rng(len(name))
    for number, config in enumerate(covering(cpu_space(kernel, problem), Random(1))):
        function = compiled(kernel.backend("cpu").build(config, problem), tmp_path, number)
        for _ in range(2):  # scratch memory keeps nothing from one call to the next
            inputs = kernel.definition.inputs(problem, rng)
            expected = kernel.results(problem, *inputs)
            for out, right in zip(run(function, inputs, expected), expected, strict=True):
                assert_right(kernel, problem, config, out, right)


@needs_cc
@pytest.mark.parametrize("name", ["attention", "cross_entropy", "softmax"])
def test_exponentials_neither_overflow_nor_vanish_for_large_scores(name: str, tmp_path: Path) -> None:
    kernel = shipped(name)
    problem = kernel.definition.shapes["odd"]
    drawn = kernel.definition.inputs(problem, np.random.default_rng(0))
    inputs = [30 * x if x.dtype == "float32" else x for x in drawn]
    expected = kernel.results(problem, *inputs)
    for number, config in enumerate(covering(cpu_space(kernel, problem), Random(2))[:3]):
        function = compiled(kernel.backend("cpu").build(config, problem), tmp_path, number)
        # Scores of several thousand: their rounding alone is 2e-4 of a weight.
        np.testing.assert_allclose(run(function, inputs, expected)[0], expected[0], rtol=5e-3, atol=5e-2)


# -- reference and costs against values worked out by hand --------------------------------------


def test_attention_of_equal_scores_is_the_mean_of_the_values_seen() -> None:
    attention = shipped("attention").definition
    q, k = np.zeros((1, 3, 2), np.float32), np.ones((1, 3, 2), np.float32)
    v = np.array([[[0, 6], [2, 0], [4, 0]]], np.float32)
    problem = {"heads": 1, "seq": 3, "head_dim": 2, "causal": False, "dtype": "float32"}
    np.testing.assert_allclose(attention.reference(problem, q, k, v), [[[2, 2]] * 3])
    causal = attention.reference({**problem, "causal": True}, q, k, v)
    np.testing.assert_allclose(causal, [[[0, 6], [1, 3], [2, 2]]])


def test_attention_scales_scores_by_the_root_of_the_head_dimension() -> None:
    q = np.array([[[2.0, 0, 0, 0]]], np.float32).repeat(2, axis=1)
    k = np.array([[[np.log(3), 0, 0, 0], [0, 0, 0, 0]]], np.float32)  # scores 2 log 3 / 2 and 0
    v = np.array([[[4.0, 0, 0, 0], [0, 4, 0, 0]]], np.float32)
    problem = {"heads": 1, "seq": 2, "head_dim": 4, "causal": False, "dtype": "float32"}
    out = shipped("attention").definition.reference(problem, q, k, v)
    np.testing.assert_allclose(out[0, 0], [3, 1, 0, 0], rtol=1e-6)


def test_the_other_references_have_known_values() -> None:
    x = np.array([[0.0, np.log(3)]], np.float32)
    np.testing.assert_allclose(shipped("softmax").definition.reference({}, x), [[0.25, 0.75]], rtol=1e-6)
    row, weight = np.array([[3.0, -3.0]], np.float32), np.array([1.0, 2.0], np.float32)
    np.testing.assert_allclose(shipped("rms_norm").definition.reference({}, row, weight), [[1, -2]], rtol=1e-6)
    bias = np.array([0.5, 0.5], np.float32)
    normalised = shipped("layer_norm").definition.reference({}, row + 7, weight, bias)
    np.testing.assert_allclose(normalised, [[1.5, -1.5]], rtol=1e-5)
    loss = shipped("cross_entropy").definition.reference({}, np.repeat(x, 2, axis=0), np.array([0, 1]))
    np.testing.assert_allclose(loss, [np.log(4), np.log(4 / 3)], rtol=1e-6)
    a, b = np.array([[1.0, 2], [3, 4]], np.float32), np.array([[0.0, 1], [1, 0]], np.float32)
    product = shipped("matmul").definition.reference({"dtype": "float32"}, a, b)
    np.testing.assert_array_equal(product, [[2, 1], [4, 3]])
    np.testing.assert_array_equal(shipped("vector_add").definition.reference({}, a, b), [[1, 3], [4, 4]])


@pytest.mark.parametrize(
    ("name", "problem", "flops", "bytes_moved"),
    [
        # q k^T and p v: 2 x 2 x 3 x 10 x 10 x 8; four arrays of 3 x 10 x 8 halves.
        ("attention", {"heads": 3, "seq": 10, "head_dim": 8, "causal": False, "dtype": "float16"}, 9600, 1920),
        # A causal query sees 1, 2, …, 10 keys: 55 pairs instead of 100.
        ("attention", {"heads": 3, "seq": 10, "head_dim": 8, "causal": True, "dtype": "float32"}, 5280, 3840),
        ("matmul", {"m": 2, "n": 3, "k": 5, "dtype": "float32"}, 60, (10 + 15 + 6) * 4),
        ("softmax", {"rows": 2, "cols": 3, "dtype": "float32"}, 30, 48),
        ("rms_norm", {"rows": 2, "cols": 3, "dtype": "float16"}, 24, (6 + 6 + 3) * 2),
        ("softmax", {"rows": 2, "cols": 3, "dtype": "bfloat16"}, 30, 24),
        ("layer_norm", {"rows": 2, "cols": 3, "dtype": "bfloat16"}, 42, (6 + 6 + 3 + 3) * 2),
        # Logits of two bytes, and for each row an int64 and a float32.
        ("cross_entropy", {"rows": 2, "vocab": 3, "dtype": "float16"}, 24, 6 * 2 + 2 * 8 + 2 * 4),
        ("vector_add", {"n": 7, "dtype": "float32"}, 7, 84),
    ],
)
def test_flops_and_bytes_are_as_counted_by_hand(
    name: str, problem: Problem, flops: float, bytes_moved: float
) -> None:
    definition = shipped(name).definition
    assert definition.flops(problem) == flops
    assert definition.bytes_moved(problem) == bytes_moved
