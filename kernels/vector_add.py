"""``out = x + y``: the smallest complete kernel file, and a good one to copy.

Nothing but memory traffic matters here. On the CPU: how many loads are in flight and how far ahead
they are asked for. On the GPU: the same, how much one program and one thread take, and what the caches
are told. The persistent variant is a grid-stride loop (Harris 2013, "CUDA Pro Tip: Write Flexible
Kernels with Grid-Stride Loops").
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportGeneralTypeIssues=false
# pyright: reportArgumentType=false, reportAssignmentType=false
# (Triton is optional, and its kernels are a language of their own, without Python's types and names.)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from evotune.kernel import Array, Backend, CSource, Problem, Tolerance, numpy_dtype
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
    "gpu_bf16": {"n": 1 << 26, "dtype": "bfloat16"},
    "gpu_small": {"n": 1 << 20, "dtype": "float32"},
    "gpu_large": {"n": 1 << 28, "dtype": "float32"},
}

# One addition, rounded once: the reference's result to the last bit.
EXACT = Tolerance(rtol=0.0, atol=0.0)
tolerance = {"float32": EXACT, "float16": EXACT, "bfloat16": EXACT}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """Two vectors of ``n`` elements."""
    n, dtype = int(problem["n"]), numpy_dtype(str(problem["dtype"]))
    x, y = (rng.standard_normal(n, dtype=np.float32).astype(dtype) for _ in range(2))
    return x, y


def reference(problem: Problem, *inputs: Array) -> Array:
    """NumPy's sum."""
    x, y = inputs
    return x + y


def flops(problem: Problem) -> float:
    """One addition per element."""
    return float(problem["n"])


def bytes_moved(problem: Problem) -> float:
    """Two inputs and one output."""
    return 3.0 * int(problem["n"]) * numpy_dtype(str(problem["dtype"])).itemsize


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
    """How the vector is shared out to programs and threads, how it is loaded, and what the caches are told."""
    return ConfigSpace.from_dict(
        {
            "BLOCK": [256, 512, 1024, 2048, 4096, 8192, 16384],  # elements that a program takes at once
            "STEPS": [1, 2, 4, 8],  # such blocks side by side, unrolled
            "PROGRAMS_PER_SM": [0, 1, 2, 4, 8, 16],  # 0: as many as the vector needs; else they loop
            "num_warps": [1, 2, 4, 8, 16, 32],
            "NUM_STAGES": [1, 2, 3, 4],  # rounds of the loop whose loads are in flight
            "VECTOR_BYTES": [4, 8, 16],  # the widest load and store of a thread; 16 is the hardware's
            "LOAD_CACHE": ["", ".cg"],  # .cg: past L1
            "LOAD_EVICT": ["", "evict_first"],
            "STORE_CACHE": ["", ".cg", ".cs"],  # .cs: streaming, to be evicted first
        },
        [
            "BLOCK * itemsize >= 32 * num_warps * VECTOR_BYTES",  # a full load for each thread,
            "BLOCK <= 64 * 32 * num_warps",  # and no more than its registers hold
            "BLOCK * STEPS < n + BLOCK",  # steps that lie inside
            "PROGRAMS_PER_SM * num_warps <= 64",  # an SM has room for 64 warps: more would wait, not loop
            "PROGRAMS_PER_SM == 0 or PROGRAMS_PER_SM * multiprocessors * BLOCK * STEPS < n",  # else no loop
            "NUM_STAGES == 1 or PROGRAMS_PER_SM > 0",  # loads of later rounds are in flight in a loop only
            # Two inputs in shared memory, of which a block has 227 KiB on sm_90 and sm_100.
            "(NUM_STAGES - 1) * 2 * STEPS * BLOCK * itemsize <= 227 * 1024",
            # Loads ahead go to shared memory (cp.async), which has neither of the two hints.
            "NUM_STAGES == 1 or LOAD_CACHE == '' and LOAD_EVICT == ''",
            "LOAD_CACHE == '' or LOAD_EVICT == ''",  # PTX: one or the other
        ],
        constants={
            "n": problem["n"],
            "itemsize": numpy_dtype(str(problem["dtype"])).itemsize,
            "multiprocessors": problem.get("multiprocessors", 132),
        },
        default={
            "BLOCK": 1024,
            "STEPS": 1,
            "PROGRAMS_PER_SM": 0,
            "num_warps": 4,
            "NUM_STAGES": 1,
            "VECTOR_BYTES": 16,
            "LOAD_CACHE": "",
            "LOAD_EVICT": "",
            "STORE_CACHE": "",
        },
    )


def build_cuda(config: Config, problem: Problem) -> Any:
    """A launcher ``(x, y, out) -> None``."""
    # Triton looks `tl` up in this module; importing it above would make the CPU backend need Triton.
    globals()["tl"] = import_module("triton.language")
    kernel = import_module("triton").jit(add)
    tunables = dict(config)
    spans = -(-int(problem["n"]) // (int(config["BLOCK"]) * int(config["STEPS"])))
    resident = int(problem.get("multiprocessors", 132)) * int(tunables.pop("PROGRAMS_PER_SM"))
    programs = min(resident or spans, spans)
    vector = int(tunables.pop("VECTOR_BYTES")) // numpy_dtype(str(problem["dtype"])).itemsize

    def launch(x: Any, y: Any, out: Any) -> None:
        kernel[(programs,)](
            x, y, out, N=int(problem["n"]), SPANS=spans, PROGRAMS=programs, VECTOR=vector, **tunables
        )

    return launch


def add(
    x, y, out, N: tl.constexpr, SPANS: tl.constexpr, PROGRAMS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK: tl.constexpr, STEPS: tl.constexpr, NUM_STAGES: tl.constexpr,
    LOAD_CACHE: tl.constexpr, LOAD_EVICT: tl.constexpr, STORE_CACHE: tl.constexpr,
):  # fmt: skip
    """One program adds spans of STEPS blocks that lie side by side, every PROGRAMS-th span."""
    # The claim of fewer neighbours than there are keeps loads from being wider.
    lanes = tl.max_contiguous(tl.arange(0, BLOCK), VECTOR)
    for span in tl.range(tl.program_id(0).to(tl.int64), SPANS, PROGRAMS, num_stages=NUM_STAGES):
        for step in tl.static_range(STEPS):
            at = (span * STEPS + step) * BLOCK + lanes
            inside = at < N
            a = tl.load(x + at, mask=inside, cache_modifier=LOAD_CACHE, eviction_policy=LOAD_EVICT)
            b = tl.load(y + at, mask=inside, cache_modifier=LOAD_CACHE, eviction_policy=LOAD_EVICT)
            # Rounding a float32 sum of halves once more is exact: 24 bits are 2 * 11 + 2 (Figueroa 1995).
            total = a.to(tl.float32) + b.to(tl.float32)
            tl.store(out + at, total.to(out.dtype.element_ty), mask=inside, cache_modifier=STORE_CACHE)


backends = {
    "cpu": Backend(cpu_space, build_cpu),
    "cuda": Backend(cuda_space, build_cuda, default_shape="gpu"),
}
