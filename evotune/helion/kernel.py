"""A Helion kernel as the ``cuda`` backend of a kernel file, with the space that Helion derives from it.

The file has the kernel's function without ``@helion.kernel``, and beside it what it is called with::

    if TYPE_CHECKING:
        import helion.language as hl


    def double(x, out):
        for tile in hl.tile(x.size(0)):
            out[tile] = 2 * x[tile]


    def arguments(problem):
        return [((problem["n"],), problem["dtype"])] * 2


    backends = {"cuda": helion_backend(double, arguments, default_shape="gpu")}

The function takes the tensors of ``inputs`` in order, the outputs, and then any numbers that it needs. It
is written at the top level of the file. ``torch`` and ``hl`` are given to it when it is bound: a file is
loaded without them.

Which configurations there are, Helion decides, and it asks the device. So the kernel is bound for a GPU
that is only described (:mod:`evotune.helion.headless`), also where there is one: then the space is the
same in the process that searches, which never uses a GPU, and in those that compile and measure. The
searching process asks a child for the space, and imports neither torch nor Helion.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false
# (torch, triton and helion are optional, and of what they have of types nothing here depends on.)
from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from evotune.errors import UsageError
from evotune.facts import space_from_json, space_to_json
from evotune.helion.headless import B200, H100, Gpu, fake_arguments, pretended
from evotune.kernel import Backend, Problem, load_kernel
from evotune.process import Worker
from evotune.space import Config, ConfigSpace

IMPORT_TIMEOUT_S = 180.0  # torch and Helion, on a busy machine
BIND_TIMEOUT_S = 120.0

Argument = tuple[Sequence[int], str] | int | float
"""A tensor's shape and dtype, or a number."""


def helion_backend(
    function: Callable[..., None],
    arguments: Callable[[Problem], Sequence[Argument]],
    *,
    default_shape: str = "default",
) -> Backend:
    """The backend of a kernel of Helion.

    Args:
        function: What ``@helion.kernel`` would decorate; it writes into its arguments for the outputs.
        arguments: For a problem, shape and dtype of each input and of each output, then the numbers.
        default_shape: A name of the file's ``shapes``.
    """
    kernel = _Kernel(function, arguments)
    return Backend(kernel.space, kernel.build, default_shape)


@dataclass(frozen=True)
class _Kernel:
    function: Callable[..., None]
    arguments: Callable[[Problem], Sequence[Argument]]
    _bound: dict[str, _Bound] = field(default_factory=dict[str, "_Bound"], repr=False)

    def space(self, problem: Problem) -> ConfigSpace:
        """Helion's own.

        Raises:
            UsageError: Helion is missing, or refuses the kernel.
        """
        file = Path(inspect.getfile(self.function))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        arguments = json.dumps(list(self.arguments(problem)))
        return _derived(file, digest, self.function.__name__, arguments, _gpu(problem))

    def build(self, config: Config, problem: Problem) -> Callable[..., None]:
        """A launcher of the inputs and the outputs."""
        return self.bind(problem).compiled(config)

    def bind(self, problem: Problem) -> _Bound:
        """The kernel bound to a problem, in this process; the same one each time."""
        key = repr(sorted(problem.items()))
        if key not in self._bound:
            self._bound[key] = _Bound.of(self.function, self.arguments(problem), _gpu(problem))
        return self._bound[key]


@dataclass(frozen=True)
class _Bound:
    """A kernel bound to fake arguments; only for processes that may import torch and Helion."""

    gpu: Gpu
    helions: Any
    space: Any
    mode: Any
    numbers: tuple[int | float, ...]

    @classmethod
    def of(cls, function: Callable[..., None], arguments: Sequence[Argument], gpu: Gpu) -> _Bound:
        helion, headless_space = import_module("helion"), import_module("evotune.helion.space")
        vars(inspect.getmodule(function)).update(torch=import_module("torch"), hl=import_module("helion.language"))
        shapes = [a for a in arguments if not isinstance(a, (int, float))]
        numbers = tuple(a for a in arguments if isinstance(a, (int, float)))
        with pretended(gpu):
            tensors, mode = fake_arguments(*shapes)
            with mode:
                # "ieee": tf32 has 10 bits of mantissa, and float32 is promised.
                bound = helion.kernel(function, static_shapes=True, dot_precision="ieee").bind((*tensors, *numbers))
            space = headless_space.HelionSpace(bound.config_spec.create_config_generation())
        return cls(gpu, bound, space, mode, numbers)

    def compiled(self, config: Config) -> Callable[..., None]:
        """A launcher; Triton compiles at its first call."""
        with pretended(self.gpu), self.mode:
            run = self.helions.compile_config(self.space.config(config), allow_print=False)

        def launch(*tensors: Any) -> None:
            if tensors[0].is_cuda:
                run(*tensors, *self.numbers)
                return
            # Persistent kernels ask the device for its multiprocessors, and this one is none.
            with mock.patch("helion.runtime.get_num_sm", return_value=self.gpu.processors):
                run(*tensors, *self.numbers)

        return launch


def _gpu(problem: Problem) -> Gpu:
    """The GPU that a problem is for. Of others than H100, H200 and B200, the sizes of memories are not
    theirs: on those depends how Helion first cuts long reductions, not what it allows."""
    capability = int(problem.get("capability", 90))
    like = B200 if capability >= 100 else H100
    processors = int(problem.get("multiprocessors", like.processors))
    return replace(like, capability=divmod(capability, 10), processors=processors)


@lru_cache
def _derived(file: Path, digest: str, function: str, arguments: str, gpu: Gpu) -> ConfigSpace:
    """The space, from a child process; ``digest`` is of the file's text."""
    if find_spec("helion") is None:
        raise UsageError(f"{file} is a kernel of Helion, which is not installed; pip install 'evotune[gpu]'")
    setup = {"file": str(file), "function": function, "arguments": arguments, "gpu": vars(gpu)}
    with Worker("evotune.helion.kernel:open_session", setup, setup_timeout_s=IMPORT_TIMEOUT_S) as worker:
        reply = worker.call(None, BIND_TIMEOUT_S)
    if not reply.ok:
        what = " ".join(reply.message.split())
        raise UsageError(f"Helion does not take {function} of {file} for {gpu.name}: {what}")
    return space_from_json(reply.value)


def open_session(setup: Mapping[str, Any]) -> Callable[[None], dict[str, Any]]:
    """Entry of the child that binds a kernel and answers with its space."""
    import_module("helion")  # takes seconds, which are not the kernel's
    kernel = load_kernel(Path(setup["file"]))
    function = getattr(kernel.definition, setup["function"])
    gpu = replace(Gpu(**setup["gpu"]), capability=tuple(setup["gpu"]["capability"]))
    arguments: list[Argument] = json.loads(setup["arguments"])

    def handle(_: None) -> dict[str, Any]:
        return space_to_json(_Bound.of(function, arguments, gpu).space.space)

    return handle
