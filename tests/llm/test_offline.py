"""Recorded answers and answers of a person."""

from __future__ import annotations

from pathlib import Path

import pytest

from evotune.errors import Fatal, Transient, UsageError
from evotune.llm import HumanProvider, MockProvider, Recorder, ReplayProvider

from .test_mock import prompt


def test_recorded_answers_come_back_without_their_provider(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    recorder = Recorder(MockProvider(), path)
    asked = [prompt(i) for i in range(3)]
    given = [recorder.complete(p.system, p.user, n=8).text for p in asked]
    replay = ReplayProvider(path)
    backwards = [replay.complete(p.system, p.user, n=8) for p in reversed(asked)]
    assert [r.text for r in reversed(backwards)] == given
    assert all(r.usage.usd == 0.0 for r in backwards)


def test_a_prompt_that_was_not_recorded_gets_the_next_unused_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "a", "text": "first"}\n\n{"prompt": "b", "text": "second"}\n', encoding="utf-8")
    replay = ReplayProvider(path)
    assert [replay.complete("s", str(i), n=1).text for i in range(2)] == ["first", "second"]
    with pytest.raises(Fatal, match="all 2 answers"):
        replay.complete("s", "u", n=1)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json", '{"prompt": "a", "text": "b", "key": 1}'])
def test_a_broken_recording_is_a_mistake(text: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"answers\.jsonl"):
        ReplayProvider(path)


def test_a_missing_recording_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        ReplayProvider(tmp_path / "missing")


def test_a_person_finds_the_prompt_and_their_answer_is_used_when_it_is_whole(tmp_path: Path) -> None:
    written = iter(["", "{", '{"configs": []}', '{"configs": []}'])

    def sleep(seconds: float) -> None:
        (question,) = tmp_path.glob("*.prompt.md")
        assert "the system\n\nthe user" in question.read_text(encoding="utf-8")
        answer = question.with_name(question.name.replace("prompt", "answer"))
        answer.write_text(next(written), encoding="utf-8")

    person = HumanProvider(tmp_path, sleep=sleep)
    assert person.complete("the system", "the user", n=1).text == '{"configs": []}'
    # Asked again, also by another run, nobody has to answer twice.
    again = HumanProvider(tmp_path, sleep=lambda seconds: None)
    assert again.complete("the system", "the user", n=1).text == '{"configs": []}'


def test_a_person_who_does_not_answer_is_an_outage(tmp_path: Path) -> None:
    now = iter(range(1000))
    person = HumanProvider(tmp_path, timeout_s=5, sleep=lambda seconds: None, clock=lambda: float(next(now)))
    with pytest.raises(Transient, match="no answer in"):
        person.complete("s", "u", n=1)


def test_a_folder_that_cannot_be_made_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(Fatal, match="cannot write"):
        HumanProvider(tmp_path / "file" / "folder").complete("s", "u", n=1)
