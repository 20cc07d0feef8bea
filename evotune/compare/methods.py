"""The searches that can be compared, by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import cast

from evotune.baselines import BASELINES, SimulatedAnnealing
from evotune.compare.peers import PEERS
from evotune.compare.runs import Factory, evaluator_of, open_space
from evotune.errors import UsageError, nearest
from evotune.proposers import Searcher
from evotune.replay import Recording
from evotune.surrogate import Source
from evotune.transfer import kernel_of, warm_start

OWN = ("evotune", "mfbo", "mfbo-pattern")
# Before the recording that evotune's own search is warmed by: evotune+conv_A100.
WARM = "evotune+"


def names() -> list[str]:
    """All built-in methods, whether or not their packages are installed."""
    return [*OWN, *BASELINES, *PEERS]


def factory(method: str) -> Factory:
    """What makes a method's search: a built-in one, ``evotune+SOURCE`` for a warm start from a recording,
    or ``package.module:function`` of the user.

    Raises:
        UsageError: There is no such method.
    """
    if method.startswith(WARM):
        return partial(_warm, method.removeprefix(WARM))
    if ":" in method:
        return _imported(method)
    if method not in _FACTORIES:
        known = names()
        raise UsageError(
            f"no method {method!r}{nearest(method, known)}; known: {', '.join(known)}, {WARM}SOURCE, "
            "or package.module:function"
        )
    return _FACTORIES[method]


def unavailable(method: str) -> str | None:
    """Why a known method cannot run here, and what to install; None if it can."""
    return PEERS[method].missing() if method in PEERS else None


def knows_already(method: str, recording: Recording) -> bool:
    """Whether a method is warmed by the very recording that it would be compared on."""
    return method.startswith(WARM) and _hash(method.removeprefix(WARM)) == recording.hash


@cache
def _hash(given: str) -> str:
    return open_space(given).hash


def _own(search: str, recording: Recording, seed: int, budget: int) -> Searcher:
    """A search of evotune's own, without a model: the environment has no keys here."""
    from evotune import settings
    from evotune.session import searcher

    flags = {"run.search": search, "run.seed": seed, "run.max_evaluations": budget, "llm.provider": "none"}
    return searcher(recording.space, settings.load(None, flags, {}), ranks=_ranks(recording))


def _warm(given: str, recording: Recording, seed: int, budget: int) -> Searcher:
    from evotune import settings
    from evotune.session import searcher

    flags = {"run.seed": seed, "run.max_evaluations": budget, "llm.provider": "none"}
    return searcher(recording.space, settings.load(None, flags, {}), source=_source(given, recording.folder))


@cache
def _source(given: str, folder: Path) -> Source:
    recording = open_space(str(folder))
    return warm_start(given, recording.space, [kernel_of(recording)], recording.hash, {}).source


def _mfbo_pattern(recording: Recording, seed: int, budget: int) -> Searcher:
    from evotune.compare.mfbo_pattern import MfboPatternSearch

    return MfboPatternSearch(recording.space, seed, ranks=_ranks(recording), evaluations=budget)


def _ranks(recording: Recording) -> list[int]:
    return [fidelity.rank for fidelity in evaluator_of(recording, seed=0).fidelities]


def _baseline(name: str, recording: Recording, seed: int, budget: int) -> Searcher:
    return BASELINES[name](recording.space, seed)


def _annealing(recording: Recording, seed: int, budget: int) -> Searcher:
    return SimulatedAnnealing(recording.space, seed, evaluations=budget)


def _imported(method: str) -> Factory:
    module, _, function = method.partition(":")
    try:
        return cast(Factory, getattr(import_module(module), function))
    except (ImportError, AttributeError) as error:
        raise UsageError(f"method {method!r} cannot be imported: {error}") from None


_FACTORIES: Mapping[str, Factory] = {
    **{name: partial(_own, name) for name in OWN},
    "mfbo-pattern": _mfbo_pattern,
    **{name: partial(_baseline, name) for name in BASELINES},
    "annealing": _annealing,
    **{name: peer.make for name, peer in PEERS.items()},
}
