"""Results of configurations held against those of the default one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from evotune.errors import Rejected, UsageError
from evotune.gpu.inputs import compare
from evotune.kernel import Tolerance

Run = Callable[[Callable[[], None]], None]
"""Launches a configuration once, and calls what it is given before a hook puts arguments right."""


class Results:
    """Compares what configurations write into some arguments.

    Before each launch the arguments are filled with what cannot be right, so that a value that is not
    written is not mistaken for one that is. Those in ``restored`` are read too, and left as they are.

    Args:
        tolerances: By name of the argument.
        arguments: The tensors of this launch, by name.
        restored: Names of arguments that hooks restore after each launch.
    """

    def __init__(
        self, tolerances: Mapping[str, Tolerance], arguments: Mapping[str, Any], restored: Collection[str]
    ) -> None:
        self._tolerances = tolerances
        self._tensors = {name: arguments[name] for name in tolerances}
        self._kept = {name: t.clone() for name, t in self._tensors.items() if name not in restored}
        self._expected: dict[str, Any] = {}

    def expect(self, run: Run) -> None:
        """Take the results of the default configuration for right.

        Raises:
            UsageError: It writes nothing into an argument, or nothing that can be compared.
        """
        self._poison()
        poisoned = {name: self._tensors[name].clone() for name in self._kept}
        self._expected = self._after(run)
        for name, found in self._expected.items():
            if name in poisoned and bool(_is_same(found, poisoned[name]).all()):
                raise UsageError(
                    f"check: the default configuration writes nothing into {name!r}, or NaN everywhere; "
                    "if the kernel adds to it, name it in reset_to_zero or restore_value"
                )

    def verify(self, run: Run) -> None:
        """Raise :class:`Rejected` at stage ``incorrect`` where other results are expected."""
        self._poison()
        for name, found in self._after(run).items():
            expected = self._expected[name]
            same = _is_same(found, expected)  # NaN and infinities are right where the default has them too
            wrong = compare(found.masked_fill(same, 0), expected.masked_fill(same, 0), self._tolerances[name])
            if wrong:
                raise Rejected("incorrect", f"{name}: {wrong}")

    def put_back(self) -> None:
        """Give the arguments the values that they had, as far as the device still does anything."""
        with suppress(RuntimeError):
            for name, values in self._kept.items():
                self._tensors[name].copy_(values)

    def _after(self, run: Run) -> dict[str, Any]:
        found: dict[str, Any] = {}
        run(lambda: found.update({name: t.clone() for name, t in self._tensors.items()}))
        return found

    def _poison(self) -> None:
        for name, values in self._kept.items():
            if values.dtype.is_floating_point:
                self._tensors[name].fill_(float("nan"))
            else:
                self._tensors[name].copy_(~values)


def _is_same(a: Any, b: Any) -> Any:
    torch: Any = import_module("torch")
    return (a == b) | (torch.isnan(a) & torch.isnan(b))
