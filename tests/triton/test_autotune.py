"""``@evotune.triton.autotune`` from end to end, in Triton's interpreter, in processes of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("triton", "torch")),
        reason="triton is not installed",
    ),
]

SCRIPT = Path(__file__).with_name("interpreted.py")
SCENARIOS = [
    *["broken", "listed", "failing", "hopeless", "wrong", "partly", "adding", "heuristics", "spaces", "threads"],
    "modes",
]


def run(cache: Path, *scenarios: str, script: Path = SCRIPT, interpret: bool = True) -> Any:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": str(int(interpret)),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, str(script), *scenarios], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def found(cache: Path) -> Any:
    """What each scenario found, with an empty cache."""
    return run(cache, *SCENARIOS)


def test_a_list_is_timed_whole_once_for_each_key_and_dtype_and_the_fastest_is_used(found: Any) -> None:
    listed = found["listed"]
    assert listed["first"]["timed"] >= 3
    assert listed["first"]["config"]["BLOCK"] != 8  # ten times as slow as the others
    assert listed["first"]["right"]
    assert listed["again"]["timed"] == 0
    assert all(other["timed"] >= 3 and other["right"] for other in listed["others"])
    assert len(listed["cached"]) == 3


def test_it_has_what_users_of_tritons_autotuner_rely_on(found: Any) -> None:
    listed = found["listed"]
    assert listed["is_triton's"]
    assert listed["fn"]
    assert listed["timings"] == 3
    assert set(listed["first"]["config"]) == {"BLOCK", "WORK", "num_warps", "num_ctas", "num_stages"}


def test_another_process_finds_all_of_it_on_the_disk(found: Any, cache: Path) -> None:
    again = run(cache, "listed")["listed"]
    assert [again[k]["timed"] for k in ("first", "again")] == [0, 0]
    assert [other["timed"] for other in again["others"]] == [0, 0]
    assert again["first"]["config"] == found["listed"]["first"]["config"]
    assert again["cached"] == found["listed"]["cached"]


def test_another_source_or_list_is_searched_anew(found: Any, cache: Path, tmp_path: Path) -> None:
    edited = tmp_path / SCRIPT.name
    edited.write_text(SCRIPT.read_text().replace("total += 0.0", "total += 0.0 * 2"))
    there = run(cache, "listed", "added_to", script=edited)
    assert there["listed"]["first"]["timed"] >= 3
    assert there["added_to"]["timed"] >= 4


def test_a_configuration_that_fails_is_left_out_and_named(found: Any) -> None:
    failing = found["failing"]
    assert failing["config"]["BLOCK"] == 64
    assert failing["right"]
    assert "1 of 3 configurations fail and are left out (1 launch)" in failing["said"][0]
    assert "BLOCK=128, FAULT=raises" in failing["said"][0]
    assert "no_such_thing" in failing["said"][0]


def test_where_none_runs_the_launch_says_so_with_the_first_reason(found: Any) -> None:
    assert found["hopeless"].startswith("RuntimeError: faulty: none of 2 configurations runs (2 launch); the first")
    assert "no_such_thing" in found["hopeless"]


def test_a_wrong_result_is_not_used_where_results_are_checked(found: Any) -> None:
    checked, unchecked = found["wrong"]["checked"], found["wrong"]["unchecked"]
    assert checked["right"]
    assert checked["config"]["FAULT"] == "none"
    assert "(2 incorrect)" in checked["said"][0]
    assert "the largest error is 1" in checked["said"][0]
    assert not unchecked["right"], "the scenario does not tempt"
    assert "nothing can be checked, for the default configuration fails" in found["wrong"]["default_fails"]


def test_what_the_kernel_does_not_write_is_after_a_checked_search_what_it_was(found: Any) -> None:
    assert found["partly"] == [-7.0]


def test_a_kernel_that_reads_what_it_writes_is_launched_as_if_once(found: Any) -> None:
    adding = found["adding"]
    assert adding["restored"] == [-7.0]  # what was there before the launch
    assert adding["zeroed"] == [0.0]
    assert "name it in reset_to_zero or restore_value" in adding["neither"]


def test_heuristics_may_stand_above_and_below(found: Any) -> None:
    assert found["heuristics"]["below"]["right"]
    assert found["heuristics"]["above"]


def test_of_more_configurations_than_the_budget_as_many_are_searched(found: Any) -> None:
    spaces = found["spaces"]
    assert "9 timed of 96" in spaces["space"]["said"][0]
    assert spaces["space"]["right"]
    assert spaces["configs"] == 1
    assert "9 timed of 12" in spaces["long_list"]["said"][0]
    assert spaces["long_list"]["right"]
    assert spaces["no_time"] == 1


def test_pruning_is_asked_of_each_configuration_of_a_space(found: Any) -> None:
    pruned = found["spaces"]["pruned"]
    assert pruned["config"]["BLOCK"] in (8, 16)
    assert "(1 pruned)" in pruned["said"][0]
    assert found["spaces"]["few"] == 3


def test_threads_that_launch_at_once_share_one_search(found: Any) -> None:
    assert found["threads"] == {"searches": 1, "known": 1}


def test_evotune_off_is_the_first_configuration_whatever_is_known(found: Any) -> None:
    assert [(r["config"]["BLOCK"], r["timed"]) for r in found["modes"]["off"]] == [(8, 0), (8, 0)]


def test_evotune_cached_is_what_is_known_else_the_first_and_said_once(found: Any) -> None:
    modes = found["modes"]
    before, after = modes["cached"]
    assert (before["config"]["BLOCK"], before["timed"]) == (8, 0)
    assert "EVOTUNE=cached; the default configuration is used: BLOCK=8" in before["said"][0]
    assert modes["search"][0]["timed"] >= 2
    assert (after["config"]["BLOCK"], after["timed"]) == (128, 0)
    assert (modes["cached elsewhere"]["config"]["BLOCK"], modes["cached elsewhere"]["timed"]) == (128, 0)
    assert [len(r["said"]) for r in modes["unknown"]] == [1, 0, 0]
    assert [r["config"]["BLOCK"] for r in modes["unknown"]] == [8, 8, 8]
    assert modes["reads"] == 2  # once for each key


def test_an_unknown_mode_is_refused_with_the_nearest(found: Any) -> None:
    assert found["modes"]["misspelt"].startswith("UsageError: EVOTUNE='serach' (did you mean 'search'?)")


def test_where_a_time_would_mean_nothing_there_is_no_search(found: Any) -> None:
    untimed, again = found["modes"]["no do_bench"]
    assert (untimed["config"]["BLOCK"], untimed["timed"], again["said"]) == (8, 0, [])
    assert "times in Triton's interpreter mean nothing" in untimed["said"][0]
    assert "while a CUDA graph is captured" in found["modes"]["capturing"]["said"][0]


def test_a_broken_device_ends_the_search_and_the_best_so_far_is_used_next_time(found: Any) -> None:
    broken = found["broken"]
    assert broken["error"].startswith("DeviceError: faulty: BLOCK=128, FAULT=raises")
    assert "broke the device" in broken["error"]
    assert "the next process uses it: BLOCK=32" in broken["error"]
    assert (broken["next"]["config"]["BLOCK"], broken["next"]["timed"]) == (32, 0)


def test_a_damaged_cache_costs_a_search_and_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "evotune" / "triton" / "faulty.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"format": 1, "entr')
    failing = run(tmp_path, "failing")["failing"]
    assert failing["timed"] >= 3
    assert "ignoring the kept configurations" in failing["said"][0]
    assert len(json.loads(file.read_text())["entries"]) == 1


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "evotune").write_text("not a folder")  # whoever runs the tests may write to any folder
    failing = run(tmp_path, "failing")["failing"]
    assert failing["right"]
    assert failing["config"]["BLOCK"] == 64
    assert any("cannot keep the best configuration" in said for said in failing["said"])


def test_what_triton_cannot_compile_or_launch_is_left_out(tmp_path: Path) -> None:
    """Really compiled, for a GPU that is not there."""
    script = Path(__file__).with_name("compiled.py")
    found, again = (run(tmp_path, script=script, interpret=False) for _ in range(2))
    assert found["timed"] == [16, 32]
    assert "3 of 5 configurations fail and are left out (2 compile, 1 limits)" in found["said"][0]
    assert "OutOfResources: out of resource: shared memory, Required: 262144" in found["said"][0]
    assert found["launches"] == again["launches"] == 1
    assert again["timed"] == again["said"] == []
