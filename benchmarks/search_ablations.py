"""What each ingredient of the search is worth: the same search with one thing changed, on recorded spaces.

python benchmarks/search_ablations.py RECORDING... --seeds 10 --out benchmarks/results/search_ablations.md
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from evotune import session, settings
from evotune.compare import MethodScore, Progress, compare, score
from evotune.proposers import Searcher
from evotune.proposers.base import Feedback
from evotune.replay import Recording
from evotune.space import Array, Config, ConfigSpace
from evotune.surrogate import Surrogate, acquisition, features, kernel, model, view
from evotune.trial import Candidate

REPLAYED = ("conv_A100", "conv_A4000", "conv_W7800", "convold_3090", "convold_Titan")
REPLAYED += ("dedisp_A100", "dedisp_A4000", "dedisp_MI250X", "gemm_3090", "pnpoly_3090")
TREES = 100


class Forest(Surrogate):
    """A random forest in the place of the Gaussian processes: the mean and spread of its trees, the
    same opening, expected improvement and pool. It is fitted anew to 5 % more trials."""

    def __init__(self, space: ConfigSpace, *, seed: int, **_: Any) -> None:
        super().__init__(space, seed=seed)
        self._configurations, self._forest_seed = space, seed
        self._encoding = features.Encoding(space, space.keys)
        self._x = self._encoding.features(space.keys)
        self._losses: dict[int, float | None] = {}
        self._fitted = 0
        self._utility: Array = np.zeros(len(self._x))

    is_trusted = property(lambda self: self._is_fitted())
    is_set_aside = property(lambda self: False)
    agreement = property(lambda self: None)
    best_score = property(lambda self: float(self._fit()[self._unseen()].max()))

    def observe(self, config: Config, loss: float | None, **_: Any) -> None:
        super().observe(config, loss)
        self._losses[self._configurations.row(config)] = loss

    def suggest(self, n: int, pending: Sequence[Config] = ()) -> list[Config]:
        utility = np.where(self._unseen(), self._fit(), -np.inf)
        return [self._configurations.config(int(i)) for i in np.argsort(-utility, kind="stable")[:n]]

    def score(self, configs: Sequence[Config]) -> Array:
        return self._fit()[[self._configurations.row(c) for c in configs]]

    def _is_fitted(self) -> bool:
        return sum(loss is not None for loss in self._losses.values()) >= model.FIRST_FIT

    def _unseen(self) -> Array:
        unseen = np.ones(len(self._x), dtype=bool)
        unseen[list(self._losses)] = False
        return unseen

    def _fit(self) -> Array:
        if len(self._losses) < max(self._fitted + 1, 1.05 * self._fitted):
            return self._utility
        from sklearn.ensemble import RandomForestRegressor

        self._fitted = len(self._losses)
        known = {row: loss for row, loss in self._losses.items() if loss is not None}
        warp = view.Warp.of(np.array(list(known.values())))
        # A failed trial is as bad as the worst that ran: a forest has no other way to be told.
        worst = max(known.values())
        y = warp(np.array([worst if loss is None else loss for loss in self._losses.values()]))
        forest = RandomForestRegressor(TREES, random_state=self._forest_seed).fit(self._x[list(self._losses)], y)
        votes = np.array([tree.predict(self._x) for tree in forest.estimators_])
        std = np.maximum(votes.std(0), view.LEAST_STD)
        self._utility = acquisition.log_expected_improvement(votes.mean(0), std, float(y.min()))
        return self._utility


class Changed:
    """A search of which one thing is other than usual, while it is asked and told."""

    def __init__(self, make: Callable[[], Searcher], patches: Callable[[], list[Any]]) -> None:
        self._patches = patches
        with self._changed():
            self._search = make()

    def ask(self, pending: Sequence[Config]) -> Candidate | None:
        with self._changed():
            return self._search.ask(pending)

    def tell(self, feedback: Sequence[Feedback]) -> None:
        with self._changed():
            self._search.tell(feedback)

    def restate(self, feedback: Sequence[Feedback]) -> None:
        self._search.restate(feedback)

    def _changed(self) -> ExitStack:
        stack = ExitStack()
        for change in self._patches():
            stack.enter_context(change)
        return stack


def variant(patches: Callable[[], list[Any]] = list, **flags: Any) -> Callable[[Recording, int, int], Searcher]:
    def make(recording: Recording, seed: int, budget: int) -> Searcher:
        base = {"run.seed": seed, "run.max_evaluations": budget, "llm.provider": "none"}
        named = {f"search.{name}": value for name, value in flags.items()}
        chosen = settings.load(None, {**base, **named}, {})
        return Changed(lambda: session.searcher(recording.space, chosen), patches)

    return make


def _anywhere(x: Array, n: int, placed: Array) -> list[int]:
    return list(range(min(n, len(x))))


_additive, _local = kernel.Prior.additive, kernel.Prior.local
as_shipped = variant()
upper_bound = variant(acquisition="ucb")
probability = variant(acquisition="pi")
matern32 = variant(kernel="matern32")
rbf = variant(kernel="rbf")
per_second = variant(cost_aware=True)
no_screen = variant(screen=False)
four_points = variant(start_points=4)
sixteen_points = variant(start_points=16)
random_opening = variant(lambda: [patch.object(model, "far_apart", _anywhere)])
corner_opening = variant(lambda: [patch.object(model, "ROWS_PER_POINT", 400)])
only_local = variant(lambda: [patch.object(kernel.Prior, "additive", _local)])
only_additive = variant(lambda: [patch.object(kernel.Prior, "local", lambda d, **_: _additive(d))])
no_alignment = variant(lambda: [patch.object(features, "alignment", np.zeros_like)])
no_products = variant(lambda: [patch.object(features, "_of_products", lambda space: [])])
no_drawing_in = variant(lambda: [patch.object(view.Warp, "__call__", lambda w, x: (x - w.centre) / w.width)])
no_focus = variant(lambda: [patch.object(view, "FOCUS", 10**9)])
no_feasibility = variant(lambda: [patch.object(view.View, "_weigh", lambda v, utility, *_: utility)])
forest = variant(lambda: [patch.object(session, "Surrogate", Forest)])

VARIANTS: Mapping[str, str] = {
    "as_shipped": "as shipped",
    "upper_bound": "upper confidence bound instead of expected improvement",
    "probability": "probability of improvement",
    "per_second": "expected improvement per second",
    "matern32": "Matern 3/2 kernel",
    "rbf": "RBF kernel",
    "only_local": "both views with the product kernel",
    "only_additive": "both views with the additive prior",
    "no_alignment": "no alignment features",
    "no_products": "no products of constraints as features",
    "no_drawing_in": "losses above the mean not drawn in",
    "no_feasibility": "chance of running not considered",
    "no_focus": "the whole pool kept up to date",
    "no_screen": "no screen of what other origins propose",
    "four_points": "opening of 4 points",
    "sixteen_points": "opening of 16 points",
    "random_opening": "opening at random",
    "corner_opening": "opening far apart among 3200 rows",
    "forest": "random forest instead of Gaussian processes",
}

NOTE = """\
# What each ingredient of the search is worth

The default search with one thing changed, replayed on {spaces} recorded spaces, {budget} evaluations, {seeds} seeds
a run. The error of a score is about {error:.3f}: smaller differences mean nothing. Python {python}, numpy {numpy};
the last column is CPU time on a shared machine, good for comparing rows only.

    {command}

| change | score | worst space | by time | r@10 | r@25 | r@50 | r@100 | within 5 % | CPU ms per evaluation |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", default=REPLAYED)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    names = [f"search_ablations:{name}" for name in a.variants]
    found = compare(a.spaces, names, range(a.seeds), a.budget, jobs=a.jobs, out=a.json, on_progress=_show)
    scores = score(found.runs, found.recordings, found.budget)
    text = NOTE.format(
        spaces=len(found.recordings),
        budget=a.budget,
        seeds=a.seeds,
        command=shlex.join(["python", *sys.argv]),
        # Scores of one space differ by 0.2 between seeds.
        error=0.2 / np.sqrt(a.seeds * len(found.recordings)),
        python=platform.python_version(),
        numpy=version("numpy"),
        rows="\n".join(_row(s) for s in scores),
    )
    a.out.write_text(text, encoding="utf-8")
    print(text)


def _row(found: MethodScore) -> str:
    ratios = " | ".join(f"{found.ratios[k]:.3f}" if k in found.ratios else "" for k in (10, 25, 50, 100))
    what = VARIANTS[found.method.partition(":")[2]]
    return (
        f"| {what} | {found.score:.3f} | {found.worst:.3f} | {found.time_score:.3f} | {ratios} "
        f"| {found.within_5pct:.0%} | {found.overhead_ms:.1f} |"
    )


def _show(progress: Progress) -> None:
    print(f"{progress.done}/{progress.total} {progress.run.method} on {progress.run.space}", flush=True)


if __name__ == "__main__":
    main()
