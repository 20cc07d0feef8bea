"""Keys, which are never shown, and the model that would be asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from evotune.asking import name_model
from evotune.doctor.row import Row, fail, ok, warn
from evotune.errors import BadOutput, Fatal, Transient, UsageError
from evotune.llm import Caps, Choice, Policy, Retry
from evotune.llm.choose import KEYED
from evotune.llm.prices import FREE
from evotune.settings import Settings

SYSTEM, QUESTION = 'Answer with exactly this JSON and nothing else: {"configs": []}', "Are you there?"
ASK_S = 20.0
SHOWN_MODE = 0o777


def keys(settings: Settings, environ: Mapping[str, str]) -> list[Row]:
    """Which variables and files hold a key, and whether others can read it."""
    rows = [_variable(name, environ.get(name)) for name in KEYED.values()]
    if settings.llm.key_file is not None:
        rows.append(_key_file(Path(settings.llm.key_file).expanduser()))
    return rows


def _variable(name: str, value: str | None) -> Row:
    if not (value or "").strip():
        return ok(name, "not set")
    assert value is not None
    if value != value.strip() or any(c in value for c in " \"'\n"):
        return warn(name, "set, with blanks or quotation marks that belong to no key", f"export {name}=… anew")
    return ok(name, "set")


def _key_file(path: Path) -> Row:
    name = "key file"
    try:
        mode = path.stat().st_mode & SHOWN_MODE
    except OSError as error:
        return fail(
            name, f"{path}: {error.strerror}", "write the key there, or change llm.key_file", "configuration"
        )
    if mode & 0o077:
        return fail(name, f"others can read {path} (mode {mode:o})", f"chmod 600 {path}", "configuration")
    if not os.access(path, os.R_OK):
        return fail(name, f"{path} cannot be read by this user", f"chown $USER {path}", "configuration")
    return ok(name, f"{path} (mode {mode:o})")


def choice(settings: Settings, environ: Mapping[str, str]) -> list[Row]:
    """Who would be asked for programs; nobody is asked here."""
    try:
        return [ok("model", _chosen(settings, environ).reason)]
    except UsageError as error:
        return [fail("model", str(error), None, "configuration")]


def endpoint(settings: Settings, environ: Mapping[str, str]) -> list[Row]:
    """One tiny question to the model: whether it answers, how soon, and at what price."""
    name = "endpoint"
    try:
        chosen = _chosen(settings, environ)
    except UsageError:  # told in the row of the choice
        return []
    if chosen.price is FREE and chosen.provider.name in ("none", "mock", "human", "replay"):
        return [ok(name, f"{chosen.provider.name} needs no server")]
    policy = Policy(
        chosen.provider,
        price=chosen.price,
        caps=Caps(usd=settings.llm.max_usd),
        timeout_s=min(ASK_S, settings.llm.timeout_s),
        max_output_tokens=settings.llm.max_output_tokens,
        retry=Retry(attempts=1),
    )
    model = f"{chosen.provider.name} {chosen.provider.model}"
    try:
        usage = policy.ask(SYSTEM, QUESTION, n=1).usage
    except Fatal as error:
        if settings.llm.on_error == "fallback":
            return [warn(name, f"{model}: {error}; runs go on without it, as --on-llm-error fallback says")]
        return [fail(name, f"{model}: {error}", None, "configuration")]
    except Transient as error:
        return [fail(name, f"{model} does not answer: {error}", "try again, or check the network and --base-url")]
    except BadOutput as error:
        return [warn(name, f"{model} answers, to no use: {error}", "--provider with another --model")]
    cost = "cost unknown" if usage.usd is None else f"${usage.usd:.6f}"
    tokens = usage.input_tokens + usage.output_tokens
    found = f"{model} answered in {usage.seconds:.1f} s; {tokens} tokens, {cost}"
    if chosen.price is None:
        return [
            warn(name, f"{found}; --max-usd cannot be kept", "limit calls or tokens: llm.max_calls, llm.max_tokens")
        ]
    return [ok(name, found)]


def _chosen(settings: Settings, environ: Mapping[str, str]) -> Choice:
    """As a run would, but not as patient."""
    llm = settings.llm.model_copy(update={"timeout_s": min(ASK_S, settings.llm.timeout_s)})
    return name_model(settings.model_copy(update={"llm": llm}), environ)
