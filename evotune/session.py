"""From a name and settings to a tuner that is ready to run, and a run of it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evotune import content
from evotune.baselines import BASELINES
from evotune.engine import Engine, InlineEngine, LocalEngine
from evotune.errors import Fatal, ProviderError, Rejected, UsageError
from evotune.evaluator import Evaluator
from evotune.journal import Journal, LlmCall, Rejection, Run
from evotune.llm import Caps, Choice, Completion, LlmClient, Options, Policy, PromptBuilder, resolve
from evotune.program import Sandbox, extract
from evotune.proposers import Searcher
from evotune.proposers.evolution import CrossoverProposer, MutationProposer
from evotune.proposers.islands import Islands
from evotune.proposers.model import ModelProposer, Story
from evotune.proposers.portfolio import Portfolio
from evotune.proposers.uniform import UniformProposer
from evotune.record import record
from evotune.settings import Settings
from evotune.space import ConfigSpace
from evotune.subject import Subject, find_subject
from evotune.surrogate import PROFILES, Surrogate
from evotune.trial import Origin
from evotune.tuner import Budget, Finals, Observer, Result, Tuner

log = logging.getLogger(__name__)

# A small space is opened with fewer points than `search.start_points`, or they would be all of it.
MIN_START, CONFIGS_PER_START = 3, 8

# Providers that answer from what is at hand: nothing to check beforehand, and no thread to wait in.
AT_ONCE = ("mock", "replay")


def tune(name: str, settings: Settings, *, observer: Observer, fresh: bool = False) -> Result:
    """Tune a kernel or replay a recording, as ``evotune run`` does.

    Raises:
        UsageError: Something that was given cannot be used.
        DeviceError: A device is missing or failed.
        Fatal: The model refuses its key, its name, or the request, and ``llm.on_error`` is ``fail``.
    """
    subject = find_subject(name, settings)
    choice = choose_model(settings, os.environ)
    with ExitStack() as stack:
        evaluator = subject.open_evaluator()
        stack.callback(evaluator.close)
        observer.on_note(f"target {subject.target}: {subject.why}")
        observer.on_note(f"device {evaluator.device.name}")
        observer.on_note(f"model {choice.reason}")
        journal = stack.enter_context(Journal(Path(settings.run.journal)))
        description = _description(subject, evaluator, settings)
        run = journal.open_run(subject.name, subject.source_hash, description, fresh=fresh)
        if run.replaces_edited:
            observer.on_note(f"{subject.name} has changed since its last run in this journal: a new run begins")
        engine = _engine(subject, evaluator)
        stack.callback(engine.cancel)
        prompts = shipped_prompts()

        def make_model(islands: Islands) -> ModelProposer | None:
            return open_model(
                settings,
                choice,
                subject.story,
                islands,
                space=subject.space,
                prompts=prompts,
                run=run,
                stack=stack,
            )

        tuner = Tuner(
            searcher(subject.space, settings, make_model),
            engine,
            evaluator,
            run,
            budget=Budget(settings.run.max_evaluations, settings.run.max_seconds or math.inf),
            finals=Finals(settings.measure.finalists, subject.finals),
            names={"kernel": subject.name, "target": subject.target},
            llm=lambda: _usage(run, choice),
            observers=[observer],
        )
        return tuner.tune()


def record_space(
    name: str,
    settings: Settings,
    folder: Path,
    *,
    samples: int | None,
    passes: int,
    on_note: Callable[[str], None],
    on_progress: Callable[[int, int], None],
) -> None:
    """Measure the configurations of a kernel and keep them as a recording, as ``evotune record`` does."""
    subject = find_subject(name, settings)
    if subject.target == "replay":
        raise UsageError(f"{name} is a recording already; give a kernel file")
    if samples is None and not subject.space.is_enumerable:
        raise UsageError(f"{subject.space.cartesian:.1e} configurations cannot all be measured; give --samples N")
    evaluator = subject.open_evaluator()
    try:
        device = evaluator.device
        on_note(f"target {subject.target}: {subject.why}")
        on_note(f"device {device.name}")
        meta = {
            "kernel": subject.name,
            "device": device.name,
            "versions": dict(device.versions),
            "problem": dict(subject.story.problem),
            "source_hash": subject.source_hash,
            "recorded": datetime.now(timezone.utc).date().isoformat(),
            "passes": passes,
            "licence": "Apache-2.0",
        }
        fidelity = next((f for f in evaluator.fidelities if f.name == "medium"), evaluator.fidelities[-1])
        record(
            subject.space,
            evaluator,
            folder,
            meta,
            fidelity=fidelity,
            passes=passes,
            samples=samples,
            seed=settings.run.seed,
            compile_jobs=os.cpu_count() or 1,
            on_progress=on_progress,
        )
    finally:
        evaluator.close()


def _description(subject: Subject, evaluator: Evaluator, settings: Settings) -> dict[str, Any]:
    """All that a result depends on beside the kernel's text: another value is another run."""
    return {
        "problem": dict(subject.story.problem),
        "target": subject.target,
        "device": evaluator.device.name,
        "versions": dict(evaluator.device.versions),
        "search": settings.run.search,
        "seed": settings.run.seed,
    }


def _engine(subject: Subject, evaluator: Evaluator) -> Engine:
    if subject.target == "replay":
        return InlineEngine(evaluator)
    return LocalEngine(evaluator, compile_jobs=os.cpu_count() or 1)


# -- who proposes -------------------------------------------------------------------------------


def searcher(
    space: ConfigSpace,
    settings: Settings,
    make_model: Callable[[Islands], ModelProposer | None] = lambda _: None,
) -> Searcher:
    """The search that the settings name, over a space."""
    seed, chosen = settings.run.seed, settings.islands
    if settings.run.search != "evotune":
        return BASELINES[settings.run.search](space, seed)
    islands = Islands(
        space,
        seed,
        count=chosen.count,
        population_size=chosen.population_size,
        archive_size=chosen.archive_size,
        migration_interval=chosen.migration_interval,
        exploration_ratio=chosen.exploration_ratio,
        exploitation_ratio=chosen.exploitation_ratio,
    )
    breeders = [MutationProposer(space, islands, seed), CrossoverProposer(space, islands, seed)]
    return Portfolio(
        space,
        Surrogate(space, seed=seed, profile=PROFILES[settings.search.kernel]),
        islands,
        [UniformProposer(space, seed), *breeders],
        make_model(islands),
        seed=seed,
        screens=settings.search.screen,
        start_points=min(settings.search.start_points, max(MIN_START, space.cardinality // CONFIGS_PER_START)),
    )


def choose_model(settings: Settings, environ: Mapping[str, str]) -> Choice:
    """Whom to ask for programs; one that would refuse is found out here, before any work.

    Raises:
        UsageError: Unknown provider, or no key for it.
        Fatal: It refuses, and ``llm.on_error`` is ``fail``.
    """
    chosen = settings.llm
    options = Options(
        provider=chosen.provider if settings.run.search == "evotune" else "none",
        model=chosen.model,
        base_url=chosen.base_url,
        on_error=chosen.on_error,
        default_models={"openai": chosen.openai_model, "anthropic": chosen.anthropic_model},
        temperature=chosen.temperature,
        timeout_s=chosen.timeout_s,
        max_usd=chosen.max_usd,
        seed=settings.run.seed,
    )
    choice = resolve(options, environ)
    if choice.provider.name in ("none", "human", *AT_ONCE):
        return choice
    try:
        Policy(choice.provider, price=choice.price, timeout_s=chosen.timeout_s).preflight()
    except Fatal as refused:
        if chosen.on_error == "fail":
            raise
        none = resolve(Options(provider="none"), environ)
        return Choice(none.provider, none.price, f"none: {refused}")
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
) -> ModelProposer | None:
    """The proposer that asks the chosen model, closed by ``stack``; None if nobody is to be asked.

    What it costs and what it proposes in vain is kept in ``run``, if there is one.
    """
    if choice.provider.name == "none":
        return None
    chosen, is_background = settings.llm, choice.provider.name not in AT_ONCE
    policy = _policy(settings, choice, run.calls() if run else [])
    if policy is None:
        log.warning("the limits on the model were reached in an earlier call of this run; it is not asked again")
        return None
    sandbox = stack.enter_context(Sandbox(settings.run.isolation))
    if settings.run.isolation == "strict":
        sandbox.protection()  # refused now, not at the first program
    client: LlmClient[Any] = LlmClient(policy, concurrency=chosen.concurrency if is_background else 0)
    stack.callback(client.close)

    def on_reply(reply: Completion | ProviderError) -> None:
        if run is not None:
            run.record_call(_call(choice, reply))

    def on_reject(origin: Origin, rejected: Rejected) -> None:
        if run is not None:
            run.reject([Rejection(origin, rejected.stage, rejected.reason)])

    return ModelProposer(
        space,
        choice.origin,
        client,
        prompts,
        sandbox,
        islands,
        story,
        configs_per_call=chosen.configs_per_call,
        is_background=is_background,
        calls_before=len(run.calls()) if run else 0,
        on_reject=on_reject,
        on_reply=on_reply,
    )


def shipped_prompts(system_message: str | None = None) -> PromptBuilder:
    """The shipped prompt templates; ``system_message`` takes the place of ``system.md``.

    Raises:
        UsageError: The template lacks a placeholder or has an unknown one.
    """
    folder = content.root() / content.PROMPTS.folder
    if system_message is None:
        return PromptBuilder(folder)
    with TemporaryDirectory() as replaced:
        (Path(replaced) / "system.md").write_text(system_message, encoding="utf-8")
        (Path(replaced) / "user.md").write_bytes((folder / "user.md").read_bytes())
        return PromptBuilder(Path(replaced))


def _policy(settings: Settings, choice: Choice, before: Sequence[LlmCall]) -> Policy | None:
    """Caps are for the whole run: what earlier calls of the same command spent is taken off. None
    if nothing is left of one."""
    chosen = settings.llm
    tokens = sum((c.input_tokens or 0) + (c.output_tokens or 0) for c in before)
    calls_left = None if chosen.max_calls is None else chosen.max_calls - len(before)
    tokens_left = None if chosen.max_tokens is None else chosen.max_tokens - tokens
    usd_left = None if chosen.max_usd is None else chosen.max_usd - sum(c.usd or 0.0 for c in before)
    if any(left is not None and left <= 0 for left in (calls_left, tokens_left, usd_left)):
        return None
    caps = Caps(calls=calls_left, tokens=tokens_left, usd=usd_left)
    return Policy(choice.provider, price=choice.price, caps=caps, timeout_s=chosen.timeout_s, check=_emptiness)


def _emptiness(answer: str) -> str | None:
    """Why an answer is of no use at all, to be told to the model; None if it holds proposals."""
    return None if extract(answer).proposals else "no configuration found in the answer"


def _call(choice: Choice, reply: Completion | ProviderError) -> LlmCall:
    name, model = choice.provider.name, choice.provider.model
    if isinstance(reply, ProviderError):
        return LlmCall(name, model, None, None, None, 0.0, f"{type(reply).__name__}: {reply}")
    usage = reply.usage
    return LlmCall(name, model, usage.input_tokens, usage.output_tokens, usage.usd, usage.seconds)


def _usage(run: Run, choice: Choice) -> dict[str, Any]:
    calls = run.calls()
    usd = [c.usd for c in calls if c.error is None]
    return {
        "provider": choice.provider.name,
        "model": choice.provider.model,
        "calls": len(calls),
        "input_tokens": sum(c.input_tokens or 0 for c in calls),
        "output_tokens": sum(c.output_tokens or 0 for c in calls),
        "usd": None if None in usd else sum(u for u in usd if u is not None),
    }
