"""Whom a run asks for programs, what they are told, and what that may cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evotune import content
from evotune.errors import Fatal, Rejected, UsageError
from evotune.journal import LlmCall, Rejection, Run
from evotune.llm import (
    Call,
    Caps,
    Choice,
    LlmClient,
    Options,
    Policy,
    PromptBuilder,
    answer_schema,
    preflight,
    resolve,
)
from evotune.llm.prompt import INGREDIENTS
from evotune.program import Sandbox, extract
from evotune.proposers.islands import Islands
from evotune.proposers.model import ModelProposer, Record, Story
from evotune.settings import Settings
from evotune.space import ConfigSpace
from evotune.trial import Candidate, Origin

log = logging.getLogger(__name__)

# Providers that answer from what is at hand: nothing to check beforehand, and no thread to wait in.
AT_ONCE = ("mock", "replay")
# The note of a run by which a later call of it knows that the model had stopped earning.
LEFT_OUT = "model left out"


def choose_model(settings: Settings, environ: Mapping[str, str], space: ConfigSpace | None = None) -> Choice:
    """Whom to ask for programs; one that would refuse is found out here, before any work.

    Args:
        settings: Sections ``llm`` and ``prompt``.
        environ: Holds the keys.
        space: If answers can be held to it by a schema.

    Raises:
        UsageError: Unknown provider, no key for it, or a key file that others can read.
        Fatal: It refuses, and ``llm.on_error`` is ``fail``.
    """
    choice = name_model(settings, environ, space)
    if choice.provider.name in ("none", "human", *AT_ONCE):
        return choice
    policy = _policy(settings, choice, [])
    assert policy is not None
    try:
        preflight(policy)
    except Fatal as refused:
        if settings.llm.on_error == "fail":
            raise
        none = resolve(Options(provider="none"), environ)
        return Choice(none.provider, none.price, f"none: {refused}")
    return Choice(choice.provider, choice.price, choice.reason, tuple(policy.abandon()))


def name_model(settings: Settings, environ: Mapping[str, str], space: ConfigSpace | None = None) -> Choice:
    """:func:`choose_model` without asking anyone: a wrong key is not found out.

    Raises:
        UsageError: As there.
    """
    chosen = settings.llm
    has_schema = chosen.structured_output and space is not None
    options = Options(
        provider=chosen.provider if settings.run.search == "evotune" else "none",
        model=chosen.model,
        base_url=chosen.base_url,
        on_error=chosen.on_error,
        default_models={"openai": chosen.openai_model, "anthropic": chosen.anthropic_model},
        key_file=Path(chosen.key_file) if chosen.key_file else None,
        temperature=chosen.temperature,
        timeout_s=chosen.timeout_s,
        max_output_tokens=chosen.max_output_tokens,
        max_usd=chosen.max_usd,
        seed=settings.run.seed,
        schema=answer_schema(space, programs=settings.prompt.programs) if space and has_schema else None,
    )
    choice = resolve(options, environ)
    if settings.run.search != "evotune":
        return Choice(choice.provider, choice.price, f"none: search {settings.run.search} asks no model")
    return choice


def open_model(
    settings: Settings,
    choice: Choice,
    story: Story,
    islands: Islands,
    *,
    space: ConfigSpace,
    prompts: PromptBuilder,
    run: Run | None,
    stack: ExitStack,
    on_note: Callable[[str], None] = log.info,
) -> ModelProposer | None:
    """The proposer that asks the chosen model, closed by ``stack``; None if nobody is to be asked.

    What it costs and what it proposes is kept in ``run``, if there is one; what earlier calls of the run
    paid for and did not use is offered first.
    """
    line = open_line(settings, choice, run=run, stack=stack, on_note=on_note)
    if line is None:
        return None
    model = ModelProposer(
        space,
        choice.origin,
        line.client,
        prompts,
        line.sandbox,
        islands,
        story,
        line.record,
        configs_per_call=settings.llm.configs_per_call,
        concurrency=settings.llm.concurrency if line.is_background else 1,
        is_background=line.is_background,
        calls_before=line.calls_before,
        offers=run.offers() if run else (),
    )
    if run is not None and (reasons := run.notes(LEFT_OUT)):
        on_note(f"earlier in this run: {reasons[-1]}")
        model.retire()
    return model


@dataclass(frozen=True)
class Line:
    """What it takes to ask a model, and to run what it writes."""

    client: LlmClient[Any]
    sandbox: Sandbox
    record: Record
    is_background: bool
    calls_before: int


def open_line(
    settings: Settings,
    choice: Choice,
    *,
    run: Run | None,
    stack: ExitStack,
    on_note: Callable[[str], None] = log.info,
) -> Line | None:
    """A line to the chosen model, closed by ``stack``; None if nobody is to be asked."""
    if choice.provider.name == "none":
        return None
    record = _Record(run, choice, on_note)
    record.on_calls(choice.preflight)
    is_background = choice.provider.name not in AT_ONCE
    before = run.calls() if run else []
    policy = _policy(settings, choice, before)
    if policy is None:
        log.warning("the limits on the model are reached; it is not asked any more in this run")
        return None
    sandbox = stack.enter_context(Sandbox(settings.run.isolation))
    if settings.run.isolation == "strict":
        sandbox.protection()  # refused now, not at the first program
    client: LlmClient[Any] = LlmClient(policy, concurrency=settings.llm.concurrency if is_background else 0)
    stack.callback(lambda: record.on_calls(policy.abandon()))
    stack.callback(client.close)
    return Line(client, sandbox, record, is_background, len(before))


def open_prompts(settings: Settings, system_message: str | None = None) -> PromptBuilder:
    """The prompt templates: the shipped ones, or those of ``prompt.folder``; ``system_message`` takes the
    place of ``system.md``.

    Raises:
        UsageError: A template lacks a placeholder or has an unknown one.
    """
    chosen = settings.prompt
    shipped = content.root() / content.PROMPTS.folder
    if chosen.folder is not None and not Path(chosen.folder).is_dir():
        raise UsageError(f"there is no folder {chosen.folder} with prompt templates")

    def build(own: Path | None) -> PromptBuilder:
        return PromptBuilder(
            shipped,
            own=own,
            budget_tokens=chosen.budget_tokens,
            without=[name for name in INGREDIENTS if not getattr(chosen, name)],
            programs=chosen.programs,
        )

    if system_message is None:
        return build(Path(chosen.folder) if chosen.folder else None)
    with TemporaryDirectory() as folder:
        (Path(folder) / "system.md").write_text(system_message, encoding="utf-8")
        return build(Path(folder))


def usage(run: Run, choice: Choice) -> dict[str, Any]:
    """What the model of a run was asked and what that cost, in the shape of ``--json``."""
    calls = run.calls()
    usd = [c.usd for c in calls if c.output_tokens is not None]
    return {
        "provider": choice.provider.name,
        "model": choice.provider.model,
        "calls": len(calls),
        "input_tokens": sum(c.input_tokens or 0 for c in calls),
        "output_tokens": sum(c.output_tokens or 0 for c in calls),
        "usd": None if None in usd else sum(u for u in usd if u is not None),
    }


class _Record(Record):
    """Keeps in a run, if there is one, what a model cost and brought."""

    def __init__(self, run: Run | None, choice: Choice, on_note: Callable[[str], None]) -> None:
        self._run = run
        self._names = choice.provider.name, choice.provider.model
        self._on_note = on_note

    def on_calls(self, calls: Sequence[Call]) -> None:
        if self._run is not None:
            for call in calls:
                self._run.record_call(_recorded(*self._names, call))

    def on_offer(self, candidates: Sequence[Candidate]) -> None:
        if self._run is not None and candidates:
            self._run.offer([c.config for c in candidates], candidates[0].parent)

    def on_reject(self, origin: Origin, rejected: Rejected) -> None:
        if self._run is not None:
            self._run.reject([Rejection(origin, rejected.stage, rejected.reason)])

    def on_retired(self, reason: str) -> None:
        self._on_note(reason)
        if self._run is not None:
            self._run.note(LEFT_OUT, reason)


def _policy(settings: Settings, choice: Choice, before: Sequence[LlmCall]) -> Policy | None:
    """Caps are for the whole run: what earlier calls of the same command spent is taken off. None
    if nothing is left of one."""
    chosen = settings.llm
    given = {
        "calls": (chosen.max_calls, len(before)),
        "tokens": (chosen.max_tokens, sum(c.spent_tokens or 0 for c in before)),
        "seconds": (chosen.max_seconds, sum(c.seconds for c in before)),
        "usd": (chosen.max_usd, sum(c.spent_usd or 0.0 for c in before)),
    }
    left: dict[str, Any] = {name: cap - spent for name, (cap, spent) in given.items() if cap is not None}
    if any(amount <= 0 for amount in left.values()):
        return None
    return Policy(
        choice.provider,
        price=choice.price,
        caps=Caps(**left),
        timeout_s=chosen.timeout_s,
        max_output_tokens=chosen.max_output_tokens,
        check=_emptiness,
    )


def _emptiness(answer: str) -> str | None:
    """Why an answer is of no use at all, to be told to the model; None if it holds proposals."""
    return None if extract(answer).proposals else "no configuration found in the answer"


def _recorded(provider: str, model: str, call: Call) -> LlmCall:
    usage, spent = call.usage, call.spent
    tokens = (usage.input_tokens, usage.output_tokens, usage.usd) if usage else (None, None, None)
    return LlmCall(provider, model, *tokens, spent.seconds, call.error, spent.tokens, spent.usd)
