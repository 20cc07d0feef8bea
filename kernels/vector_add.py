"""``out = x + y``: the smallest complete kernel file, and a good one to copy.

Nothing but memory traffic matters here. On the CPU: how many loads are in flight and how far ahead
they are asked for. On the GPU: how much one program and one thread take.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false, reportAssignmentType=false
# (Triton is optional, and its kernels are a language of their own, without Python's types and names.)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from evotune.kernel import Array, Backend, CSource, Problem, Tolerance
from evotune.space import Config, ConfigSpace

if TYPE_CHECKING:
    import triton.language as tl

name = "vector_add"

shapes = {
    "small": {"n": 4096, "dtype": "float32"},
    "odd": {"n": 4099, "dtype": "float32"},
    "default": {"n": 1 << 17, "dtype": "float32"},
    "gpu": {"n": 1 << 26, "dtype": "float32"},
    "gpu_float16": {"n": 1 << 26, "dtype": "float16"},
}

# One addition, rounded once: the reference's result to the last bit.
tolerance = {"float32": Tolerance(rtol=0.0, atol=0.0), "float16": Tolerance(rtol=0.0, atol=0.0)}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """Two vectors of ``n`` elements."""
    return tuple(rng.standard_normal(int(problem["n"])).astype(str(problem["dtype"])) for _ in range(2))


def reference(problem: Problem, *inputs: Array) -> Array:
    """NumPy's sum."""
    x, y = inputs
    return x + y


def flops(problem: Problem) -> float:
    """One addition per element."""
    return float(problem["n"])


def bytes_moved(problem: Problem) -> float:
    """Two inputs and one output."""
    return 3.0 * int(problem["n"]) * np.dtype(str(problem["dtype"])).itemsize


# CPU: C with GCC's vector types, which gcc, clang and zig cc all have, on any processor.


def cpu_space(problem: Problem) -> ConfigSpace:
    """How the vector is walked."""
    return ConfigSpace.from_dict(
        {
            "VEC_WIDTH": [2, 4, 8, 16],  # floats in a vector: 16 are one AVX-512 register
            "UNROLL": [1, 2, 4, 8],  # vectors in one step of the loop
            "STREAMS": [1, 2, 4, 8],  # parts of the arrays that are walked side by side
            "PREFETCH": [0, 256, 1024, 4096],  # floats ahead; 0: left to the hardware
        },
        ["dtype == 'float32'"],
        constants={"dtype": problem["dtype"]},
        default={"VEC_WIDTH": 4, "UNROLL": 1, "STREAMS": 1, "PREFETCH": 0},
    )


def build_cpu(config: Config, problem: Problem) -> CSource:
    """The C text with tunables and sizes defined in front of it."""
    constants = {**config, "N": problem["n"]}
    defines = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    # -O2: gcc 12 unrolls nothing by itself there, so the tunables alone decide.
    return CSource(defines + C_TEXT, flags=("-O2", "-march=native"))


C_TEXT = r"""
typedef float vec __attribute__((vector_size(4 * VEC_WIDTH), aligned(4), may_alias));

enum { STEP = UNROLL * VEC_WIDTH, STEPS = N / STREAMS / STEP, PART = STEPS * STEP };

void evotune_kernel(const float *restrict x, const float *restrict y, float *restrict out) {
  for (int i = 0; i < PART; i += STEP)
    _Pragma("GCC unroll 16") for (int s = 0; s < STREAMS; s++) {
      const float *xs = x + s * PART + i, *ys = y + s * PART + i;
      float *outs = out + s * PART + i;
      if (PREFETCH) { /* a hint, harmless beyond the end */
        __builtin_prefetch(xs + PREFETCH);
        __builtin_prefetch(ys + PREFETCH);
      }
      _Pragma("GCC unroll 16") for (int u = 0; u < STEP; u += VEC_WIDTH)
        *(vec *)(outs + u) = *(const vec *)(xs + u) + *(const vec *)(ys + u);
    }
  for (int i = STREAMS * PART; i < N; i++) out[i] = x[i] + y[i];
}
"""


# CUDA: Triton.


def cuda_space(problem: Problem) -> ConfigSpace:
    """Elements per program, warps that share them, and steps in which they do."""
    return ConfigSpace.from_dict(
        {
            "BLOCK": [128, 256, 512, 1024, 2048, 4096, 8192],  # elements in one step of a program
            "STEPS": [1, 2, 4, 8],  # steps of a program
            "num_warps": [1, 2, 4, 8, 16, 32],
            "CACHE": ["", ".cg", ".cs"],  # stores: default, past L1, or streaming
        },
        [
            "BLOCK >= 32 * num_warps",  # at least one element for each thread,
            "BLOCK <= 64 * 32 * num_warps",  # and no more than its registers hold
        ],
        default={"BLOCK": 1024, "STEPS": 1, "num_warps": 4, "CACHE": ""},
    )


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(x, y, out) -> None``."""
    # Triton looks `tl` up in this module; importing it above would make the CPU backend need Triton.
    globals()["tl"] = import_module("triton.language")
    kernel = import_module("triton").jit(add)
    n = int(problem["n"])
    grid = (-(-n // (int(config["BLOCK"]) * int(config["STEPS"]))),)

    def launch(x: Any, y: Any, out: Any) -> None:
        kernel[grid](x, y, out, N=n, **config)

    return launch


def add(x, y, out, N: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, CACHE: tl.constexpr):
    """One program adds STEPS blocks that lie side by side."""
    start = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    for step in tl.static_range(STEPS):
        at = start + step * BLOCK + tl.arange(0, BLOCK)
        total = tl.load(x + at, mask=at < N) + tl.load(y + at, mask=at < N)
        tl.store(out + at, total, mask=at < N, cache_modifier=CACHE)


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
