"""How far apart two problems are."""

from __future__ import annotations

import math


# Its text is part of what `evotune export --format dispatch` writes: it needs nothing but `math`.
def distance(
    tuned: dict[str, bool | int | float | str], problem: dict[str, bool | int | float | str]
) -> tuple[int, float]:
    """How many values differ that are no numbers, then how far the sizes are by the log of their ratio.

    From 1000 it is as far to 2000 as to 500.
    """
    differ, squares = 0, 0.0
    for name, value in tuned.items():
        other = problem[name]
        if isinstance(value, (bool, str)):
            differ += other != value
        else:
            squares += (math.log1p(abs(float(other))) - math.log1p(abs(value))) ** 2
    return differ, squares
