"""Builds prompts: what a model is told about the kernel, the device, the space and the search.

Nothing that a model wrote goes into a prompt. Configurations are rendered here, from values of the
space; error texts are cut to printable ASCII, because a program may choose what it raises.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from evotune.errors import UsageError, nearest
from evotune.llm.client import Prompt
from evotune.llm.provider import CHARS_PER_TOKEN, estimate_tokens
from evotune.llm.secret import printable
from evotune.space import Config, ConfigSpace

_log = logging.getLogger(__name__)

Focus = Literal["exploit", "jump", "opposite"]
BUDGET_TOKENS = 6000
FOCUS = {
    "exploit": "Focus: refine. Change one or two parameters of the incumbent or of another of the best.",
    "jump": "Focus: a structural jump. Change half of the parameters together, as another design would.",
    "opposite": "Focus: the opposite corner. Go where most values are far from the incumbent's.",
}
INGREDIENTS = (
    "source",
    "problem",
    "roofline",
    "device",
    "constraints",
    "incumbent",
    "top",
    "failures",
    "static",
    "untouched",
    "tried",
    "focus",
)
TEMPLATES = {
    # file: (placeholders it may use, those it must use)
    "system.md": ({"n", "space", "programs", "space_json", "kernel", *INGREDIENTS[:5]}, {"space_json"}),
    "user.md": ({"n", "state", "anchor", *INGREDIENTS[6:]}, {"state"}),
}
SHOWN_TOP = 8
SHOWN_FAILURES = 6
SHOWN_TRIED = 24
REASON_CHARACTERS = 240
# What a compiler says of a resource that ran out, with the numbers that say by how much.
_NUMBERED = re.compile(r"(?=.*\d)(?=.*(?:resource|memory|register|limit|required|exceed|too (?:many|much)))", re.I)
_PARTS = re.compile(r"\n| \| |; |\. ")
_ERROR = re.compile(r"error|fatal|invalid|unsupported|illegal", re.I)


@dataclass(frozen=True)
class Scored:
    """A configuration and its latency."""

    config: Config
    latency_ms: float


@dataclass(frozen=True)
class Failed:
    """A configuration (None if not even that was found), the stage that failed, and why."""

    config: Config | None
    stage: str
    reason: str


@dataclass(frozen=True)
class Roofline:
    """What the problem needs and what the device can do; work is 0, and a peak None, where it is not known."""

    flops: float
    bytes_moved: float
    peak_flops_per_s: float | None = None
    peak_bytes_per_s: float | None = None

    @property
    def bound_ms(self) -> float | None:
        """No configuration can be faster than this; None if no work is known whose peak is, too."""
        pairs = ((self.flops, self.peak_flops_per_s), (self.bytes_moved, self.peak_bytes_per_s))
        return max((1e3 * work / peak for work, peak in pairs if work and peak), default=None)


@dataclass(frozen=True)
class Context:
    """Everything that a prompt may tell.

    ``call`` is the number of the question, so that asking twice in one state is not the same
    question; ``top`` is best first; ``static`` are compile-time facts of the incumbent.
    """

    kernel: str
    space: ConfigSpace
    source: str = ""
    problem: Mapping[str, int | float | str] = field(default_factory=dict[str, "int | float | str"])
    device: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])
    roofline: Roofline | None = None
    incumbent: Scored | None = None
    top: Sequence[Scored] = ()
    failures: Sequence[Failed] = ()
    static: Mapping[str, float | str] = field(default_factory=dict[str, "float | str"])
    tried: Sequence[Config] = ()
    focus: Focus = "exploit"
    call: int = 0
    n: int = 8


class PromptBuilder:
    """Renders ``system.md`` and ``user.md`` of a folder within a budget of tokens.

    Args:
        folder: Holds the two templates (jinja2).
        own: Templates of the user's; what is missing there is taken from ``folder``.
        budget_tokens: For both together. What is least missed is dropped first; the output format,
            the space, its constraints and the incumbent always stay.
        without: Ingredients to leave out, of ``INGREDIENTS``.
        programs: Whether to invite programs besides JSON.

    Raises:
        UsageError: A template is missing, is broken, uses an unknown placeholder, or lacks a needed one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        own: Path | None = None,
        budget_tokens: int = BUDGET_TOKENS,
        without: Collection[str] = (),
        programs: bool = True,
    ) -> None:
        if unknown := sorted(set(without) - set(INGREDIENTS)):
            hint = nearest(unknown[0], INGREDIENTS)
            raise UsageError(f"a prompt has no ingredients {unknown}{hint}; known: {list(INGREDIENTS)}")
        if own is not None and not any((own / name).is_file() for name in TEMPLATES):
            raise UsageError(f"the prompt folder {own} has neither {' nor '.join(TEMPLATES)}")
        chosen = (own if own and (own / name).is_file() else folder for name in TEMPLATES)
        self._system, self._user = (_load(f / name) for f, name in zip(chosen, TEMPLATES, strict=True))
        self._budget_tokens = budget_tokens
        self._without = frozenset(without)
        self._programs = programs
        self._has_warned = False

    def build(self, context: Context) -> Prompt:
        """The prompt for a state of the search."""
        prompt = self._render(context, self._without)
        for without, lesser in _reductions(context, self._without, self._budget_tokens):
            if _tokens(prompt) <= self._budget_tokens:
                return prompt
            prompt = self._render(lesser, without)
        if _tokens(prompt) > self._budget_tokens and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the prompt has about %d tokens, more than %d, even without all that can be left out",
                _tokens(prompt),
                self._budget_tokens,
            )
        return prompt

    def _render(self, context: Context, without: Collection[str]) -> Prompt:
        system = {"n": context.n, "space": context.space, "kernel": context.kernel, "programs": self._programs}
        system |= {"space_json": space_json(context.space, constraints="constraints" not in without)}
        system |= _stable(context)
        user = {"n": context.n, "state": _state(context, without)}
        user |= _volatile(context, tells_incumbent="incumbent" not in without)
        blank = dict.fromkeys(without, "")
        return Prompt(
            _fill(self._system, {**system, **{k: v for k, v in blank.items() if k in system}}),
            _fill(self._user, {**user, **{k: v for k, v in blank.items() if k in user}}),
            context.n,
        )


def answer_schema(space: ConfigSpace, *, programs: bool = False) -> dict[str, Any]:
    """JSON schema of ``{"configs": [...]}`` with every parameter's values, for structured output.

    With ``programs`` there is a list of their texts beside it, ``{"configs": [...], "programs": [...]}``.
    """
    properties = {name: {"enum": list(p.values)} for name, p in space.parameters.items()}
    config = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    lists: dict[str, Any] = {"configs": {"type": "array", "items": config}}
    if programs:
        lists["programs"] = {"type": "array", "items": {"type": "string"}}
    return {"type": "object", "properties": lists, "required": list(lists), "additionalProperties": False}


def space_json(space: ConfigSpace, *, constraints: bool = True) -> str:
    """The typed space as JSON, one parameter per line."""
    values = ",\n".join(f"    {json.dumps(n)}: {json.dumps(p.values)}" for n, p in space.parameters.items())
    rest = {
        "constraints": [c.text for c in space.constraints if constraints],
        "constants": space.constants if constraints else {},
        "default": space.default,
    }
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in rest.items())
    return f'{{\n  "parameters": {{\n{values}\n  }},\n{lines}\n}}'


def _stable(context: Context) -> dict[str, str]:
    return {
        "source": context.source.rstrip(),
        "problem": _facts(context.problem),
        "roofline": _roofline(context.roofline),
        "device": _facts(context.device),
        "constraints": "; ".join(c.text for c in context.space.constraints),
    }


def _volatile(context: Context, *, tells_incumbent: bool) -> dict[str, Any]:
    has_incumbent = context.incumbent is not None and tells_incumbent
    anchor = context.incumbent.config if context.incumbent and has_incumbent else context.space.default
    shown = [s for s in context.top if s.config != anchor][:SHOWN_TOP]
    seen = [*context.tried, *(s.config for s in context.top)]
    untouched = [n for n in context.space.names if len({repr(c[n]) for c in (*seen, anchor)}) == 1]
    return {
        "anchor": "incumbent" if has_incumbent else "default",
        # The last line weighs most with a model, so the best comes last (OPRO, Yang et al. 2023).
        "top": [f"{s.latency_ms:.5g} ms: {difference(s.config, anchor)}" for s in reversed(shown)],
        "failures": [_failure(f, anchor) for f in context.failures[-SHOWN_FAILURES:]],
        "static": _facts(context.static),
        "untouched": ", ".join(untouched) if seen else "",
        "tried": _tried(context),
        "focus": FOCUS[context.focus],
    }


def _state(context: Context, without: Collection[str]) -> str:
    state: dict[str, Any] = {"call": context.call}
    if "focus" not in without:
        state["focus"] = context.focus
    if context.incumbent and "incumbent" not in without:
        state["incumbent"] = dict(context.incumbent.config)
        state["incumbent_latency_ms"] = float(f"{context.incumbent.latency_ms:.5g}")
        bound_ms = context.roofline.bound_ms if context.roofline and "roofline" not in without else None
        if bound_ms:
            state["percent_of_roofline"] = round(100 * bound_ms / context.incumbent.latency_ms, 1)
    return json.dumps(state)


def difference(config: Config, anchor: Config) -> str:
    """``BLOCK_M=64, num_warps=8``: what a configuration has that another has not."""
    return ", ".join(f"{n}={v!r}" for n, v in config.items() if anchor.get(n) != v) or "no difference"


def _failure(failed: Failed, anchor: Config) -> str:
    what = f"{difference(failed.config, anchor)}: " if failed.config is not None else ""
    # Quoted, because part of it may come from the program that failed.
    said = json.dumps(shortened(failed.reason).replace("`", "'"))
    return f"{what}{printable(failed.stage, 20)} failed: {said}"


def shortened(reason: str) -> str:
    """One line of at most ``REASON_CHARACTERS`` of what may be pages from a compiler: first what has
    numbers of what ran out, then errors, then the rest, each once."""
    if len(reason) <= REASON_CHARACTERS:
        return printable(reason)
    parts = list(dict.fromkeys(" ".join(part.split()) for part in _PARTS.split(reason) if part.strip()))
    parts.sort(key=lambda part: 0 if _NUMBERED.search(part) else 1 if _ERROR.search(part) else 2)
    return printable(" | ".join(parts), REASON_CHARACTERS)


def _tried(context: Context) -> str:
    """How many, and the latest as rows of values, in which a model can see what is new."""
    if not context.tried:
        return ""
    rows = [json.dumps([c[n] for n in context.space.names]) for c in context.tried[-SHOWN_TRIED:]]
    head = f"{len(context.tried)} configurations have been tried. The latest, values in the order of the space:"
    return "\n".join([head, "", *rows])


def _facts(facts: Mapping[str, float | str]) -> str:
    return ", ".join(f"{k} = {_number(v) if isinstance(v, float) else v}" for k, v in facts.items())


def _number(value: float) -> str:
    """Whole numbers in full: a limit of 232448 bytes is not one of 2.32e5."""
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.4g}"


def _roofline(roofline: Roofline | None) -> str:
    if roofline is None:
        return ""
    flops, moved, bound_ms = roofline.flops, roofline.bytes_moved, roofline.bound_ms
    known = [f"takes {flops:.3g} FLOP"] if flops else []
    known += [f"moves {moved:.3g} bytes"] if moved else []
    text = f"It {' and '.join(known)}" + (f": {flops / moved:.3g} FLOP/byte." if flops and moved else ".")
    if bound_ms is None:
        return text
    if not (flops and moved and roofline.peak_flops_per_s and roofline.peak_bytes_per_s):
        limit = "memory bandwidth" if moved and roofline.peak_bytes_per_s else "arithmetic"
        return f"{text} By the device's peak of {limit} that is at least {bound_ms:.4g} ms."
    ridge = roofline.peak_flops_per_s / roofline.peak_bytes_per_s
    limit = "arithmetic" if flops / moved > ridge else "memory bandwidth"
    return f"{text} The device's ridge is at {ridge:.3g}, so {limit} limits it: at least {bound_ms:.4g} ms."


def _reductions(
    context: Context, without: frozenset[str], budget_tokens: int
) -> list[tuple[frozenset[str], Context]]:
    """Ever shorter prompts. Measurements are worth more than prose, and the space most of all."""
    short = replace(context, failures=context.failures[-2:], top=context.top[:4])
    light = without | {"static", "untouched", "tried"}
    steps = [(without, short), (light, short)]
    share = budget_tokens * CHARS_PER_TOKEN // 2
    while share >= 1000:
        steps.append((light, replace(short, source=cut(short.source, share))))
        share //= 2
    steps.append((light | {"source"}, short))
    steps.append((light | {"source", "device", "roofline", "failures"}, short))
    steps.append((light | {"source", "device", "roofline", "failures", "top", "problem"}, short))
    return steps


def cut(text: str, limit: int) -> str:
    """A text of at most ``limit`` characters: its middle lines give way to a mark."""
    if len(text) <= limit:
        return text
    mark = "\n[... {} lines left out ...]\n"
    half = max(0, limit - len(mark) - 8) // 2
    head = text[:half].rpartition("\n")[0] or text[:half]
    tail = text[len(text) - half :].partition("\n")[2] or text[len(text) - half :]
    gone = len(text.splitlines()) - len(head.splitlines()) - len(tail.splitlines())
    return head + mark.format(gone) + tail


def _tokens(prompt: Prompt) -> int:
    return estimate_tokens(prompt.system + prompt.user)


def _load(path: Path) -> Any:
    import jinja2
    import jinja2.meta
    import jinja2.sandbox

    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        text = path.read_text(encoding="utf-8")
        used = jinja2.meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the prompt template {path}: {error}") from None
    except jinja2.TemplateError as error:
        raise UsageError(f"the prompt template {path} is broken: {error}") from None
    known, needed = TEMPLATES[path.name]
    problems = [f"there is no placeholder {n!r}{nearest(n, known)}" for n in sorted(used - known)]
    problems += [f"placeholder {n!r} is missing" for n in sorted(needed - used)]
    if problems:
        raise UsageError(f"the prompt template {path}: {'; '.join(problems)}; known: {sorted(known)}")
    return template


def _fill(template: Any, values: Mapping[str, Any]) -> str:
    import jinja2

    try:
        return template.render(values)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise UsageError(f"a prompt template cannot be filled: {error}") from None
