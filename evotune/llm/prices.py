"""What a model costs, where that is known; a price is never guessed."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from evotune.llm.provider import Usage

_DATE = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8})$")
_PER = 1e6


@dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    input: float
    cached: float
    output: float

    def usd(self, usage: Usage) -> float:
        """What a call costs."""
        fresh = usage.input_tokens - usage.cached_input_tokens
        paid = fresh * self.input + usage.cached_input_tokens * self.cached + usage.output_tokens * self.output
        return paid / _PER

    def worst_usd(self, input_tokens: int, output_tokens: int) -> float:
        """The most that a call of this size costs."""
        return (input_tokens * max(self.input, self.cached) + output_tokens * self.output) / _PER


FREE = Price(0.0, 0.0, 0.0)


def price_of(model: str, base_url: str | None = None) -> Price | None:
    """Price of a model: free on this machine, unknown on other people's servers."""
    if base_url is not None:
        return FREE if is_loopback(base_url) else None
    table = _table()
    return table.get(model) or table.get(_DATE.sub("", model))


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine, so that nothing is charged and no key is needed."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@cache
def _table() -> dict[str, Price]:
    import yaml  # `evotune --help` need not pay for it

    text = Path(__file__).with_name("prices.yaml").read_text(encoding="utf-8")
    return {name: Price(**row) for name, row in yaml.safe_load(text).items()}
