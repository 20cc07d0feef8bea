"""One program for several shapes of a kernel: a dispatch rule instead of a table.

``evotune run KERNEL --shapes A,B,C`` looks for one ``get_kernel_config(problem)``. A *pair* is a
configuration at a shape; it is measured once and remembered, and a program is what it says for each
shape. The score of a program is the geometric mean, over the shapes, of best known / its own latency.
As the best known improves, all scores shrink by one factor: they are restated, and their order stays.
The search therefore minimises the sum of log latencies, and a price for each branch, without which a
table of every shape's best would always win, fitted to the noise of its measurements.

- :mod:`~evotune.shapes.rule`: the cheapest rule over the sizes of problems, and its text.
- :mod:`~evotune.shapes.table`: what was measured, and the best programs that it supports.
- :mod:`~evotune.shapes.search`: what to measure next; a surrogate for each shape, one gain for programs.
- :mod:`~evotune.shapes.model`: programs that a language model writes, run once for each problem.
- :mod:`~evotune.shapes.evaluator`, :mod:`~evotune.shapes.tuner`: the line of a single run, over pairs.

Whatever a program computed, what is kept of it is its configuration for each shape, written again as a
rule. Nothing that a model wrote reaches another prompt, or the file that is exported.
"""

from evotune.shapes.session import describe, find_shapes, known_as, tune_shapes
from evotune.shapes.tuner import ShapesResult

__all__ = ["ShapesResult", "describe", "find_shapes", "known_as", "tune_shapes"]
