"""Whether what one process compiles of a kernel for a GPU is found by Triton in another, and how large it is.

    python benchmarks/artifacts.py [KERNEL ...] [--target h100]

Of each shipped kernel with a GPU backend, the default configuration at its default shape is packed; a compiler
with a cache of its own, and a copy of the kernel's file elsewhere, accepts it, and Triton is then asked for the
same. It found it if it wrote no file. Needs Triton and torch, and no GPU.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from evotune import content
from evotune.evaluator import Artifact
from evotune.gpu.cuda_compiler import CudaCompiler
from evotune.gpu.target import load_target
from evotune.kernel import load_kernel
from evotune.space import Config


def opened(kernel: Path, target: str) -> tuple[CudaCompiler, Config]:
    """A compiler as on a machine of its own, and the kernel's default configuration."""
    copy = shutil.copy(kernel, tempfile.mkdtemp(prefix="evotune-artifacts-"))
    loaded, wanted = load_kernel(Path(copy)), load_target(target)
    problem = loaded.problem(None, "cuda")
    space = loaded.backend("cuda").space({**problem, **wanted.facts})
    return CudaCompiler(loaded, problem, gpu=target, target=wanted, jobs=1), space.default


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Of Triton's cache, with what changes where one is written."""
    found = (p for p in folder.rglob("*") if p.is_file() and "lock" not in p.name)
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def is_found(kernel: Path, target: str, packed: Artifact) -> bool:
    """Whether Triton takes it where it was not made."""
    compiler, config = opened(kernel, target)
    with compiler:
        compiler.accept(config, packed)
        before = files(compiler.triton_cache)
        compiler._compiler.compile(config, compiler._target)  # what launching does, and not the memory of it
        return bool(before) and files(compiler.triton_cache) == before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL")
    parser.add_argument("--target", default="h100")
    args = parser.parse_args()
    for name in args.kernels or content.shipped(content.KERNELS):
        kernel = content.find(name, content.KERNELS)
        if "cuda" not in load_kernel(kernel).definition.backends:
            continue
        compiler, config = opened(kernel, args.target)
        with compiler:
            packed = compiler.pack(config)
        size = sum(map(len, packed.files.values()))
        verdict = "found" if is_found(kernel, args.target, packed) else "compiled again"
        print(f"{kernel.stem}: {size} bytes in {len(packed.files)} files: {verdict}", flush=True)


if __name__ == "__main__":
    main()
