"""The seam to a language model, and how its failures differ in what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from evotune.errors import BadOutput, Fatal, Transient

# English and code in Latin letters; used to fit prompts and where a server does not count.
CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class Usage:
    """What one call took. ``input_tokens`` include the cached ones; ``usd`` is None if unknown."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    seconds: float = 0.0
    usd: float | None = None


@dataclass(frozen=True)
class Completion:
    """The text of an answer, and what it took. The text is data: it has not been checked."""

    text: str
    usage: Usage


class Provider(Protocol):
    """Asks one model. Safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """How the provider is called on the command line."""
        ...

    @property
    def model(self) -> str:
        """The model's name, as its server knows it."""
        ...

    def complete(self, system: str, user: str, *, n: int) -> Completion:
        """One request and its answer; it is not repeated here, whatever happens.

        Args:
            system: The part of the prompt that stays the same over a run.
            user: The part that changes.
            n: Configurations that the prompt asks for.

        Raises:
            ProviderError: ``Fatal``, ``Transient`` or ``BadOutput``, without a key in its text.
        """
        ...


class Refused(Transient):
    """The server turned the request away before any work, so that nothing was charged.

    A plain ``Transient`` may have been charged: the request was sent and its answer was lost.
    """


class CapReached(Fatal):
    """A limit of the user's on calls, tokens, money or time forbids the next call.

    ``is_final`` is false where calls under way may turn out cheaper and leave room again.
    """

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


class Unusable(BadOutput):
    """A :class:`~evotune.errors.BadOutput` of known cost; ``is_truncated`` if it was too long."""

    def __init__(self, message: str, usage: Usage, *, is_truncated: bool = False) -> None:
        super().__init__(message)
        self.usage = usage
        self.is_truncated = is_truncated


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text) // CHARS_PER_TOKEN)
