"""Replays many searches on recorded spaces, and says how they compare.

:func:`compare` makes the runs, :func:`score` the table, :func:`write_page` a page and
:func:`write_plot` a picture of it.
"""

from evotune.compare.comparison import Comparison, compare
from evotune.compare.page import write_page
from evotune.compare.parallel import Progress
from evotune.compare.plot import write_plot
from evotune.compare.runs import SearchRun, open_space
from evotune.compare.score import MethodScore, format_table, score

__all__ = [
    "Comparison",
    "MethodScore",
    "Progress",
    "SearchRun",
    "compare",
    "format_table",
    "open_space",
    "score",
    "write_page",
    "write_plot",
]
