"""What is compiled on one machine must be found, and not compiled again, by Triton on another."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from evotune.errors import Rejected
from evotune.gpu.cuda_compiler import CudaCompiler
from evotune.gpu.target import Target
from evotune.kernel import load_kernel

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("triton", "torch")), reason="triton is not installed"
)

KERNEL = Path(__file__).with_name("triton_scale.py")
CONFIG = {"variant": "twice", "BLOCK": 256, "num_warps": 4}


def compiler(folder: Path) -> CudaCompiler:
    """On a machine of its own: with a copy of the kernel's file somewhere else."""
    folder.mkdir()
    kernel = load_kernel(Path(shutil.copy(KERNEL, folder / "scale.py")))
    problem = kernel.problem(None, "cuda")
    return CudaCompiler(kernel, problem, gpu="NVIDIA H100", target=Target("h100", 90, 132), jobs=1)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file() and p.name not in (".lock", "lock")
    }


def test_triton_on_another_machine_finds_what_was_accepted(tmp_path: Path) -> None:
    with compiler(tmp_path / "a") as here:
        packed = here.pack(CONFIG)
    with compiler(tmp_path / "b") as there:
        assert {p.split("/")[1] for p in packed.files} == {"scale.cubin", "scale.json", "__grp__scale.json"}
        there.accept(CONFIG, packed)
        assert there.compile(CONFIG) == packed.static
        before = files(there.triton_cache)
        assert before
        facts = there._compiler.compile(CONFIG, there._target).facts  # Triton itself, as before a launch
        assert files(there.triton_cache) == before
        assert facts["registers"] == packed.static.facts["registers"]


def test_what_was_not_accepted_is_compiled_and_can_be_packed_again(tmp_path: Path) -> None:
    with compiler(tmp_path / "a") as here, compiler(tmp_path / "b") as there:
        assert not files(there.triton_cache)
        packed = here.pack(CONFIG)
        there.accept(CONFIG, packed)
        assert set(there.pack(CONFIG).files) == set(packed.files)
        with pytest.raises(Rejected):
            here.pack({**CONFIG, "variant": "no_launch"})
