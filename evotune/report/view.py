"""All that the page of a run says, computed before any of it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evotune.history import Note, RunHistory
from evotune.report.ancestry import Ancestor, ancestry
from evotune.report.belief import Belief, belief
from evotune.report.cost import Cost, Origin, costs, origins
from evotune.report.course import Improvement, Stop, course, improvements
from evotune.report.data import to_json
from evotune.report.failures import Failures, failures
from evotune.report.funnel import Step, funnel
from evotune.report.kept import KINDS, space_of
from evotune.report.roofline import Roof, roof
from evotune.report.summary import Summary, summary
from evotune.space import ConfigSpace


@dataclass(frozen=True)
class View:
    """One run as the page shows it. ``earlier`` is a belief to show instead of making one anew."""

    history: RunHistory
    earlier: Belief | None = None

    @cached_property
    def stops(self) -> list[Stop]:
        return course(self.history)

    @cached_property
    def space(self) -> ConfigSpace | None:
        return space_of(self.history)

    @cached_property
    def belief(self) -> Belief | None:
        if self.earlier is not None or self.space is None:
            return self.earlier
        return belief(self.history, self.space)

    @cached_property
    def summary(self) -> Summary:
        return summary(self.history)

    @cached_property
    def improvements(self) -> list[Improvement]:
        return improvements(self.stops)

    @property
    def funnel(self) -> list[Step]:
        return funnel(self.history, self.stops)

    @property
    def failures(self) -> list[Failures]:
        return failures(self.history)

    @property
    def ancestry(self) -> list[Ancestor]:
        return ancestry(self.history)

    @property
    def roof(self) -> Roof | None:
        best = self.summary.best
        return roof(self.history, best["latency_ms"] if best else None, self.summary.default_ms)

    @property
    def costs(self) -> list[Cost]:
        return costs(self.history)

    @property
    def origins(self) -> list[Origin]:
        return origins(self.history, self.stops)

    @property
    def versions(self) -> Mapping[str, str]:
        return self.history.description.get("versions", {})

    @property
    def search(self) -> str:
        """How the run searched, and with which seed."""
        described = self.history.description
        return f"{described.get('search', 'not recorded')}, seed {described.get('seed', 'not recorded')}"

    @property
    def notes(self) -> Sequence[Note]:
        """What a person was told during the run."""
        return [note for note in self.history.notes if note.kind not in KINDS]

    @property
    def shapes(self) -> Sequence[Mapping[str, Any]]:
        """What was found at each shape of a run over several: of its result, or the best so far."""
        if self.history.result is not None:
            return self.history.result.get("shapes", ())
        return [
            {
                "shape": shape,
                "problem": problem,
                "config": dict(trial.config) if (trial := self.history.incumbents.get(shape)) else None,
                "latency_ms": trial.latency_ms if trial else None,
            }
            for shape, problem in self.history.shapes.items()
        ]

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the scripts of the page know."""
        return to_json(self.history, self.stops, self.space, self.belief)
