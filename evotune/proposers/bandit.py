"""Shares the budget among the origins by what each has earned."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping
from random import Random

from evotune.trial import Origin

# What is believed of an origin before it has proposed anything: earnings and turns. The surrogate's
# favourites start ahead, because on recorded spaces nothing else has come near them.
PRIOR: Mapping[Origin, tuple[float, float]] = {
    "surrogate": (6.0, 7.0),
    "llm": (1.0, 2.0),
    "mock": (1.0, 2.0),
}
PRIOR_OTHER = (0.5, 2.0)
FORGET = 0.95  # of its earnings, kept at each turn of an origin: late in a run other origins win
SHARPNESS = 6.0
FLOOR = 0.01
# A share of at most this is the floor and next to nothing earned.
AT_FLOOR = 1.5 * FLOOR


class Bandit:
    """Expected earnings per turn of each origin, and a draw in proportion to them.

    A turn earns 1 for a new best, else the cube of the share of earlier results that it beats:
    a good result nearly always comes from near a good one, and mediocre ones teach nothing.
    """

    def __init__(self, origins: Iterable[Origin]) -> None:
        prior: dict[Origin, tuple[float, float]] = {o: PRIOR.get(o, PRIOR_OTHER) for o in origins}
        self._earned: dict[Origin, float] = {o: earned for o, (earned, _) in prior.items()}
        self._turns: dict[Origin, float] = {o: turns for o, (_, turns) in prior.items()}
        self._losses: list[float] = []
        self._at_floor: dict[Origin, int] = dict.fromkeys(prior, 0)

    def tell(self, origin: Origin, loss: float | None) -> None:
        """Credit an origin with the loss of its trial, None if that failed."""
        earned = 0.0
        if loss is not None:
            beaten = len(self._losses) - bisect_right(self._losses, loss)
            earned = (beaten / len(self._losses)) ** 3 if self._losses else 0.0
            insort(self._losses, loss)
        if origin in self._turns:
            self._earned[origin] = FORGET * self._earned[origin] + earned
            self._turns[origin] = FORGET * self._turns[origin] + 1.0
        for each, share in self.shares().items():
            self._at_floor[each] = self._at_floor[each] + 1 if share <= AT_FLOOR else 0

    def expected(self, origin: Origin) -> float:
        """What a turn of an origin is expected to earn, in [0, 1]."""
        return self._earned[origin] / self._turns[origin]

    def at_floor(self, origin: Origin) -> int:
        """Turns of whomever, since an origin last had more than the floor."""
        return self._at_floor[origin]

    def shares(self) -> dict[Origin, float]:
        """Each origin's share of the coming turns; they sum to 1 and none is below the floor."""
        weight: dict[Origin, float] = {}
        for origin in self._turns:
            weight[origin] = math.pow(self.expected(origin), SHARPNESS)
        total = sum(weight.values()) or 1.0
        to_share = 1.0 - FLOOR * len(weight)
        return {o: FLOOR + to_share * w / total for o, w in weight.items()}

    def order(self, rng: Random) -> list[Origin]:
        """All origins in the order in which they are asked, drawn by their shares."""
        left = self.shares()
        out: list[Origin] = []
        while left:
            chosen = rng.choices(list(left), weights=list(left.values()))[0]
            out.append(chosen)
            del left[chosen]
        return out
