"""Programs that a language model writes, asked for beside the measuring and never trusted."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from evotune.errors import Fatal, ProviderError, Rejected
from evotune.llm import Completion, Context, Failed, Focus, LlmClient, PromptBuilder, Roofline, Scored
from evotune.program import Sandbox, extract, render
from evotune.proposers.base import Feedback
from evotune.proposers.islands import Islands
from evotune.space import Config, ConfigSpace
from evotune.trial import Candidate, Origin

log = logging.getLogger(__name__)

# What the islands are asked for in turn: they see their own elites and are sent different ways.
FOCUS: tuple[Focus, ...] = ("exploit", "jump", "opposite")
SHOWN_FAILURES = 6


@dataclass(frozen=True)
class Story:
    """What a prompt tells of the kernel beside its space and its trials."""

    kernel: str
    source: str = ""
    problem: Mapping[str, int | float | str] = field(default_factory=dict[str, "int | float | str"])
    device: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])
    roofline: Roofline | None = None


class ModelProposer:
    """Asks for several configurations per call, and offers what was legal of the answers.

    A question is asked as soon as the last answer is used up, so that the next answer is there when
    its turn comes; with a client that asks at once (the mock) it waits for the turn.

    Args:
        calls_before: Made by earlier calls of the same run, so that no question is asked twice.
        on_reject: Hears of each proposal that is not a legal configuration.
        on_reply: Hears of each answer or failure, for the record.
    """

    def __init__(
        self,
        space: ConfigSpace,
        origin: Origin,
        client: LlmClient[tuple[int, Config | None]],
        prompts: PromptBuilder,
        sandbox: Sandbox,
        islands: Islands,
        story: Story,
        *,
        configs_per_call: int,
        is_background: bool,
        calls_before: int = 0,
        on_reject: Callable[[Origin, Rejected], None],
        on_reply: Callable[[Completion | ProviderError], None],
    ) -> None:
        self.origin: Origin = origin
        self._space = space
        self._client = client
        self._prompts = prompts
        self._sandbox = sandbox
        self._islands = islands
        self._story = story
        self._configs_per_call = configs_per_call
        self._is_background = is_background
        self._on_reject = on_reject
        self._on_reply = on_reply
        self._waiting: list[Candidate] = []
        self._calls = calls_before
        self._is_over = False
        self._told: list[Feedback] = []
        self._seen: set[tuple[int, ...]] = set()
        if is_background:
            self._question()

    def ask(self, n: int) -> list[Candidate]:
        """Up to ``n`` of the candidates that came; those not taken are offered again."""
        self._collect()
        if not self._waiting:
            self._question()
            self._collect()
        return self._waiting[:n]

    def drop(self) -> None:
        """Forget what was offered: the screen wanted none of it, so newer answers are needed."""
        self._waiting = []

    def tell(self, feedback: Sequence[Feedback]) -> None:
        self._told.extend(feedback)
        self._seen.update(self._space.key(f.config) for f in feedback)
        self._waiting = [c for c in self._waiting if self._space.key(c.config) not in self._seen]
        if self._is_background:
            self._collect()
            if not self._waiting:
                self._question()

    def _question(self) -> None:
        if self._is_over or self._client.outstanding:
            return
        island = self._calls % self._islands.count
        elites = [number for number, _ in self._islands.best(island, 1)] if len(self._islands) else []
        parent = elites[0] if elites else None
        base = next((f.config for f in self._told if f.number == parent), None)
        self._calls += 1
        self._client.submit(
            self._prompts.build(self._context(island)), (parent if parent is not None else -1, base)
        )

    def _collect(self) -> None:
        for (parent, base), reply in self._client.finished():
            self._on_reply(reply)
            if isinstance(reply, ProviderError):
                self._is_over = isinstance(reply, Fatal)
                if self._is_over:
                    log.warning("the model is left out from here on: %s", reply)
                continue
            found = extract(reply.text)
            for rejected in found.rejections:
                self._on_reject(self.origin, rejected)
            for proposal in found.proposals:
                try:
                    config = self._sandbox.resolve(proposal, self._space, self._story.problem, base)
                except Rejected as rejected:
                    self._on_reject(self.origin, rejected)
                    continue
                self._offer(config, parent if parent >= 0 else None)

    def _offer(self, config: Config, parent: int | None) -> None:
        key = self._space.key(config)
        if key in self._seen or any(key == self._space.key(c.config) for c in self._waiting):
            self._on_reject(self.origin, Rejected("known", "already proposed"))
            return
        self._waiting.append(Candidate(config, render(config, self._space), self.origin, parent))

    def _context(self, island: int) -> Context:
        """The state of the search as one island sees it."""
        good = sorted((f for f in self._told if f.loss is not None), key=lambda f: f.loss or 0.0)
        numbers = {number for number, _ in self._islands.best(island, 8)} if len(self._islands) else set[int]()
        failed = [f for f in self._told if f.loss is None][-SHOWN_FAILURES:]
        return Context(
            kernel=self._story.kernel,
            space=self._space,
            source=self._story.source,
            problem=self._story.problem,
            device=self._story.device,
            roofline=self._story.roofline,
            incumbent=_scored(good[0]) if good else None,
            top=[_scored(f) for f in good if f.number in numbers],
            failures=[Failed(f.config, *_stage_and_reason(f)) for f in failed],
            tried=[f.config for f in self._told],
            focus=FOCUS[self._calls % len(FOCUS)],
            call=self._calls,
            n=self._configs_per_call,
        )


def _scored(feedback: Feedback) -> Scored:
    return Scored(feedback.config, math.exp(min(feedback.loss or 0.0, 700.0)))


def _stage_and_reason(feedback: Feedback) -> tuple[str, str]:
    stage, _, reason = (feedback.failure or "run: no result").partition(": ")
    return stage, reason
