"""Triton to machine code of one model of GPU, with or without one here; what is made may travel to one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

from evotune.errors import Rejected
from evotune.evaluator import Artifact, Device, installed_version
from evotune.gpu.compiler import Compiled, CrossCompiler, compiler_versions
from evotune.gpu.target import Target
from evotune.kernel import LoadedKernel, Problem
from evotune.process import Scratch
from evotune.space import Config, text_of
from evotune.trial import Static

PACKAGES = ("torch", "triton", "numpy", "evotune")
GROUP = "__grp__"  # how Triton begins the names of files that list others, by absolute path
# Of Triton's files, what a launch needs; the rest, for people to read, is ten times as large.
LAUNCHED = (".cubin", ".json")


class CudaCompiler:
    """Compiles the ``cuda`` backend of a kernel for one target, from as many threads as like.

    Args:
        kernel: A kernel file with that backend.
        problem: Sizes and dtype.
        gpu: The device's name.
        target: What it is compiled for and must fit into.
        jobs: Compilations at once; one for each core if None.
        timeout_s: For one configuration.

    Raises:
        UsageError: No such backend, or no Triton.
    """

    def __init__(
        self,
        kernel: LoadedKernel,
        problem: Problem,
        *,
        gpu: str,
        target: Target,
        jobs: int | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._target = target
        self._compiled: dict[str, Compiled | Rejected] = {}
        self._accepted: dict[str, Static] = {}
        self._folder = Scratch("gpu")
        try:
            self._compiler = CrossCompiler(
                kernel, problem, jobs=jobs, timeout_s=timeout_s, triton_cache=self._folder.path
            )
        except BaseException:
            self._folder.cleanup()
            raise
        versions = {**compiler_versions(), **{name: installed_version(name) for name in PACKAGES}}
        self.device = Device("cuda", gpu, versions)

    @property
    def triton_cache(self) -> Path:
        """Where workers find what was compiled; see ``TRITON_CACHE_DIR``."""
        return self._folder.path

    def __enter__(self) -> CudaCompiler:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def compile(self, config: Config) -> Static:
        """Seconds of compiling, registers, spills and the like; each configuration is compiled once.

        Raises:
            Rejected: At stage ``build``, ``compile``, ``limits``, ``timeout`` or ``crash``.
        """
        if accepted := self._accepted.get(text_of(config)):
            return accepted
        compiled = self._compile(config)
        return Static(compiled.compile_s, self._target.described(compiled.facts, compiled.blocks))

    def pack(self, config: Config) -> Artifact:
        """What :meth:`compile` made, with Triton's files of it."""
        static = self.compile(config)
        made = [p for name in self._compile(config).kernels for p in (self._folder.path / name).iterdir()]
        return Artifact(static, {f"{p.parent.name}/{p.name}": p.read_bytes() for p in made if p.suffix in LAUNCHED})

    def accept(self, config: Config, artifact: Artifact) -> None:
        """Take a configuration as compiled that another compiler packed."""
        for name, content in artifact.files.items():
            kernel, file = Path(name).parts
            folder = self._folder.path / kernel
            folder.mkdir(exist_ok=True)
            # A worker may read it: it sees all of it or nothing.
            part = folder / f"{file}.{uuid.uuid4().hex}"
            part.write_bytes(_moved(content, folder) if file.startswith(GROUP) else content)
            part.replace(folder / file)
        self._accepted[text_of(config)] = artifact.static

    def close(self) -> None:
        """Kill all processes and delete all files; safe to call twice."""
        self._compiler.close()
        self._folder.cleanup()

    def _compile(self, config: Config) -> Compiled:
        if (found := self._compiled.get(text_of(config))) is None:
            try:
                found = self._compiler.compile(config, self._target)
                if broken := self._target.violations(found.facts):
                    raise Rejected("limits", "; ".join(broken))
            except Rejected as rejected:
                found = rejected
            self._compiled[text_of(config)] = found
        if isinstance(found, Rejected):  # anew: one exception raised in several threads grows its traceback
            raise Rejected(found.stage, found.reason)
        return found


def _moved(group: bytes, folder: Path) -> bytes:
    """A list of files, which are now in this folder."""
    told: Mapping[str, Mapping[str, str]] = json.loads(group)
    here = {name: str(folder / name) for name in told["child_paths"] if Path(name).suffix in LAUNCHED}
    return json.dumps({"child_paths": here}).encode()
