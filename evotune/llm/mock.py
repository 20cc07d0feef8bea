"""A language model that is none: it reads the prompt and answers as one would, without knowledge.

It knows nothing about which configuration is fast. It is the double of a model in tests, and what a
run without a key uses. Everything it says is derived from the prompt and the seed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from random import Random
from typing import Any, cast

from evotune.errors import BadOutput, UsageError
from evotune.llm.provider import Completion, Usage, estimate_tokens
from evotune.space import ConfigSpace, Parameter, Value

# Models break stated rules now and then; so that the search learns to live with it, so does this.
SLIP_RATE = 0.06
PROGRAM_RATE = 0.35
TRIES = 20

_JSON_BLOCK = re.compile(r"^```json[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SPEECH = (
    "I am a mock and know nothing about speed; these are guesses.",
    "This is a mock, not a language model. Here are {n} variations.",
    "Mock answer: the reasoning that a model would give is left out.",
)


class MockProvider:
    """Proposes variations of what the prompt shows, mostly legal, some as JSON, some as programs.

    Args:
        seed: Another seed, other answers.
        temperature: 0 to 1; how far it strays from the incumbent.
    """

    name = "mock"
    model = "mock"

    def __init__(self, seed: int = 0, temperature: float = 0.8) -> None:
        if not 0 <= temperature <= 1:
            raise UsageError(f"temperature {temperature} of the mock is not in [0, 1]")
        self._seed = seed
        self._temperature = temperature

    def complete(self, system: str, user: str, *, n: int) -> Completion:
        """The same answer to the same prompt, in any process.

        Raises:
            BadOutput: The prompt holds no space as a JSON block.
        """
        digest = hashlib.sha256(f"{self._seed}\0{system}\0{user}".encode("utf-8", "replace")).digest()
        rng = Random(int.from_bytes(digest[:8], "big"))
        blocks = _json_blocks(system) + _json_blocks(user)
        space = _space(blocks)
        states = [b for b in blocks if "incumbent" in b or "focus" in b]
        state = states[-1] if states else {}
        if "problems" in state:
            text = _rules([self._rule(space, state, rng) for _ in range(n)])
        else:
            text = _answer(self._propose(space, state, n, rng), rng)
        return Completion(text, Usage(estimate_tokens(system + user), estimate_tokens(text), usd=0.0))

    def _propose(self, space: ConfigSpace, state: Mapping[str, Any], n: int, rng: Random) -> list[dict[str, Value]]:
        shown = [state.get("incumbent"), *(state.get("top") or ())]
        anchors = [cast("dict[str, Value]", c) for c in shown if isinstance(c, dict)]
        anchors = [c for c in anchors if not space.violations(c)] or [dict(space.default)]
        focus = state.get("focus")
        configs: list[dict[str, Value]] = []
        for _ in range(TRIES * n):
            if len(configs) == n:
                break
            if focus == "opposite":
                config = self._opposite(space, anchors[0], rng)
            else:
                config = self._mutate(space, rng.choice(anchors), focus == "jump", rng)
            if config not in configs and (not space.violations(config) or rng.random() < SLIP_RATE):
                configs.append(config)
        return configs or space.sample(rng, 1)

    def _mutate(
        self, space: ConfigSpace, anchor: Mapping[str, Value], is_jump: bool, rng: Random
    ) -> dict[str, Value]:
        """Change one to several parameters, each by a step or, when it is hot, by a leap."""
        config = dict(anchor)
        width = 1 + sum(rng.random() < self._temperature / 2 for _ in space.names[1:])
        if is_jump:
            width = max(width, (len(space.names) + 1) // 2)
        for name in rng.sample(space.names, min(width, len(space.names))):
            parameter = space.parameters[name]
            is_leap = is_jump or rng.random() < self._temperature
            config[name] = _other(parameter, config[name], is_leap, rng)
        return config

    def _rule(self, space: ConfigSpace, state: Mapping[str, Any], rng: Random) -> str:
        """A program with one configuration below some size and another above, each a variation of what
        is best at a problem on its side."""
        problems: dict[str, dict[str, Any]] = state["problems"]
        best: dict[str, dict[str, Value]] = state.get("configs") or {}

        def near(shapes: list[str]) -> dict[str, Value]:
            legal = [_at(space, problems[shape]) for shape in shapes]
            anchor = dict(best.get(rng.choice(shapes), space.default))
            for _ in range(TRIES):
                config = self._mutate(space, anchor, state.get("focus") == "jump", rng)
                if not any(s.violations(config) for s in legal) or rng.random() < SLIP_RATE:
                    return config
            return anchor

        divisions = _divisions(list(problems.values()))
        if not divisions:
            return _program(near(list(problems)), rng)
        name, value = rng.choice(divisions)
        low = near([shape for shape, p in problems.items() if p[name] <= value])
        high = near([shape for shape, p in problems.items() if p[name] > value])
        test = f"    if problem[{name!r}] <= {value!r}:\n"
        return f"def get_kernel_config(problem):\n{test}        return {low!r}\n    return {high!r}\n"

    def _opposite(self, space: ConfigSpace, anchor: Mapping[str, Value], rng: Random) -> dict[str, Value]:
        """Most parameters mirrored within their values; the temperature blurs where they land."""
        config = dict(anchor)
        for name, parameter in space.parameters.items():
            if rng.random() < 0.25:
                continue
            last = len(parameter.values) - 1
            i = last - (parameter.index(anchor[name]) or 0) + round(rng.gauss(0, self._temperature))
            config[name] = parameter.values[min(max(i, 0), last)]
        return config


def _other(parameter: Parameter, value: Value, is_leap: bool, rng: Random) -> Value:
    values = parameter.values
    if len(values) == 1:
        return value
    i = parameter.index(value) or 0
    if parameter.ordered and not is_leap:
        return values[i + 1] if i == 0 or (i + 1 < len(values) and rng.random() < 0.5) else values[i - 1]
    return values[(i + rng.randrange(1, len(values))) % len(values)]


def _answer(configs: list[dict[str, Value]], rng: Random) -> str:
    """Prose, then the configurations: usually one JSON list, sometimes programs, sometimes both."""
    speech = rng.choice(_SPEECH).format(n=len(configs))
    in_programs = [c for c in configs if rng.random() < PROGRAM_RATE] if rng.random() < 0.5 else []
    in_json = [c for c in configs if c not in in_programs]
    parts = [speech]
    if in_json:
        parts.append("```json\n" + json.dumps({"configs": in_json}) + "\n```")
    parts += [f"```python\n{_program(c, rng)}```" for c in in_programs]
    return "\n\n".join(parts) + "\n"


def _at(space: ConfigSpace, problem: Mapping[str, Value]) -> ConfigSpace:
    """The space for another problem, as far as its constraints tell what changes."""
    constants = {name: problem.get(name, value) for name, value in space.constants.items()}
    return ConfigSpace(space.parameters, [c.text for c in space.constraints], constants=constants)


def _divisions(problems: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Sizes, each with a value that some problems exceed and others do not."""
    names = [name for name in problems[0] if all(type(p[name]) is int for p in problems)]
    return [(name, value) for name in names for value in sorted({p[name] for p in problems})[:-1]]


def _rules(programs: list[str]) -> str:
    return "\n\n".join([_SPEECH[0], *(f"```python\n{program}```" for program in programs)]) + "\n"


def _program(config: Mapping[str, Value], rng: Random) -> str:
    """A small program, in one of the ways in which a model writes one."""
    if rng.random() < 0.5:
        body = "".join(f"        {name!r}: {value!r},\n" for name, value in config.items())
        return f"def get_kernel_config():\n    # written by a mock\n    return {{\n{body}    }}\n"
    lines = "".join(f"    config[{name!r}] = {value!r}\n" for name, value in config.items())
    return f"def get_kernel_config():\n    # written by a mock\n    config = {{}}\n{lines}    return config\n"


def _json_blocks(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for match in _JSON_BLOCK.finditer(text):
        try:
            block = json.loads(match.group(1))
        except ValueError:
            continue
        if isinstance(block, dict):
            found.append(cast("dict[str, Any]", block))
    return found


def _space(blocks: list[dict[str, Any]]) -> ConfigSpace:
    for block in blocks:
        if "parameters" in block:
            try:
                return ConfigSpace.from_dict(
                    block["parameters"],
                    block.get("constraints") or (),
                    constants=block.get("constants"),
                    default=block.get("default"),
                )
            except (UsageError, TypeError) as error:
                raise BadOutput(f"the mock cannot read the space in the prompt: {error}") from None
    raise BadOutput("the mock finds no space in the prompt; keep the JSON block with `parameters` in system.md")
