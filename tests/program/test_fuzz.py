"""Bent programs and answers; `benchmarks/reliability.py fuzz` does the same for ten minutes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evotune.errors import Rejected
from evotune.program import Proposal, Sandbox, check, extract
from tests.reliability.fuzzing import SPACE, bent, check_extraction, check_reason, check_run

# The same examples every time: a test that fails must fail again.
BOUNDED = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@settings(BOUNDED, max_examples=200)
@given(st.one_of(bent(), st.text(max_size=2000)))
def test_any_answer_is_read_without_an_error(answer: str) -> None:
    check_extraction(answer)


@pytest.mark.slow
def test_any_program_gives_a_legal_configuration_or_a_plain_reason() -> None:
    accepted = 0
    with Sandbox() as sandbox:

        @settings(BOUNDED, max_examples=100)
        @given(bent())
        def ask(program: str) -> None:
            nonlocal accepted
            accepted += check_run(sandbox, program)

        ask()
    assert accepted, "bent beyond recognition: nothing was run to its end"


@settings(BOUNDED, max_examples=100)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists), st.data())
def test_any_value_is_checked_without_an_error(value: object, data: st.DataObject) -> None:
    config: dict[object, object] = dict(SPACE.default)
    config[data.draw(st.sampled_from([*SPACE.names, "other", 1, None]))] = value
    try:
        legal = check(config, SPACE)
    except Rejected as rejection:
        check_reason(rejection)
    else:
        assert SPACE.violations(legal) == []


@settings(BOUNDED, max_examples=100)
@given(st.text(alphabet="{}[]\"':,`~\\ \n0a", max_size=4000))
def test_brackets_and_quotes_in_any_order_are_read(text: str) -> None:
    check_extraction(text)
    assert all(isinstance(p, Proposal) for p in extract(f"```json\n{text}\n```").proposals)
