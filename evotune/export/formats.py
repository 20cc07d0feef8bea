"""The formats by name, and which of them fit what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evotune.errors import UsageError, nearest
from evotune.export import dispatch, helion, lookup, plain, t4, triton, vllm
from evotune.export.found import Export, Found, find
from evotune.history import RunHistory


@dataclass(frozen=True)
class Format:
    """``why_not`` says why it does not fit, or None; ``write`` may be called where it does. ``find`` makes
    what both are given of runs."""

    why_not: Callable[[Found], str | None]
    write: Callable[[Found], Export]
    find: Callable[[Sequence[RunHistory]], Found] = find


FORMATS: Mapping[str, Format] = {
    "triton": Format(triton.why_not, triton.write),
    "helion": Format(helion.why_not, helion.write),
    "json": Format(plain.why_not, plain.write),
    "t4": Format(t4.why_not, t4.write),
    "vllm": Format(vllm.why_not, vllm.write),
    "dispatch": Format(dispatch.why_not, dispatch.write),
    "lookup": Format(lookup.why_not, lookup.write, lookup.find),
}


def fitting(found: Found) -> list[str]:
    """Names of the formats that what was found can be written in; none if nothing was."""
    return [name for name, f in FORMATS.items() if found.winners and f.why_not(found) is None]


def check(name: str) -> None:
    """Refuse a name that is no format's."""
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}{nearest(name, FORMATS)}; there are {', '.join(FORMATS)}")


def export(found: Found, name: str) -> Export | None:
    """What was found in a format; None if nothing valid was.

    Raises:
        UsageError: There is no such format, or it does not fit; those that do are named.
    """
    check(name)
    if not found.winners:
        return None
    reason = FORMATS[name].why_not(found)
    if reason is not None:
        runs = " ".join(run.summary.run_id for run in found.runs)
        raise UsageError(
            f"run {runs} cannot be exported as {name}: {reason}; what fits: {', '.join(fitting(found))}"
        )
    return FORMATS[name].write(found)
