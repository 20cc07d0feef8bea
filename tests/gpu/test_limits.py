"""What is refused before a GPU is touched exceeds a limit of the hardware, and nothing else is refused."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from evotune import content
from evotune.errors import Rejected
from evotune.gpu.compiler import CrossCompiler
from evotune.gpu.target import load_target
from evotune.kernel import load_kernel
from evotune.space import ConfigSpace

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]
SIZES: dict[str, dict[str, int]] = {
    "matmul": {"m": 1024, "n": 1024, "k": 1024},
    "attention": {"heads": 2, "seq": 512, "head_dim": 128},
}
POINTERS = {"PERSISTENT": 0, "DESCRIPTORS": False, "num_ctas": 1, "maxnreg": 0, "WARP_SPECIALIZE": False}
WHOLE = {"matmul": {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "num_warps": 8}, "attention": {"num_warps": 8}}
# (kernel, tiles, what they exceed): four tiles of 128 x 128 halves in flight are 128 KiB, eight 256 KiB.
CASES = [
    ("matmul", {**WHOLE["matmul"], "num_stages": 3}, None),
    ("matmul", {**WHOLE["matmul"], "num_stages": 5}, "shared memory"),
    ("attention", {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}, None),
    ("attention", {"BLOCK_M": 64, "BLOCK_N": 256, "num_warps": 8, "num_stages": 3}, "shared memory"),
]
SHARED_BYTES = 227 << 10  # CUDA C++ Programming Guide, compute capabilities 9.0 and 10.0
THREADS, REGISTERS = 1024, 65536


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with ExitStack() as stack:
        yield Judge(stack)


class Judge:
    """One compiling process for each kernel."""

    def __init__(self, stack: ExitStack) -> None:
        self._kernels = {name: load_kernel(content.find(name, content.KERNELS)) for name in SIZES}
        self._problems = {
            name: {**kernel.problem(None, "cuda"), **SIZES[name], "dtype": "float16"}
            for name, kernel in self._kernels.items()
        }
        self._compilers = {
            name: stack.enter_context(CrossCompiler(kernel, self._problems[name], jobs=1))
            for name, kernel in self._kernels.items()
        }

    def __call__(self, name: str, target_name: str, change: dict[str, Any]) -> tuple[list[str], Any]:
        """What is said against a configuration that no constraint keeps out, and its facts."""
        target = load_target(target_name)
        space = self._kernels[name].backend("cuda").space({**self._problems[name], **target.facts})
        config = {n: {**space.default, **POINTERS, **change}[n] for n in space.names}
        assert not ConfigSpace(space.parameters).violations(config)
        compiled = self._compilers[name].compile(config, target)
        return target.violations(compiled.facts), compiled.facts


@pytest.mark.parametrize("target", ["h100", "b200"])
@pytest.mark.parametrize(("kernel", "change", "exceeded"), CASES)
def test_a_block_is_refused_for_what_it_exceeds(
    judge: Judge, kernel: str, target: str, change: dict[str, Any], exceeded: str | None
) -> None:
    refusals, facts = judge(kernel, target, change)
    assert [exceeded in text for text in refusals] == ([True] if exceeded else [])
    assert bool(exceeded) == (facts["shared_bytes"] > SHARED_BYTES)
    assert facts["threads"] <= THREADS
    assert facts["threads"] * facts["registers"] <= REGISTERS


def test_triton_s_own_refusal_of_tensor_memory_is_one_of_the_hardware_s(judge: Judge) -> None:
    """Scores of 256 x 256 and sums of 256 x 128: 512 and 256 columns."""
    with pytest.raises(Rejected, match="tensor memory") as caught:
        judge("attention", "b200", {"BLOCK_M": 256, "BLOCK_N": 256, "num_warps": 8, "num_stages": 1})
    needed, limit = (int(n) for n in re.findall(r"(?:Required|limit): (\d+)", caught.value.reason))
    assert caught.value.stage == "limits"
    assert needed > limit == load_target("b200").card["tmem_columns"]
