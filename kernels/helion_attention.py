"""Attention forward, in Helion: ``out = softmax(q k^T / sqrt(head_dim)) v``, causal or not, in one pass.

The online softmax of FlashAttention (Dao et al. 2022, algorithm 1; Dao 2023, section 3.1). The choices are
Helion's own, for the GPU at hand: for a B200 some that an H100 does not have.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownMemberType=false
# pyright: reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (Helion is optional, and its kernels are a language of their own, without Python's types.)
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from evotune.helion.kernel import Argument, helion_backend
from evotune.kernel import Array, Problem, Tolerance, numpy_dtype

if TYPE_CHECKING:
    import helion.language as hl
    import torch

name = "helion_attention"

shapes = {  # `heads` counts the heads of all sequences of a batch
    "small": {"heads": 2, "seq": 96, "head_dim": 32, "causal": False, "dtype": "float32"},
    "odd": {"heads": 1, "seq": 77, "head_dim": 32, "causal": True, "dtype": "float32"},
    "default": {"heads": 2, "seq": 512, "head_dim": 64, "causal": False, "dtype": "float32"},
    "gpu_1024": {"heads": 64, "seq": 1024, "head_dim": 64, "causal": False, "dtype": "float16"},
    "gpu": {"heads": 64, "seq": 4096, "head_dim": 128, "causal": False, "dtype": "float16"},
    "gpu_causal": {"heads": 64, "seq": 4096, "head_dim": 128, "causal": True, "dtype": "float16"},
    "gpu_64": {"heads": 64, "seq": 4096, "head_dim": 64, "causal": False, "dtype": "float16"},
    "gpu_64_causal": {"heads": 64, "seq": 4096, "head_dim": 64, "causal": True, "dtype": "float16"},
    "gpu_bf16": {"heads": 64, "seq": 4096, "head_dim": 128, "causal": False, "dtype": "bfloat16"},
    "gpu_float32": {"heads": 16, "seq": 2048, "head_dim": 64, "causal": False, "dtype": "float32"},
}

tolerance = {
    "float32": Tolerance(rtol=1e-4, atol=1e-5),
    "float16": Tolerance(rtol=1e-2, atol=2e-3),
    "bfloat16": Tolerance(rtol=2e-2, atol=8e-3),  # weights are rounded to 8 bits before they meet the values
}


def inputs(problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
    """Queries, keys and values, each (heads, seq, head_dim)."""
    shape = (int(problem["heads"]), int(problem["seq"]), int(problem["head_dim"]))
    return tuple(rng.standard_normal(shape).astype(numpy_dtype(str(problem["dtype"]))) for _ in range(3))


def reference(problem: Problem, *inputs: Array) -> Array:
    """One head at a time, with the whole score matrix."""
    # Single precision is ample for half-precision inputs and takes a quarter of the time.
    exact = np.float64 if problem["dtype"] == "float32" else np.float32
    out = np.empty_like(inputs[0])
    for head, qkv in enumerate(zip(*inputs, strict=True)):
        q, k, v = (x.astype(exact) for x in qkv)
        scores = q @ k.T / math.sqrt(int(problem["head_dim"]))
        if problem["causal"]:
            scores[np.triu_indices_from(scores, 1)] = -np.inf
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[head] = (p @ v) / p.sum(axis=1, keepdims=True)
    return out


def flops(problem: Problem) -> float:
    """Two products of 2 · head_dim per (query, key); a causal query sees itself and what is before."""
    seq = int(problem["seq"])
    pairs = seq * (seq + 1) / 2 if problem["causal"] else seq * seq
    return 4.0 * int(problem["heads"]) * pairs * int(problem["head_dim"])


def bytes_moved(problem: Problem) -> float:
    """Queries, keys, values and output, once each."""
    elements = int(problem["heads"]) * int(problem["seq"]) * int(problem["head_dim"])
    return 4.0 * elements * numpy_dtype(str(problem["dtype"])).itemsize


def arguments(problem: Problem) -> list[Argument]:
    """Queries, keys, values and the output; the factor of scores for powers of two; whether it is causal."""
    heads, seq, width = (int(problem[size]) for size in ("heads", "seq", "head_dim"))
    tensor = ((heads, seq, width), str(problem["dtype"]))
    return [*[tensor] * 4, math.log2(math.e) / math.sqrt(width), bool(problem["causal"])]


def attention(q, k, v, out, factor: hl.constexpr, causal: hl.constexpr) -> None:
    """Tiles of queries by tiles of keys; maximum, sum and output are corrected when the maximum rises."""
    heads, seq, width = q.size()
    width = hl.specialize(width)
    keys = k.transpose(1, 2)
    for tile_h, tile_m in hl.tile([heads, seq]):
        m_i = hl.full([tile_h, tile_m], float("-inf"), dtype=torch.float32)
        l_i = hl.zeros([tile_h, tile_m], dtype=torch.float32)
        acc = hl.zeros([tile_h, tile_m, width], dtype=torch.float32)
        queries = q[tile_h, tile_m, :]
        for tile_n in hl.tile(tile_m.end if causal else seq):
            scores = torch.bmm(queries, keys[tile_h, :, tile_n], out_dtype=torch.float32) * factor
            if causal:
                seen = tile_m.index[:, None] >= tile_n.index[None, :]
                scores = torch.where(seen[None, :, :], scores, float("-inf"))
            m_next = torch.maximum(m_i, torch.amax(scores, -1))
            p = torch.exp2(scores - m_next[:, :, None])
            correction = torch.exp2(m_i - m_next)
            l_i = l_i * correction + torch.sum(p, -1)
            acc = torch.baddbmm(acc * correction[:, :, None], p.to(v.dtype), v[tile_h, tile_n, :])
            m_i = m_next
        out[tile_h, tile_m, :] = (acc / l_i[:, :, None]).to(out.dtype)


backends = {"cuda": helion_backend(attention, arguments, default_shape="gpu")}
