"""Helion kernels bound for GPUs that are not there, and a provider that measures by a formula."""

import hashlib
import math
import os
import random
from contextlib import contextmanager
from dataclasses import fields
from functools import cache, partial

import helion
import helion.language as hl
import numpy as np
import torch
from helion.autotuner.benchmark_provider import BenchmarkProvider, BenchmarkResult, IsolatedBenchmarkFailure

from evotune.helion.headless import B200, H100, fake_arguments, pretended

GPUS = {"h100": H100, "b200": B200}


@helion.kernel(static_shapes=True)
def matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    _, n = y.size()
    out = torch.empty([m, n], dtype=x.dtype, device=x.device)
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = torch.addmm(acc, x[tile_m, tile_k], y[tile_k, tile_n])
        out[tile_m, tile_n] = acc.to(x.dtype)
    return out


@helion.kernel(static_shapes=True)
def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    m, _ = x.size()
    out = torch.empty_like(x)
    for tile in hl.tile(m):
        row = x[tile, :].to(torch.float32)
        scale = torch.rsqrt(torch.mean(row * row, dim=-1) + 1e-5)
        out[tile, :] = (row * scale[:, None] * weight[:].to(torch.float32)).to(out.dtype)
    return out


@helion.kernel(static_shapes=True)
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    heads, length, width = q.size()
    width = hl.specialize(width)
    keys = k.transpose(1, 2)
    out = torch.empty_like(q)
    for tile_b, tile_m in hl.tile([heads, length]):
        highest = hl.full([tile_b, tile_m], float("-inf"), dtype=torch.float32)
        total = torch.full_like(highest, 1.0)
        acc = hl.zeros([tile_b, tile_m, width], dtype=torch.float32)
        for tile_n in hl.tile(length):
            scores = torch.bmm(q[tile_b, tile_m, :], keys[tile_b, :, tile_n])
            now = torch.maximum(highest, torch.amax(scores, -1))
            p = torch.exp2(scores - now[:, :, None])
            share = torch.exp2(highest - now)
            total = total * share + torch.sum(p, -1)
            acc = torch.baddbmm(acc * share[:, :, None], p.to(v.dtype), v[tile_b, tile_n, :])
            highest = now
        out[tile_b, tile_m, :] = (acc / total[:, :, None]).to(out.dtype)
    return out


KERNELS = {
    "matmul": (matmul, ((4096, 4096), (4096, 4096))),
    "rms_norm": (rms_norm, ((4096, 8192), (8192,))),
    "attention": (attention, ((64, 2048, 64),) * 3),
}


@cache
def _bound(kernel, gpu):
    function, shapes = KERNELS[kernel]
    function.reset()
    args, mode = fake_arguments(*((shape, "bfloat16") for shape in shapes))
    with mode:
        return function.bind(args), args


@contextmanager
def bound(kernel="matmul", gpu="h100"):
    """A kernel bound to arguments, and those. Settings are its own again afterwards, and what is drawn in
    the meantime leaves no trace: Helion seeds the global generator."""
    before = random.getstate(), np.random.get_state()
    try:
        with pretended(GPUS[gpu]):
            found, args = _bound(kernel, gpu)
            settings = found.settings
            usual = {f.name: getattr(settings, f.name) for f in fields(settings)}
            settings.autotune_effort, settings.autotune_random_seed = "quick", 1
            settings.autotune_log_level, settings.autotune_progress_bar = 0, False
            try:
                yield found, args
            finally:
                for name, value in usual.items():
                    setattr(settings, name, value)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def latency_ms(config):
    """Best with tensor descriptors, 128 x 128 x 64, 8 warps; inf where it fails. None of it is measured."""
    m, n, k = (math.log2(b) for b in config["block_sizes"])
    if m + n + k > 21 or config["num_stages"] > 6:
        return math.inf
    cost = 1 + 0.1 * (abs(m - 7) + abs(n - 7) + abs(k - 6)) + 0.1 * abs(math.log2(config["num_warps"]) - 3)
    cost += 0.2 * sum(i == "pointer" for i in config["indexing"]) + 0.05 * abs(config["num_stages"] - 4)
    digest = hashlib.sha256(repr(sorted(config.items())).encode()).hexdigest()
    return cost * (1 + 0.01 * int(digest[:6], 16) / 16**6)


class Compiled:
    def __init__(self, config):
        self.config = dict(config)


class Provider(BenchmarkProvider):
    """Keeps what it is asked for in ``seen``."""

    def __init__(self, seen, answer, *, autotune_metrics, **_):
        self._seen, self._answer, self._metrics = seen, answer, autotune_metrics
        self.mutated_arg_indices = ()

    def benchmark(self, configs, **_):
        self._metrics.num_configs_tested += len(configs)
        self._seen.append(("benchmark", [dict(c.config) for c in configs]))
        found = [self._answer(dict(c.config)) for c in configs]
        return [
            BenchmarkResult(c, Compiled(c.config), ms, "ok" if math.isfinite(ms) else "timeout", 0.5)
            for c, ms in zip(configs, found, strict=True)
        ]

    def benchmark_isolated(self, fns, *, rep, **_):
        self._seen.append(("again", rep, [f.config for f in fns]))
        found = [self._answer(f.config) for f in fns]
        return [ms if math.isfinite(ms) else IsolatedBenchmarkFailure("error") for ms in found]

    def setup(self): ...

    def cleanup(self): ...


def use(search, answer=latency_ms):
    """Have a search measure by a formula; what it asks for is kept in the list that is returned."""
    log = []
    search._benchmark_provider_cls = partial(Provider, log, answer)
    search.final_selection = None  # it would use a GPU's timers
    return log


def benchmarked(log):
    """Every configuration that was measured as a new one, in order."""
    return [config for entry in log if entry[0] == "benchmark" for config in entry[1]]


@cache
def environment():
    """Nothing cached is used, and finalists are timed by the provider."""
    return {**os.environ, "HELION_SKIP_CACHE": "1", "HELION_AUTOTUNE_FINAL_REBENCHMARK_ISOLATED": "1"}
