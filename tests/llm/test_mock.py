"""The mock answers like a model: from the prompt alone, varied, and the same for the same prompt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evotune.errors import BadOutput
from evotune.llm import Context, MockProvider, Prompt, PromptBuilder, Scored
from evotune.llm.prompt import Focus
from evotune.program import extract, run
from evotune.space import Config, ConfigSpace

PROMPTS = Path(__file__).parents[2] / "prompts"
SPACE = ConfigSpace.from_dict(
    {
        "BLOCK_M": [16, 32, 64, 128, 256],
        "BLOCK_N": [16, 32, 64, 128, 256],
        "BLOCK_K": [16, 32, 64],
        "num_warps": [1, 2, 4, 8],
        "layout": ["nt", "tn", "nn"],
        "swizzle": [True, False],
    },
    ["BLOCK_M * BLOCK_N <= LIMIT", "BLOCK_K <= BLOCK_M"],
    constants={"LIMIT": 16384},
    default={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "layout": "nt", "swizzle": True},
)
INCUMBENT = {**SPACE.default, "BLOCK_M": 32}


def prompt(call: int, focus: Focus = "exploit") -> Prompt:
    context = Context("matmul", SPACE, incumbent=Scored(INCUMBENT, 1.5), focus=focus, call=call)
    return PromptBuilder(PROMPTS).build(context)


def ask(asked: Prompt, seed: int = 0, temperature: float = 0.8) -> str:
    return MockProvider(seed, temperature).complete(asked.system, asked.user, n=asked.n).text


def json_configs(answers: list[str]) -> list[Config]:
    found = [p.config for a in answers for p in extract(a).proposals if p.config is not None]
    return found  # type: ignore[return-value]


def distance(config: Config) -> int:
    return sum(config[n] != INCUMBENT[n] for n in SPACE.names)


def test_every_answer_can_be_read_and_most_configs_are_legal() -> None:
    answers = [ask(prompt(i)) for i in range(60)]
    extractions = [extract(a) for a in answers]
    assert not [r for e in extractions for r in e.rejections]
    configs = json_configs(answers)
    illegal = sum(bool(SPACE.violations(c)) for c in configs)
    assert len(configs) > 200
    assert 0 < illegal < 0.1 * len(configs), "models slip now and then, but seldom"


def test_answers_come_as_json_and_as_programs_that_run() -> None:
    proposals = [p for i in range(20) for p in extract(ask(prompt(i))).proposals]
    programs = [p.text for p in proposals if p.config is None]
    assert 0 < len(programs) < len(proposals)
    assert all(set(run(text, SPACE)) == set(SPACE.names) for text in programs[:4])


def test_the_same_prompt_has_the_same_answer_in_another_process() -> None:
    asked = prompt(3)
    code = "import sys; from evotune.llm import MockProvider as M; s, u = sys.stdin.read().split('\\0'); "
    code += "print(M(5).complete(s, u, n=8).text, end='')"
    found = subprocess.run(
        [sys.executable, "-c", code],
        input=f"{asked.system}\0{asked.user}",
        text=True,
        capture_output=True,
        check=True,
    )
    assert found.stdout == ask(asked, seed=5)


def test_another_seed_or_call_has_another_answer() -> None:
    assert len({ask(prompt(0), seed=s) for s in range(5)} | {ask(prompt(i)) for i in range(5)}) == 9


def test_temperature_sets_how_far_it_strays() -> None:
    def mean_distance(temperature: float) -> float:
        configs = json_configs([ask(prompt(i), temperature=temperature) for i in range(20)])
        return sum(map(distance, configs)) / len(configs)

    assert mean_distance(0.0) == 1.0
    assert mean_distance(0.0) < mean_distance(0.5) < mean_distance(1.0)


def test_it_follows_the_focus_of_the_island() -> None:
    def mean_distance(focus: Focus) -> float:
        configs = json_configs([ask(prompt(i, focus), temperature=0.3) for i in range(20)])
        return sum(map(distance, configs)) / len(configs)

    assert mean_distance("exploit") < 2
    assert mean_distance("jump") >= 2.5
    assert mean_distance("opposite") >= 2.5


def test_it_says_that_it_is_a_mock() -> None:
    assert MockProvider.name == MockProvider.model == "mock"
    assert all("mock" in ask(prompt(i)).lower() for i in range(10))


def test_it_costs_nothing() -> None:
    assert MockProvider().complete(*_texts(prompt(0)), n=8).usage.usd == 0.0


def test_it_knows_only_what_the_prompt_says() -> None:
    with pytest.raises(BadOutput, match="parameters"):
        MockProvider().complete("You tune kernels.", "Give 8 configurations.", n=8)


def _texts(asked: Prompt) -> tuple[str, str]:
    return asked.system, asked.user
