"""Where candidates come from, and who gets to propose the next one.

:class:`~evotune.proposers.portfolio.Portfolio` is what a tuner talks to. It shares the budget among
the origins by what each has earned, and shows every proposal to the surrogate before any is run.
"""

from evotune.proposers.base import Feedback, Proposer, Searcher

__all__ = ["Feedback", "Proposer", "Searcher"]
