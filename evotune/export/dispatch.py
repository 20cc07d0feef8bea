"""One Python function that gives a configuration for a problem, and needs no evotune."""

from __future__ import annotations

from inspect import getsource

from evotune.distance import distance
from evotune.export.found import Export, Found, Winner, items

# The text of the function; what it is for comes above it, and :func:`distance` too.
_NEAREST = '''

def get_kernel_config(problem):
    """The configuration of the nearest problem that was tuned for."""
    return dict(min(TUNED, key=lambda entry: distance(entry[0], problem))[1])
'''


def why_not(found: Found) -> str | None:
    """Why no function can choose between what was found."""
    if found.program is not None:
        return None
    if not found.winners[0].problem:
        return "a recording does not tell the sizes of its problem"
    if len(found.winners) < 2:
        return "it is of one shape; give several runs, or tune with --shapes"
    names = [set(w.problem) for w in found.winners]
    if any(n != names[0] for n in names):
        return "their problems have different sizes to tell them by"
    return None


def write(found: Found) -> Export:
    """The program of a run over several shapes, or a table of several runs and the nearest entry of it."""
    if found.program is not None:
        lines = [line for w in found.winners for line in w.comments()]
        return Export("".join(f"# {line}\n" for line in lines) + found.program, "kernel_config.py")
    winners, notes = _one_each(found.winners)
    lines = ["import math", "", "TUNED = ["]
    for winner in winners:
        lines += [f"    # {line}" for line in winner.comments()]
        lines.append(f"    ({{{items(winner.problem)}}}, {{{items(winner.config)}}}),")
    text = "\n".join([*lines, "]", "", "", getsource(distance)])
    return Export(text + _NEAREST, "kernel_config.py", notes)


def _one_each(winners: tuple[Winner, ...]) -> tuple[list[Winner], tuple[str, ...]]:
    """The fastest for each problem, in the order given; and which others were left out."""
    fastest: dict[str, Winner] = {}
    for winner in winners:
        key = repr(sorted(winner.problem.items()))
        if key not in fastest or winner.latency_ms < fastest[key].latency_ms:
            fastest[key] = winner
    kept = list(fastest.values())
    left_out = [w for w in winners if w not in kept]
    return kept, tuple(
        f"run {w.run.summary.run_id} is left out: another one is faster at the same problem" for w in left_out
    )
