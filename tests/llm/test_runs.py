"""Whole runs against a server with faults: the right exit code, the right proposals, within the caps."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from evotune.journal import Journal

from .conftest import EVALUATIONS, MAX_CALLS, PLANTED_KEY, Run
from .fake_server import FAULTS, GOOD, FakeServer, Fault, error
from .test_faults import EXPECTED

ALL_FAULTS = {**FAULTS, "key echoed": error(500, f"cannot use Bearer {PLANTED_KEY}")}


def test_a_good_server_is_heard_and_its_calls_are_counted(run: Run, server: FakeServer) -> None:
    ran = run(timeout_s=20.0)  # a busy machine may need more than the 0.4 s that tell a slow server
    assert ran.code == 0
    assert ran.result is not None
    assert ran.result["proposals"]["llm"] > 0
    assert ran.result["llm"]["calls"] == len(server.requests) <= MAX_CALLS
    assert ran.result["llm"]["input_tokens"] == 100 * len(server.requests)
    assert ran.result["llm"]["usd"] == 0.0  # a server on this machine


@pytest.mark.parametrize("name", ALL_FAULTS)
def test_a_server_with_one_fault_for_ever_costs_its_proposals_and_nothing_else(
    name: str, run: Run, server: FakeServer, tmp_path: Path
) -> None:
    server.script, server.otherwise = [GOOD], ALL_FAULTS[name]  # the check of the key goes well
    ran = run()
    assert ran.code == 0, ran.err
    assert ran.result is not None
    assert ran.result["evaluations"] == EVALUATIONS
    works = EXPECTED.get(name) is EXPECTED["slow"]
    assert (ran.result["proposals"].get("llm", 0) > 0) == works
    assert len(server.requests) <= MAX_CALLS
    assert ran.result["llm"]["calls"] == len(server.requests)
    assert len(server.requests) > 1, "the fault was never met"
    found = [f.name for f in tmp_path.rglob("*") if f.is_file() and PLANTED_KEY.encode() in f.read_bytes()]
    assert not found
    assert PLANTED_KEY not in ran.out + ran.err


@pytest.mark.parametrize("name", ["500", "reset", "429 with Retry-After", "truncated JSON", "refusal", "HTML 200"])
def test_a_model_that_comes_back_is_heard_again(name: str, run: Run, server: FakeServer) -> None:
    server.script = [GOOD, ALL_FAULTS[name]]
    ran = run()
    assert ran.result is not None
    assert ran.result["proposals"]["llm"] > 0


@pytest.mark.parametrize("name", ["400", "401", "403", "404", "quota"])
def test_what_can_never_work_is_found_before_any_work(
    name: str, run: Run, server: FakeServer, tmp_path: Path
) -> None:
    server.otherwise = ALL_FAULTS[name]
    ran = run()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.strip().startswith("error: ")
    assert len(server.requests) == 1
    assert not (tmp_path / "j.db").exists()


@pytest.mark.parametrize("name", ["401", "404"])
def test_fallback_goes_on_without_the_model_and_says_why(name: str, run: Run, server: FakeServer) -> None:
    server.otherwise = ALL_FAULTS[name]
    ran = run("--on-llm-error", "fallback")
    assert ran.code == 0
    assert ran.result is not None
    assert ran.result["evaluations"] == EVALUATIONS
    assert ran.result["llm"]["provider"] == "none"
    assert f"HTTP {name}" in ran.err


@pytest.mark.parametrize("name", ["503", "hang"])
def test_an_outage_at_the_start_is_no_reason_to_stop(name: str, run: Run, server: FakeServer) -> None:
    server.script = [ALL_FAULTS[name]]
    ran = run()
    assert ran.code == 0
    assert "does not answer yet" in ran.err
    assert ran.result is not None
    assert ran.result["proposals"]["llm"] > 0


def test_a_dead_endpoint_leaves_the_search_alone(run: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ran = run(url=f"http://127.0.0.1:{port}")
    assert ran.code == 0
    assert ran.result is not None
    assert ran.result["evaluations"] == EVALUATIONS
    assert "llm" not in ran.result["proposals"]


@pytest.mark.parametrize(
    ("cap", "most"),
    [({"max_calls": 2}, 2), ({"max_tokens": 13_000}, 2), ({"max_seconds": 0.5}, 2), ({"max_seconds": 0.1}, 0)],
)
def test_caps_hold_over_all_calls_of_a_run_together(
    cap: dict[str, Any], most: int, run: Run, server: FakeServer, tmp_path: Path
) -> None:
    """Of the answers here, the second would fit no token limit that the first has left."""
    ran = run(**{"max_calls": None, **cap})
    if most == 0:  # not even the check of the key fits
        assert ran.code == 2
        assert "seconds" in ran.err
        return
    used = len(server.requests)
    assert ran.code == 0
    server.requests.clear()
    again = run("--max-evaluations", "20", **{"max_calls": None, **cap})
    assert again.code == 0
    with Journal(tmp_path / "j.db") as journal:
        rows = journal.read("SELECT input_tokens, output_tokens, spent_tokens FROM llm_call")
    assert len(rows) == used + len(server.requests)
    if "max_calls" in cap:
        assert used == most
        # Only the check of the key, which comes before the journal is opened.
        assert len(server.requests) <= 1


def test_a_lost_call_counts_with_its_worst_case(run: Run, server: FakeServer, tmp_path: Path) -> None:
    server.script, server.otherwise = [GOOD], FAULTS["reset"]
    run(max_tokens=30_000, max_calls=None)
    with Journal(tmp_path / "j.db") as journal:
        rows = journal.read("SELECT input_tokens, spent_tokens, error FROM llm_call ORDER BY rowid")
    assert rows[0][:2] == (100, 120)
    assert all(tokens is None and spent > 8192 and "lost" in said for tokens, spent, said in rows[1:])
    assert sum(spent for _, spent, _ in rows) <= 30_000
    assert len(rows) > 1


def test_a_resumed_run_is_offered_what_was_paid_for(run: Run, server: FakeServer, tmp_path: Path) -> None:
    run("--max-evaluations", "3")
    with Journal(tmp_path / "j.db") as journal:
        offered = journal.read("SELECT config FROM offer")
        tried = journal.read("SELECT config FROM trial WHERE origin = 'llm'")
    assert len(offered) == 4
    assert len(tried) < 4
    server.otherwise = FAULTS["500"]
    server.script = []
    again = run()
    assert again.result is not None
    assert again.result["proposals"]["llm"] > len(tried)


def test_an_answer_is_held_to_a_schema_unless_that_is_switched_off(run: Run, server: FakeServer, kind: str) -> None:
    run()
    name = "output_config" if kind == "anthropic" else "response_format"
    assert all(name in request.body for request in server.requests)
    assert "programs" in json.dumps(server.requests[-1].body[name])
    server.requests.clear()
    run(journal="other.db", structured_output=False)
    assert server.requests
    assert not any(name in request.body for request in server.requests)


def test_a_schema_that_the_server_does_not_take_is_left_out_and_that_is_said_once(
    run: Run, server: FakeServer, kind: str
) -> None:
    name = "output_config" if kind == "anthropic" else "response_format"

    def refuse(request: Any) -> Fault | None:
        return error(400, f"unsupported parameter: {name}") if name in request.body else None

    server.refuse = refuse
    ran = run()
    assert ran.result is not None
    assert ran.result["proposals"]["llm"] > 0
    assert ran.err.count("going on without it") == 1


def test_templates_of_the_user_are_used_and_a_missing_placeholder_ends_with_2(
    run: Run, server: FakeServer, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "user.md").write_text("{{ state }} Speak, friend.", encoding="utf-8")
    run("--prompts", str(own))
    assert any("Speak, friend." in json.dumps(request.body) for request in server.requests)
    for text, said in {"no state": "placeholder 'state' is missing", "{{ state }} {{ tops }}": "'top'"}.items():
        (own / "user.md").write_text(text, encoding="utf-8")
        server.requests.clear()
        ran = run("--prompts", str(own), "--fresh")
        assert ran.code == 2
        assert said in ran.err
        assert server.requests == []
    assert run("--prompts", str(tmp_path / "missing")).code == 2


def test_an_ingredient_that_is_switched_off_is_in_no_prompt(
    run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    assert any("Focus: " in json.dumps(r.body) for r in server.requests)
    server.requests.clear()
    monkeypatch.setenv("EVOTUNE_PROMPT_FOCUS", "false")
    run("--fresh")
    assert server.requests
    assert not any("Focus: " in json.dumps(r.body) for r in server.requests)
