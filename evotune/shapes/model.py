"""Programs that a language model writes for all shapes at once, each run once per problem.

The text of a model is run in the sandbox and then forgotten: what stays is its configuration for each
shape, written again as a rule.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evotune.asking import Line
from evotune.errors import BadOutput, Fatal, ProviderError, Rejected
from evotune.llm import CapReached, Prompt
from evotune.llm.prompt import cut, space_json
from evotune.llm.provider import CHARS_PER_TOKEN
from evotune.llm.secret import printable
from evotune.program import Proposal, Sandbox, extract
from evotune.shapes.table import Program, Shape, Table
from evotune.space import Config
from evotune.trial import Candidate, Origin

log = logging.getLogger(__name__)

FOCUS = {
    "exploit": "Focus: refine. Change one or two parameters in one branch of the best function.",
    "jump": "Focus: a structural jump. Divide the problems differently, by another size or at another value.",
    "merge": "Focus: merge. Do with fewer branches, or compute a parameter from the sizes.",
}
SHOWN_FAILURES = 6


class ProgramModel:
    """Asks for several programs per call, and offers what was legal at every shape.

    Args:
        table: What was measured so far.
        origin: Under which its programs are counted.
        line: To the model, and its sandbox.
        folder: Holds the templates.
        source: Of the kernel.
        programs_per_call: Asked for.
        concurrency: Questions under way at most.
        budget_tokens: Half of them at most are the kernel's source.
        offers: Pairs of programs that earlier calls of the run paid for, all of a program together.
    """

    def __init__(
        self,
        table: Table,
        origin: Origin,
        line: Line,
        folder: Path,
        *,
        source: str,
        programs_per_call: int,
        concurrency: int,
        budget_tokens: int,
        offers: Sequence[Config] = (),
    ) -> None:
        self.origin: Origin = origin
        self._table = table
        self._line = line
        self._programs_per_call = programs_per_call
        self._concurrency = concurrency
        self._calls = line.calls_before
        self._is_over = False
        size = len(table.shapes)
        configs = [table.split(pair)[1] for pair in offers]
        self._waiting = [table.program(configs[i : i + size]) for i in range(0, len(configs), size)]
        self._system = _system(folder, table, cut(source, budget_tokens * CHARS_PER_TOKEN // 2), programs_per_call)
        self._user = _template(folder / "user.md")

    def ask(self) -> list[Program]:
        """Programs that came and have something to measure; those not taken are offered again."""
        self._collect()
        if not self._waiting:
            self._question()
            self._collect()
        return list(self._waiting)

    def prepare(self) -> None:
        """Have the next answer written while something else is measured."""
        self._waiting = [p for p in self._waiting if not self._is_known(p)]
        if self._line.is_background:
            self._collect()
            if not self._waiting:
                self._question()

    def drop(self) -> None:
        """Forget what was offered: newer answers are needed."""
        self._waiting = []

    @property
    def state(self) -> str:
        """``left out``, or that of the client; for a person."""
        return "left out" if self._is_over else self._line.client.state

    def retire(self, reason: str | None = None) -> None:
        """Ask no more and forget what is left; a reason is recorded, the first time."""
        if not self._is_over and reason is not None:
            self._line.record.on_retired(reason)
        self._is_over = True
        self._waiting = []

    def _is_known(self, program: Program) -> bool:
        return all(self._table.knows(i, config) for i, config in enumerate(program.configs))

    def _question(self) -> None:
        if self._is_over or self._line.client.outstanding >= self._concurrency:
            return
        focus = list(FOCUS)[self._calls % len(FOCUS)]
        best = self._table.elite()
        user = self._user.render(
            n=self._programs_per_call,
            state=json.dumps(self._state(focus, best)),
            focus=FOCUS[focus],
            best=best.text if best else "",
            standing=self._standing(best) if best else [],
            failures=[_quoted(f) for f in self._table.failures[-SHOWN_FAILURES:]],
        )
        self._calls += 1
        self._line.client.submit(Prompt(self._system, user, self._programs_per_call), best)

    def _state(self, focus: str, best: Program | None) -> dict[str, Any]:
        shapes = self._table.shapes
        state: dict[str, Any] = {"call": self._calls, "focus": focus}
        state["problems"] = {s.name: dict(s.problem) for s in shapes}
        if best is not None:
            state["score"] = self._table.score(best)
            state["configs"] = {s.name: dict(c) for s, c in zip(shapes, best.configs, strict=True)}
        return state

    def _standing(self, best: Program) -> list[str]:
        """How fast the best program is at each shape, as a share of the best known there."""
        shares = [(self._table.share(i, c) or 0.0, s.name) for i, (s, c) in enumerate(zip(
            self._table.shapes, best.configs, strict=True
        ))]  # fmt: skip
        return [f"{name}: {share:.3f} of the best known" for share, name in sorted(shares, reverse=True)]

    def _collect(self) -> None:
        replies = self._line.client.finished()
        self._line.record.on_calls(self._line.client.policy.calls())
        for base, reply in replies:
            if isinstance(reply, ProviderError):
                self._miss(reply)
                continue
            found = self._read(reply.text, base)
            for program in found:
                pairs = [s.pair(c) for s, c in zip(self._table.shapes, program.configs, strict=True)]
                self._line.record.on_offer([Candidate(pair, program.text, self.origin) for pair in pairs])
            self._waiting += found

    def _miss(self, error: ProviderError) -> None:
        may_return = isinstance(error, BadOutput) or (isinstance(error, CapReached) and not error.is_final)
        if isinstance(error, Fatal) and not may_return and not self._is_over:
            self._is_over = True
            log.warning("the model is left out from here on: %s", error)

    def _read(self, answer: str, base: Program | None) -> list[Program]:
        """What is new of an answer, and legal at every shape."""
        extracted = extract(answer)
        for rejected in extracted.rejections:
            self._line.record.on_reject(self.origin, rejected)
        found: dict[str, Program] = {p.text: p for p in self._waiting}
        before = len(found)
        for proposal in extracted.proposals:
            try:
                configs = resolve(proposal, self._table.shapes, self._line.sandbox, base)
                program = self._table.program(configs)
                if program.text in found or self._is_known(program):
                    raise Rejected("known", "all of it has been measured")
            except Rejected as rejected:
                self._line.record.on_reject(self.origin, rejected)
                continue
            found[program.text] = program
        return list(found.values())[before:]


def configs_of(text: str, shapes: Sequence[Shape], sandbox: Sandbox) -> list[Config]:
    """What a program says for each shape.

    Raises:
        Rejected: For one of them it fails or gives an illegal configuration; the shape is named.
    """
    return resolve(Proposal(text), shapes, sandbox)


def resolve(
    proposal: Proposal, shapes: Sequence[Shape], sandbox: Sandbox, base: Program | None = None
) -> list[Config]:
    """:func:`configs_of`, also for a JSON object, which may leave out what it takes over from ``base``."""
    if proposal.config is None:
        with suppress(Rejected):  # whose fault it was shows only one by one
            return [*sandbox.run_each(proposal.text, [s.space for s in shapes], [s.problem for s in shapes])]
    out: list[Config] = []
    for i, shape in enumerate(shapes):
        try:
            out.append(sandbox.resolve(proposal, shape.space, shape.problem, base.configs[i] if base else None))
        except Rejected as rejected:
            raise Rejected(rejected.stage, f"shape {shape.name}: {rejected.reason}") from None
    return out


def _system(folder: Path, table: Table, source: str, n: int) -> str:
    by_text: dict[str, list[str]] = {}
    for shape in table.shapes:
        by_text.setdefault(space_json(shape.space), []).append(shape.name)
    return _template(folder / "system.md").render(
        n=n,
        kernel=table.kernel,
        source=source,
        problems=json.dumps({s.name: dict(s.problem) for s in table.shapes}, indent=1),
        spaces=[(", ".join(names), text) for text, names in by_text.items()],
    )


def _template(path: Path) -> Any:
    import jinja2.sandbox

    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(path.read_text(encoding="utf-8"))


def _quoted(failure: str) -> str:
    """Part of it may come from what failed."""
    return json.dumps(printable(failure).replace("`", chr(39)))
