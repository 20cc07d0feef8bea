"""Programs that a language model writes, asked for beside the measuring and never trusted."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evotune.errors import BadOutput, Fatal, ProviderError, Rejected
from evotune.llm import (
    Call,
    CapReached,
    Completion,
    Context,
    Failed,
    Focus,
    LlmClient,
    PromptBuilder,
    Roofline,
    Scored,
)
from evotune.program import Sandbox, extract, render
from evotune.proposers.base import Feedback
from evotune.proposers.islands import Islands
from evotune.space import Config, ConfigSpace
from evotune.trial import Candidate, Origin

log = logging.getLogger(__name__)

# What the islands are asked for, each in turn: they see their own elites and are sent different ways.
FOCUS: tuple[Focus, ...] = ("exploit", "jump", "opposite")
SHOWN_FAILURES = 6
SHOWN_REJECTIONS = 3


@dataclass(frozen=True)
class Story:
    """What a prompt tells of the kernel beside its space and its trials."""

    kernel: str
    source: str = ""
    problem: Mapping[str, int | float | str] = field(default_factory=dict[str, "int | float | str"])
    device: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])
    roofline: Roofline | None = None


class Record(Protocol):
    """Keeps what a model cost and what it brought."""

    def on_calls(self, calls: Sequence[Call]) -> None:
        """Requests ended, with an answer or without."""
        ...

    def on_offer(self, candidates: Sequence[Candidate]) -> None:
        """An answer brought these, all of one parent; they will be offered until they are tried or dropped."""
        ...

    def on_reject(self, origin: Origin, rejected: Rejected) -> None:
        """A proposal is not a legal configuration, or is known already."""
        ...

    def on_retired(self, reason: str) -> None:
        """The model is not asked any more in this run."""
        ...


class ModelProposer:
    """Asks for several configurations per call, and offers what was legal of the answers.

    A question is asked as soon as the last answer is used up, so that the next answer is there when
    its turn comes; a model that is asked at once (the mock) waits for the turn.

    Args:
        concurrency: Questions under way at most.
        is_background: Whether answers come later.
        calls_before: Made by earlier calls of the same run, so that no question is asked twice.
        offers: Configurations that earlier calls of the run paid for, with the trials that they come from.
    """

    def __init__(
        self,
        space: ConfigSpace,
        origin: Origin,
        client: LlmClient[int | None],
        prompts: PromptBuilder,
        sandbox: Sandbox,
        islands: Islands,
        story: Story,
        record: Record,
        *,
        configs_per_call: int,
        concurrency: int,
        is_background: bool,
        calls_before: int = 0,
        offers: Sequence[tuple[Config, int | None]] = (),
    ) -> None:
        self.origin: Origin = origin
        self._space = space
        self._client = client
        self._prompts = prompts
        self._sandbox = sandbox
        self._islands = islands
        self._story = story
        self._record = record
        self._configs_per_call = configs_per_call
        self._concurrency = concurrency
        self._is_background = is_background
        self._waiting = [self._candidate(config, parent) for config, parent in offers]
        self._calls = calls_before
        self._is_over = False
        self._fruitless = 0
        self._rejected: deque[Rejected] = deque(maxlen=SHOWN_REJECTIONS)
        self._told: list[Feedback] = []
        self._seen: set[tuple[int, ...]] = set()

    def ask(self, n: int) -> list[Candidate]:
        """Up to ``n`` of the candidates that came; those not taken are offered again."""
        self._collect()
        if not self._waiting:
            self._question()
            self._collect()
        return self._waiting[:n]

    def prepare(self) -> None:
        """Have the next answer written while something else is measured."""
        if self._is_background:
            self._collect()
            if not self._waiting:
                self._question()

    def drop(self) -> None:
        """Forget what was offered: the screen wanted none of it, so newer answers are needed."""
        self._fruitless += bool(self._waiting)
        self._waiting = []

    def fruitless(self) -> int:
        """How many answers since the last question came to nothing: none of what they held was new, legal
        and worth a trial. An outage is not among them."""
        found, self._fruitless = self._fruitless, 0
        return found

    @property
    def state(self) -> str:
        """``left out``, or that of the client; for a person."""
        return "left out" if self._is_over else self._client.state

    def retire(self, reason: str | None = None) -> None:
        """Ask no more and forget what is left; a reason is recorded, the first time."""
        if not self._is_over and reason is not None:
            self._record.on_retired(reason)
        self._is_over = True
        self._waiting = []

    def tell(self, feedback: Sequence[Feedback]) -> None:
        self._told.extend(feedback)
        self._seen.update(self._space.key(f.config) for f in feedback)
        self._waiting = [c for c in self._waiting if self._space.key(c.config) not in self._seen]

    def _question(self) -> None:
        if self._is_over or self._client.outstanding >= self._concurrency:
            return
        turn, island = divmod(self._calls, self._islands.count)
        elites = [number for number, _ in self._islands.best(island, 1)] if len(self._islands) else []
        self._calls += 1
        context = self._context(island, FOCUS[(turn + island) % len(FOCUS)])
        base = context.incumbent.config if context.incumbent else None
        parent = elites[0] if elites else None
        self._client.submit(self._prompts.build(context), parent, lambda reply: self._read(reply, base))

    def _collect(self) -> None:
        replies = self._client.finished()
        self._record.on_calls(self._client.policy.calls())
        for parent, reply in replies:
            if isinstance(reply, ProviderError):
                self._miss(reply)
                continue
            found = self._new(reply, parent)
            # Also if the model has been given up meanwhile: the answer was paid for.
            self._record.on_offer(found)
            self._waiting += [] if self._is_over else found
            self._fruitless += not found

    def _miss(self, error: ProviderError) -> None:
        self._fruitless += isinstance(error, BadOutput)
        # What other calls have reserved may come back.
        may_return = isinstance(error, CapReached) and not error.is_final
        if isinstance(error, Fatal) and not may_return and not self._is_over:
            self._is_over = True
            log.warning("the model is left out from here on: %s", error)

    def _read(self, reply: Completion, base: Config | None) -> list[Config | Rejected]:
        """The configurations of an answer, or why they are none. Runs beside everything else here."""
        extracted = extract(reply.text)
        found: list[Config | Rejected] = [*extracted.rejections]
        for proposal in extracted.proposals:
            try:
                found.append(self._sandbox.resolve(proposal, self._space, self._story.problem, base))
            except Rejected as rejected:
                found.append(rejected)
        return found

    def _new(self, read: Sequence[Config | Rejected], parent: int | None) -> list[Candidate]:
        """What nobody has proposed before of an answer."""
        found: list[Candidate] = []
        known = self._seen | {self._space.key(c.config) for c in self._waiting}
        for item in read:
            if isinstance(item, Rejected):
                self._rejected.append(item)
                self._record.on_reject(self.origin, item)
            elif (key := self._space.key(item)) in known:
                self._record.on_reject(self.origin, Rejected("known", "already proposed"))
            else:
                known.add(key)
                found.append(self._candidate(item, parent))
        return found

    def _candidate(self, config: Config, parent: int | None) -> Candidate:
        """Our own rendering of it: no text of a model enters an island or another prompt."""
        return Candidate(config, render(config, self._space), self.origin, parent)

    def _context(self, island: int, focus: Focus) -> Context:
        """The state of the search as one island sees it."""
        good = sorted((f for f in self._told if f.loss is not None), key=lambda f: f.loss or 0.0)
        numbers = {number for number, _ in self._islands.best(island, 8)} if len(self._islands) else set[int]()
        failed = [Failed(f.config, *_stage_and_reason(f)) for f in self._told if f.loss is None]
        refused = [Failed(None, r.stage, r.reason) for r in self._rejected]
        return Context(
            kernel=self._story.kernel,
            space=self._space,
            source=self._story.source,
            problem=self._story.problem,
            device=self._story.device,
            roofline=self._story.roofline,
            incumbent=_scored(good[0]) if good else None,
            top=[_scored(f) for f in good if f.number in numbers],
            failures=[*refused, *failed[len(refused) - SHOWN_FAILURES :]],
            static=good[0].facts if good else {},
            tried=[f.config for f in self._told],
            focus=focus,
            call=self._calls,
            n=self._configs_per_call,
        )


def _scored(feedback: Feedback) -> Scored:
    return Scored(feedback.config, math.exp(min(feedback.loss or 0.0, 700.0)))


def _stage_and_reason(feedback: Feedback) -> tuple[str, str]:
    stage, _, reason = (feedback.failure or "run: no result").partition(": ")
    return stage, reason
