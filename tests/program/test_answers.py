"""What is found in the answers of models."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evotune.program import answers, extract

PROGRAM = "def get_kernel_config():\n    return {'x': 1}\n"


def configs(answer: str) -> list[object]:
    return [p.config for p in extract(answer).proposals]


def reasons(answer: str) -> list[str]:
    return [r.reason for r in extract(answer).rejections]


@pytest.mark.parametrize(
    "answer",
    [
        '{"configs": [{"x": 1}, {"x": 2}]}',
        '[{"x": 1}, {"x": 2}]',
        '{"x": 1}\n{"x": 2}',
        'Two ideas:\n```json\n[{"x": 1}, {"x": 2}]\n```\nBoth [1] are good.',
        '```json\n{"x": 1}\n```\nor\n~~~\n{"x": 2}\n~~~\n',
        'Sizes [16, 32] fit.\n{"configs": [{"x": 1}, {"x": 2}]}\nSee [above].',
        'An unclosed [bracket, a 5" tile:\n{"x": 1} and\n{"x": 2}',
        '```json\r\n{"configs": [\r\n{"x": 1},\r\n{"x": 2}]}\r\n```',
        '```json\n{"configs": [{"x": 1}, {"x": 2}]}',
    ],
)
def test_json_is_found_however_it_is_wrapped(answer: str) -> None:
    assert configs(answer) == [{"x": 1}, {"x": 2}]
    assert reasons(answer) == []


def test_each_fenced_program_is_a_proposal_of_its_own() -> None:
    answer = f"First:\n```python\n{PROGRAM}```\nSecond:\n````py\n# ```\n{PROGRAM}````\n"
    found = extract(answer)
    assert [p.text for p in found.proposals] == [PROGRAM, f"# ```\n{PROGRAM}"]
    assert found.rejections == ()


def test_a_program_without_a_fence_is_taken_whole() -> None:
    text = f"import math\n\n{PROGRAM}"
    assert [p.text for p in extract(text).proposals] == [text]


def test_an_answer_of_json_alone_may_hold_programs_as_texts() -> None:
    found = extract(json.dumps({"configs": [{"x": 1}], "programs": [PROGRAM, "I have no other."]}))
    assert [(p.text, p.config) for p in found.proposals] == [('{"x": 1}', {"x": 1}), (PROGRAM, None)]
    assert [r.reason for r in found.rejections] == ["a configuration is a JSON object, found a str"]


def test_programs_and_json_may_share_an_answer() -> None:
    found = extract(f'```python\n{PROGRAM}```\n```json\n{{"x": 1}}\n```\n')
    assert [(p.text, p.config) for p in found.proposals] == [(PROGRAM, None), ('{"x": 1}', {"x": 1})]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"x": NaN}', "'x': NaN is not a JSON number"),
        ('{"x": -Infinity}', "-Infinity"),
        ('{"x": 1e999}', "1e999 is not finite"),
        ('{"x": ' + "9" * 5000 + "}", "an integer of 5000 digits"),
        ('{"x": 1, "x": 2}', "key 'x' appears twice"),
        ('{"a": {"x": 1, "x": 2}}', "'a': key 'x' appears twice"),
        ("3", "found a int"),
    ],
)
def test_a_faulty_object_does_not_cost_its_neighbours(bad: str, reason: str) -> None:
    answer = f'[{{"x": 1}}, {bad}, {{"x": 2}}]'
    assert configs(answer) == [{"x": 1}, {"x": 2}]
    assert len(reasons(answer)) == 1
    assert reason in reasons(answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "neither JSON nor"),
        ("I cannot help with that.", "neither JSON nor"),
        ("{'x': 1}", "not JSON"),
        ('{"x": 1,}', "not JSON"),
        ("```diff\n- a\n+ b\n```", "a diff block holds neither"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested deeper than 16"),
        ("[" * 100_000, "nested deeper than 16"),
        ("x" * (answers.ANSWER_BYTES + 1), "longer than"),
        ("\u20ac" * (answers.ANSWER_BYTES // 2), "longer than"),
    ],
)
def test_an_answer_without_a_proposal_says_why(answer: str, reason: str) -> None:
    assert configs(answer) == []
    assert len(reasons(answer)) == 1
    assert reason in reasons(answer)[0]
    assert len(reasons(answer)[0]) <= 300


def test_the_number_of_proposals_is_bounded() -> None:
    found = extract(json.dumps([{"x": i} for i in range(1000)]))
    assert len(found.proposals) == answers.PROPOSALS
    assert "only the first 64" in found.rejections[0].reason
    assert len(extract("{x} " * 10_000).rejections) == answers.PROPOSALS + 1


@pytest.mark.parametrize(
    "unit",
    ["{", "[", "}", '"', "```\n", "```\n{\n", "{}", "[]", '{"', "{[", "def get_kernel_config", "~~~", "\\", '"\\'],
)
def test_work_is_linear_in_the_answer(unit: str) -> None:
    # Processor time of this process, with a hundred times the time that it takes as the bound.
    start = time.process_time()
    extract(unit * (answers.ANSWER_BYTES // len(unit)))
    assert time.process_time() - start < 20


def test_nothing_is_raised_for_any_text() -> None:
    pieces = [
        "{",
        "}",
        "[",
        "]",
        '"',
        ":",
        ",",
        "1",
        "NaN",
        "\\",
        "```",
        "~~~",
        "\n",
        "json",
        "x",
        "\ud800",
        "\x00",
    ]

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from([*pieces, '{"x": 1}', PROGRAM]), max_size=40))
    def check(parts: list[str]) -> None:
        found = extract("".join(parts))
        assert found.proposals or found.rejections
        assert all(r.stage == "parse" and r.reason.isascii() and len(r.reason) <= 300 for r in found.rejections)

    check()


def test_the_source_of_a_kernel_is_no_proposal() -> None:
    kernel = (
        "```python\n@triton.jit\ndef add(x, y, out, n, BLOCK: tl.constexpr):\n    tl.store(out, tl.load(x))\n```\n"
    )
    assert extract(kernel).proposals == ()
    assert reasons(kernel) == ["a python block holds neither JSON nor a program"]


def test_the_answer_is_not_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    found = extract(f"```python\nopen({str(canary)!r}, 'w')\n{PROGRAM}```\n")
    assert len(found.proposals) == 1
    assert not canary.exists()
