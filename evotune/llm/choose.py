"""Which provider a run uses, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from evotune.errors import UsageError, nearest
from evotune.llm.anthropic import ANTHROPIC_URL, AnthropicProvider
from evotune.llm.mock import MockProvider
from evotune.llm.offline import HumanProvider, NoProvider, ReplayProvider
from evotune.llm.openai import OPENAI_URL, OpenAIProvider
from evotune.llm.policy import Call
from evotune.llm.prices import FREE, Price, is_loopback, price_of
from evotune.llm.provider import Provider
from evotune.llm.secret import Secret

ENTRY_POINTS = "evotune.providers"
KEYED = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
BASE_URLS = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}
BUILT_IN = ("auto", *KEYED, "mock", "none", "replay:FILE", "human:FOLDER")
# Servers on this machine want none, but the SDKs insist.
DUMMY_KEY = "none-needed"


@dataclass(frozen=True)
class Options:
    """What is asked for. ``default_models`` are by provider; ``schema`` is that of an answer.

    ``provider`` is a built-in name, ``replay:<file>``, ``human:<folder>``, or a plug-in's. Keys come
    from the environment or from ``key_file`` only.
    """

    provider: str = "auto"
    model: str | None = None
    base_url: str | None = None
    on_error: Literal["fail", "fallback"] = "fail"
    default_models: Mapping[str, str] | None = None
    key_file: Path | None = None
    temperature: float = 0.8
    timeout_s: float = 60.0
    max_output_tokens: int = 8192
    max_usd: float | None = None
    seed: int = 0
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Choice:
    """A provider, what it costs (None: unknown), and why it was chosen, for a person."""

    provider: Provider
    price: Price | None
    reason: str
    preflight: Sequence[Call] = ()
    """Requests that it took to check it."""

    @property
    def origin(self) -> Literal["llm", "mock"]:
        """Origin of the candidates that it proposes."""
        return "mock" if isinstance(self.provider, MockProvider) else "llm"


def resolve(options: Options, environ: Mapping[str, str]) -> Choice:
    """The provider for these options.

    Raises:
        UsageError: Unknown name, no key, no model, or a limit on money without a price.
    """
    name, _, argument = options.provider.partition(":")
    if name == "auto":
        return _auto(options, environ)
    if name in KEYED:
        return _keyed(name, options, environ, f"{name}: as given")
    if name == "mock":
        return Choice(_mock(options), FREE, "mock: as given; it knows nothing about speed")
    if name == "none":
        return Choice(NoProvider(), FREE, "none: as given; proposals come from the search alone")
    if name in ("replay", "human"):
        if not argument:
            raise UsageError(f"provider {name!r} needs a path: {name}:{'FILE' if name == 'replay' else 'FOLDER'}")
        path = Path(argument).expanduser()
        provider = ReplayProvider(path) if name == "replay" else HumanProvider(path)
        return Choice(provider, FREE, f"{name}: as given, {path}")
    return _plug_in(name, options)


def _auto(options: Options, environ: Mapping[str, str]) -> Choice:
    if options.base_url is not None:
        return _keyed("openai", options, environ, f"openai: the protocol spoken at {options.base_url}")
    if options.key_file is not None:
        raise UsageError("a key file says not whose key it holds; give --provider openai or anthropic with it")
    for name, variable in KEYED.items():
        if environ.get(variable, "").strip():
            return _keyed(name, options, environ, f"{name}: {variable} is set")
    reason = f"mock: neither {' nor '.join(KEYED.values())} is set; it knows nothing about speed"
    return Choice(_mock(options), FREE, reason)


def _keyed(name: str, options: Options, environ: Mapping[str, str], reason: str) -> Choice:
    base_url = options.base_url or environ.get(BASE_URLS[name], "").strip() or None
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise UsageError(f"base URL {base_url!r} is not one; it begins with http:// or https://")
    if base_url is not None and base_url.rstrip("/") in (OPENAI_URL, ANTHROPIC_URL):
        base_url = None
    is_local = base_url is not None and is_loopback(base_url)
    key = _key(name, options, environ, is_local)
    if key is None:
        wanted = f"set {KEYED[name]}, or give --provider mock or none"
        if options.on_error == "fallback":
            return Choice(NoProvider(f"no key; {wanted}"), FREE, f"none: no key for {name}; {wanted}")
        raise UsageError(f"provider {name!r} needs a key: {wanted}, or --on-llm-error fallback")
    model = options.model or (None if options.base_url else (options.default_models or {}).get(name))
    if model is None:
        raise UsageError(f"no model given for {base_url or name}; name one with --model")
    price = price_of(model, base_url)
    _check_price(price, model, options.max_usd)
    common: dict[str, Any] = {
        "base_url": base_url,
        "timeout_s": options.timeout_s,
        "max_output_tokens": options.max_output_tokens,
        "schema": options.schema,
    }
    if name == "anthropic":
        provider: Provider = AnthropicProvider(model, key, **common)
    else:
        provider = OpenAIProvider(model, key, temperature=options.temperature, **common)
    where = f" at {base_url}" if base_url and base_url not in reason else ""
    return Choice(provider, price, f"{reason}; model {model}{where}")


def _key(name: str, options: Options, environ: Mapping[str, str], is_local: bool) -> Secret | None:
    if options.key_file is not None:
        path = options.key_file.expanduser()
        try:
            # As ssh does: a key that others can read is not used, so that it does not stay so.
            if path.stat().st_mode & 0o077:
                raise UsageError(f"others can read the key file {path}; change that with: chmod 600 {path}")
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the key file {options.key_file}: {type(error).__name__}") from None
        if not text.isprintable() or not text or " " in text:
            raise UsageError(f"the key file {options.key_file} does not hold one line with a key")
        return Secret(text)
    text = environ.get(KEYED[name], "").strip()
    return Secret(text or DUMMY_KEY) if text or is_local else None


def _mock(options: Options) -> MockProvider:
    return MockProvider(options.seed, options.temperature)


def _check_price(price: Price | None, model: str, max_usd: float | None) -> None:
    if max_usd is not None and price is None:
        raise UsageError(
            f"--max-usd {max_usd:g} cannot be kept: the price of {model!r} is not known; "
            "limit calls or tokens instead, or give a model with a known price"
        )


def _plug_in(name: str, options: Options) -> Choice:
    """A provider of somebody else: its entry point is called with the options.

    What it makes may have an attribute ``price``; without one its costs are unknown.
    """
    found: dict[str, EntryPoint] = {e.name: e for e in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = [*BUILT_IN, *found]
        raise UsageError(f"no provider {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    try:
        provider: Provider = found[name].load()(options)
    except UsageError:
        raise
    except Exception as error:  # a third party's code may raise anything
        raise UsageError(
            f"the provider plug-in {name!r} does not start: {type(error).__name__}: {error}"
        ) from error
    price: Price | None = getattr(provider, "price", None)
    _check_price(price, f"{name}/{provider.model}", options.max_usd)
    return Choice(provider, price, f"{name}: the plug-in {found[name].value}; model {provider.model}")
