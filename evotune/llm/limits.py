"""Limits on what a model may cost. They hold because the worst case is set aside before each call."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields

from evotune.errors import UsageError
from evotune.llm.provider import CapReached


@dataclass(frozen=True)
class Amount:
    """Calls, tokens in both directions, seconds of waiting, and money."""

    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    usd: float = 0.0


@dataclass(frozen=True)
class Caps:
    """The most that a run may spend on a model; None is no limit."""

    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    usd: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            cap = getattr(self, field.name)
            if cap is not None and not cap > 0:
                raise UsageError(f"a limit of {cap} {field.name} on the model allows no call; use --provider none")


class Budget:
    """What has been spent and what is set aside, against the caps. Thread-safe."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._spent = Amount()
        self._reserved = Amount()
        self._lock = threading.Lock()

    def reserve(self, worst: Amount) -> None:
        """Set the worst case of one call aside.

        Raises:
            CapReached: It does not fit.
        """
        with self._lock:
            for field in fields(Caps):
                cap = getattr(self._caps, field.name)
                if cap is None:
                    continue
                spent, reserved = getattr(self._spent, field.name), getattr(self._reserved, field.name)
                needed = getattr(worst, field.name)
                if spent + reserved + needed > cap:
                    raise CapReached(
                        f"the limit of {cap:g} {field.name} for the model is reached: {spent:.4g} spent, "
                        f"{reserved:.4g} set aside for calls under way, {needed:.4g} needed for the next",
                        is_final=spent + needed > cap,
                    )
            self._reserved = _add(self._reserved, worst)

    def settle(self, worst: Amount, actual: Amount) -> None:
        """Replace a reservation by what the call took."""
        with self._lock:
            self._reserved = _add(self._reserved, worst, sign=-1)
            self._spent = _add(self._spent, actual)


def _add(a: Amount, b: Amount, sign: int = 1) -> Amount:
    return Amount(*(getattr(a, f.name) + sign * getattr(b, f.name) for f in fields(Amount)))
