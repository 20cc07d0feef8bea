"""Replays many searches on recorded spaces, and says how they compare.

:func:`compare` makes the runs, :func:`score` the table, :func:`write_page` a page and
:func:`write_plot` a picture of it.
"""

from evotune.compare.best import Best, best_found, format_best
from evotune.compare.comparison import (
    Comparison,
    compare,
    default_methods,
    default_seeds,
    partial_of,
)
from evotune.compare.page import write_page
from evotune.compare.parallel import Progress
from evotune.compare.plot import check_plot, write_plot
from evotune.compare.runs import SearchRun, open_space
from evotune.compare.score import MethodScore, format_table, score
from evotune.files import check_writable

__all__ = [
    "Best",
    "Comparison",
    "MethodScore",
    "Progress",
    "SearchRun",
    "best_found",
    "check_plot",
    "check_writable",
    "compare",
    "default_methods",
    "default_seeds",
    "format_best",
    "format_table",
    "open_space",
    "partial_of",
    "score",
    "write_page",
    "write_plot",
]
