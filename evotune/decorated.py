"""A Triton kernel in the user's own module, as a kernel that evotune tunes: ``evotune run module.py:add``.

``add`` is decorated with ``@triton.autotune`` or ``@evotune.triton.autotune``. How it is called is said
beside it, in names that begin with its own::

    add_shapes = {"default": {"n": 1 << 24, "dtype": "float32"}}
    add_output = "out"
    add_grid = lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]),)

    def add_inputs(problem, rng):
        x, y = rng.standard_normal((2, problem["n"])).astype(problem["dtype"])
        return {"x": x, "y": y, "out": np.empty_like(x), "n": problem["n"]}

==========================  ======================================================================
``add_inputs``              Required. All arguments that are not tuned, by name: NumPy arrays, drawn
                            with ``rng``, and scalars, which depend on ``problem`` alone.
``add_output``              Required. The array that the kernel writes, or several: ``("y", "mean")``; it must
                            not read them.
``add_grid``                Required. What stands in ``add[grid]``.
``add_shapes``              Problems by name, for ``--shape``; the first is the default. Without it
                            ``problem`` is empty.
``add_reference``           Takes what ``add_inputs`` returned, as keyword arguments, and returns the
                            right result, for several outputs a tuple of them. Without it, it is what the
                            default configuration computes.
``add_tolerance``           ``(rtol, atol)``; :data:`TOLERANCE` by the output's dtype if not given.
``add_space``               Values of each tunable by name, or a ``ConfigSpace``. Without it, all
                            combinations of the values that occur in the decorator's configurations.
                            A kernel that is only ``@triton.jit`` needs it.
``add_flops``               Operations of a problem, for the roofline, which else is the memory's alone.
==========================  ======================================================================

The default configuration is the decorator's first. ``reset_to_zero`` is obeyed, at each timed launch too;
what is named in ``restore_value`` would be refused, because a kernel that changes its inputs cannot be
checked. The module is imported by its path: it must not use relative imports.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, cast

import numpy as np

from evotune.errors import UsageError, nearest
from evotune.kernel import Array, Backend, Problem, Tolerance
from evotune.space import Config, ConfigSpace, Value

# Those of the shipped kernels that add many products; see kernels/matmul.py.
TOLERANCE: Mapping[str, Tolerance] = {
    "float64": Tolerance(rtol=1e-9, atol=1e-9),
    "float32": Tolerance(rtol=1e-4, atol=1e-4),
    "float16": Tolerance(rtol=1e-2, atol=1e-2),
    "bfloat16": Tolerance(rtol=2e-2, atol=2e-2),
    **dict.fromkeys(["bool", "uint8", "int8", "int16", "int32", "int64"], Tolerance(rtol=0.0, atol=0.0)),
}
EXAMPLE = """\
    {name}_output = "out"
    {name}_grid = lambda meta: (triton.cdiv(meta["n"], meta["BLOCK"]),)
    def {name}_inputs(problem, rng):
        x = rng.standard_normal(1 << 24).astype("float32")
        return {{"x": x, "out": np.empty_like(x), "n": x.size}}"""


class _Absent:
    """Stands for an option that some configurations set and this one does not."""

    def __repr__(self) -> str:
        return "not set"


ABSENT = _Absent()


@dataclass(frozen=True)
class Tunables:
    """What configurations of Triton choose between, as a space.

    ``fixed`` has what is the same in all of them. Values that a space cannot have (a dtype, None) are
    there as text, and ``meaning`` has what they are.
    """

    space: ConfigSpace
    fixed: Mapping[str, Any]
    meaning: Mapping[tuple[str, Value], Any]

    @classmethod
    def of(cls, configs: Sequence[Any], *, only_listed: bool = False) -> Tunables:
        """All combinations of the values that occur, or only those that do; the first is the default.

        Raises:
            UsageError: There is nothing to choose between.
        """
        given = [config.all_kwargs() for config in configs]
        names = list(dict.fromkeys(name for options in given for name in options))
        columns = {name: [options.get(name, ABSENT) for options in given] for name in names}
        encoded = {name: [encode(v) for v in column] for name, column in columns.items()}
        tuned = [name for name in names if len(set(map(repr, encoded[name]))) > 1]
        if not tuned:
            raise UsageError("there is one configuration only; give at least two to choose between")
        meaning = {(n, e): v for n in tuned for e, v in zip(encoded[n], columns[n], strict=True) if e is not v}
        values = {n: _in_order(encoded[n]) for n in tuned}
        rows = [dict(zip(tuned, row, strict=True)) for row in zip(*(encoded[n] for n in tuned), strict=True)]
        space = ConfigSpace.from_dict(values, [_listed(rows)] if only_listed else [], default=rows[0])
        return cls(space, {n: columns[n][0] for n in names if n not in tuned}, meaning)

    def options(self, config: Config) -> dict[str, Any]:
        """What a launch is given for a configuration."""
        chosen = {name: self.meaning.get((name, value), value) for name, value in config.items()}
        return {n: v for n, v in {**self.fixed, **chosen}.items() if v is not ABSENT}


def encode(value: object) -> Value:
    """A value as a space can have it: itself, or text that stands for it."""
    return value if isinstance(value, (bool, int, float, str)) else repr(value)


def _in_order(values: Sequence[Value]) -> list[Value]:
    """Each value once; numbers rising, others as they come."""
    different = list({(type(v), v): v for v in values}.values())
    is_ordered = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in different)
    return sorted(different, key=float) if is_ordered else different


def _listed(rows: Sequence[Config]) -> str:
    """A constraint that holds for these configurations alone."""
    return " or ".join("(" + " and ".join(f"{n} == {v!r}" for n, v in row.items()) + ")" for row in rows)


def define(module: ModuleType, name: str, file: str) -> DecoratedKernel:
    """The kernel of that name with what is said of it beside it, checked.

    Raises:
        UsageError: There is no such kernel, it has nothing to choose between, or something that must
            be said of it is missing.
    """
    found = _find(module, name, file)
    names = vars(module)
    missing = [part for part in ("inputs", "output", "grid") if f"{name}_{part}" not in names]
    if missing:
        lacks = [f"{name}_{part}" for part in missing]
        raise UsageError(
            f"{file} does not say how {name} is called: it lacks {lacks} (see docs of evotune.decorated), "
            f"such as:\n{EXAMPLE.format(name=name)}"
        )
    kernel = DecoratedKernel(
        name=name,
        file=file,
        triton=found,
        tunables=_tunables(found, names.get(f"{name}_space"), name, file),
        given={part: names.get(f"{name}_{part}") for part in GIVEN},
    )
    if problems := kernel.problems():
        raise UsageError(f"{file}: " + "; ".join(problems))
    return kernel


GIVEN = ("inputs", "output", "grid", "shapes", "reference", "tolerance", "flops")


def is_kernel(value: object) -> bool:
    """Whether this is a kernel of Triton, decorated or not."""
    return all(hasattr(value, part) for part in ("fn", "arg_names", "run", "warmup"))


def _find(module: ModuleType, name: str, file: str) -> Any:
    known = kernels(module)
    if not hasattr(module, name):
        raise UsageError(f"{file} has no {name!r}{nearest(name, known)}; its Triton kernels are {known}")
    found = getattr(module, name)
    if name not in known:
        kind = type(found).__name__
        raise UsageError(f"{name} of {file} is a {kind}, not a Triton kernel; its Triton kernels are {known}")
    return found


def kernels(module: ModuleType) -> list[str]:
    """Names of the Triton kernels of a module."""
    return [name for name, value in vars(module).items() if is_kernel(value)]


def _tunables(found: Any, given: Any, name: str, file: str) -> Tunables:
    """What there is to choose: what the file says, else what the decorator was given."""
    space = given if given is not None else getattr(found, "space", None)
    if isinstance(space, ConfigSpace):
        return Tunables(space, {}, {})
    if isinstance(space, Mapping):
        return Tunables(ConfigSpace.from_dict(cast(Mapping[str, Sequence[Value]], space)), {}, {})
    if space is not None:
        raise UsageError(f"{file}: {name}_space is {space!r}; give a dict of name to values, or a ConfigSpace")
    inner = found
    while not hasattr(inner, "configs") and is_kernel(inner.fn):
        inner = inner.fn
    if not hasattr(inner, "configs"):
        raise UsageError(
            f"{name} of {file} is not decorated with triton.autotune; decorate it, or say what to choose from: "
            f'{name}_space = {{"BLOCK": [128, 256, 512], "num_warps": [2, 4, 8]}}'
        )
    if inner is not found:
        raise UsageError(f"{name} of {file}: put the autotune decorator above all others")
    try:
        return Tunables.of(found.configs)
    except UsageError as error:
        raise UsageError(f"{name} of {file}: {error}; or give more in {name}_space") from None


@dataclass(frozen=True)
class DecoratedKernel:
    """Satisfies :class:`~evotune.kernel.Kernel`. ``given`` is what the file says, None where it does not."""

    name: str
    file: str
    triton: Any
    tunables: Tunables
    given: Mapping[str, Any]
    _layouts: dict[str, Layout] = field(default_factory=dict[str, "Layout"], repr=False)

    def problems(self) -> list[str]:
        """What is wrong with what the file says."""
        out = [
            f"{self.name}_{part} is {self.given[part]!r}, not a function"
            for part in ("inputs", "reference", "flops")
            if self.given[part] is not None and not callable(self.given[part])
        ]
        taken: list[str] = self.triton.arg_names
        if not self.outputs or set(self.outputs) - set(taken):
            out.append(
                f"{self.name}_output is {self.given['output']!r}, not the name of an argument, or of several; "
                f"they are {taken}"
            )
        if restored := getattr(self.triton, "restore_value", None):
            out.append(
                f"{self.name} changes {restored}, which restore_value is to put right, and cannot be checked; "
                "@evotune.triton.autotune tunes it where it is called"
            )
        if len(self._hooks()) > 1:
            out.append(f"the configurations of {self.name} have different pre_hooks; give all the same one")
        shapes = self.given["shapes"]
        if shapes is not None and not (shapes and isinstance(shapes, Mapping)):
            out.append(f"{self.name}_shapes is {shapes!r}, not a dictionary with an entry")
        return out

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the arrays that the kernel writes; none if the file says something else."""
        given = self.given["output"]
        names = cast(Sequence[Any], given) if isinstance(given, (tuple, list)) else [given]
        return tuple(names) if all(isinstance(n, str) for n in names) else ()

    @property
    def shapes(self) -> Mapping[str, Problem]:
        return self.given["shapes"] or {"default": {}}

    @property
    def backends(self) -> Mapping[str, Backend]:
        return {"cuda": Backend(lambda _: self.tunables.space, self._build, default_shape=next(iter(self.shapes)))}

    @property
    def tolerance(self) -> Mapping[str, Tolerance]:
        given = self.given["tolerance"]
        return TOLERANCE if given is None else dict.fromkeys(TOLERANCE, Tolerance(*given))

    def inputs(self, problem: Problem, rng: np.random.Generator) -> tuple[Array, ...]:
        """The arrays that the kernel reads."""
        arguments = self._draw(problem, rng)
        return tuple(arguments[name] for name in self._layout(problem).read)

    def reference(self, problem: Problem, *inputs: Array) -> tuple[Array, ...]:
        """The right results; what the default configuration computes, if the file has no reference.

        Where nothing can be run, they have the right shapes and no values: those who only compile ask for
        no more, and nothing agrees with them.
        """
        layout, device = self._layout(problem), _device()
        if device is None:
            return tuple(np.full(s, np.nan if d.kind == "f" else 0, d) for s, d in layout.written.values())
        if self.given["reference"] is not None:
            arguments = dict(zip(layout.read, inputs, strict=True))
            found: Any = self.given["reference"](**arguments, **layout.scalars)
            results = tuple(map(np.asarray, cast(tuple[Any, ...], found if isinstance(found, tuple) else (found,))))
            if len(results) != len(self.outputs):
                raise UsageError(
                    f"{self.name}_reference() gives {len(results)} of the outputs {self.outputs}; "
                    "return a tuple of all"
                )
            return results
        empty = [np.zeros(shape, dtype) for shape, dtype in layout.written.values()]
        tensors = [_to_tensor(a, device) for a in (*inputs, *empty)]
        self._build(self.tunables.space.default, problem)(*tensors)
        written = zip(tensors[len(inputs) :], layout.written.values(), strict=True)
        return tuple(_to_array(tensor, dtype) for tensor, (_, dtype) in written)

    def flops(self, problem: Problem) -> float:
        """Operations of a problem; 0 if the file does not say."""
        return float(self.given["flops"](problem)) if self.given["flops"] else 0.0

    def bytes_moved(self, problem: Problem) -> float:
        """Each array once."""
        return float(self._layout(problem).array_bytes)

    def _build(self, config: Config, problem: Problem) -> Callable[..., None]:
        """A launcher of the arrays that are read, in order, and then those that are written."""
        layout, options, hooks = self._layout(problem), self.tunables.options(config), self._hooks()
        reset = getattr(self.triton, "pre_hook", None)
        kernel = self.triton.fn if hasattr(self.triton, "configs") else self.triton

        def launch(*tensors: Any) -> None:
            arrays = dict(zip([*layout.read, *layout.written], tensors, strict=True))
            everything = {**arrays, **layout.scalars, **options}
            for hook in hooks:
                hook(everything)
            if reset is not None:
                reset(everything, reset_only=True)
            kernel[self.given["grid"]](**everything)

        return launch

    def _hooks(self) -> list[Callable[[dict[str, Any]], Any]]:
        """Different hooks of the configurations."""
        configs = getattr(self.triton, "configs", ())
        return list(dict.fromkeys(c.pre_hook for c in configs if c.pre_hook is not None))

    def _layout(self, problem: Problem) -> Layout:
        key = repr(sorted(problem.items()))
        if key not in self._layouts:
            arguments = self._draw(problem, np.random.default_rng(0))
            arrays: dict[str, Array] = {n: a for n, a in arguments.items() if isinstance(a, np.ndarray)}
            self._layouts[key] = Layout(
                tuple(name for name in arrays if name not in self.outputs),
                {name: a for name, a in arguments.items() if name not in arrays},
                {name: (arrays[name].shape, arrays[name].dtype) for name in self.outputs},
                sum(a.nbytes for a in arrays.values()),
            )
        return self._layouts[key]

    def _draw(self, problem: Problem, rng: np.random.Generator) -> dict[str, Any]:
        """All arguments but the tuned ones.

        Raises:
            UsageError: They are not what the kernel takes.
        """
        name, known = self.name, self.triton.arg_names
        drawn: Any = self.given["inputs"](problem, rng)
        if not isinstance(drawn, Mapping):
            raise UsageError(f"{name}_inputs() returned a {type(drawn).__name__}; return a dict of its arguments")
        arguments = dict(cast(Mapping[str, Any], drawn))
        if unknown := [f"{n!r}{nearest(n, known)}" for n in arguments if n not in known]:
            raise UsageError(f"{name}_inputs() returned {', '.join(unknown)}; {name} takes {known}")
        if tuned := [n for n in arguments if n in self.tunables.space.names or n in self.tunables.fixed]:
            raise UsageError(f"{name}_inputs() returned {tuned}, which the configurations choose; leave them out")
        for output in self.outputs:
            if not isinstance(found := arguments.get(output), np.ndarray):
                raise UsageError(
                    f"{name}_inputs() returned {found!r} for {output!r}, an output; it must be an array"
                )
        return arguments


@dataclass(frozen=True)
class Layout:
    """What is the same in all draws: names of the arrays that are read, scalars, and shapes and dtypes of the
    outputs, by name."""

    read: tuple[str, ...]
    scalars: Mapping[str, Any]
    written: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
    array_bytes: int


def _device() -> str | None:
    """Where kernels can be run in this process; None if it has not begun to use a device."""
    if import_module("triton").knobs.runtime.interpret:
        return "cpu"
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_initialized() else None


def _to_tensor(array: Array, device: str) -> Any:
    """A copy in a device's memory. As bytes, because torch does not know NumPy's bfloat16."""
    torch: Any = import_module("torch")
    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy())
    return flat.to(device).view(getattr(torch, str(array.dtype))).reshape(array.shape)


def _to_array(tensor: Any, dtype: np.dtype[Any]) -> Array:
    flat = tensor.reshape(-1).view(import_module("torch").uint8).cpu().numpy()
    return flat.view(dtype).reshape(tuple(tensor.shape))
