"""The searches that can be compared, by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import cast

from evotune.baselines import BASELINES, SimulatedAnnealing
from evotune.compare.peers import PEERS
from evotune.compare.runs import Factory
from evotune.errors import UsageError, nearest
from evotune.proposers import Searcher
from evotune.replay import Recording

OWN = ("evotune",)


def names() -> list[str]:
    """All built-in methods, whether or not their packages are installed."""
    return [*OWN, *BASELINES, *PEERS]


def factory(method: str) -> Factory:
    """What makes a method's search: a built-in one, or ``package.module:function`` of the user.

    Raises:
        UsageError: There is no such method.
    """
    if ":" in method:
        return _imported(method)
    if method not in _FACTORIES:
        known = names()
        raise UsageError(
            f"no method {method!r}{nearest(method, known)}; known: {', '.join(known)}, or package.module:function"
        )
    return _FACTORIES[method]


def unavailable(method: str) -> str | None:
    """Why a known method cannot run here, and what to install; None if it can."""
    return PEERS[method].missing() if method in PEERS else None


def _own(search: str, recording: Recording, seed: int, budget: int) -> Searcher:
    """evotune's own search, without a model: the environment has no keys here."""
    from evotune import settings
    from evotune.session import searcher

    flags = {"run.search": search, "run.seed": seed, "run.max_evaluations": budget, "llm.provider": "none"}
    return searcher(recording.space, settings.load(None, flags, {}))


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
    **{name: partial(_baseline, name) for name in BASELINES},
    "annealing": _annealing,
    **{name: peer.make for name, peer in PEERS.items()},
}
