"""Measures pairs: each shape has an evaluator of its own behind one face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from evotune.evaluator import Device, Evaluator
from evotune.shapes.table import split
from evotune.space import Config
from evotune.trial import Fidelity, Measurement, Provenance, Static


class ShapesEvaluator:
    """Hands each pair to the evaluator of its shape; they are all on one device, and stay open together.

    Args:
        evaluators: By the name of the shape.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        self._evaluators = dict(evaluators)
        first = next(iter(self._evaluators.values()))
        self.fidelities: Sequence[Fidelity] = first.fidelities
        self.device: Device = first.device
        self.provenance: Provenance = first.provenance

    def compile(self, config: Config) -> Static:
        shape, rest = split(config)
        return self._evaluators[shape].compile(rest)

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        shape, rest = split(config)
        return self._evaluators[shape].measure(rest, fidelity)

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        """Pairs of one shape; ratios between shapes mean nothing."""
        pairs = [split(c) for c in configs]
        (shape,) = {name for name, _ in pairs}
        return self._evaluators[shape].interleave([rest for _, rest in pairs], fidelity)

    def close(self) -> None:
        with ExitStack() as stack:
            for evaluator in self._evaluators.values():
                stack.callback(evaluator.close)
