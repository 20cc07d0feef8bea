"""What ``evotune show`` says of runs and trials: lines for a person, objects for a script.

Lines are as wide as the terminal, or 80 columns where there is none. Values wrap between words; a number, a name,
a command or a line of a program is never cut.
"""

from evotune.showing.objects import run_json, runs_json, trial_json, trial_of
from evotune.showing.text import JOURNAL, run_text, runs_text, trial_text

__all__ = ["JOURNAL", "run_json", "run_text", "runs_json", "runs_text", "trial_json", "trial_of", "trial_text"]
