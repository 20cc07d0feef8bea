import json
from random import Random
from typing import get_args

import numpy as np
import pytest

from evotune import history
from evotune.errors import UsageError
from evotune.record import PARTIAL, record
from evotune.replay import OK, Row, load_recording, save_recording
from evotune.session import tune
from evotune.settings import Run, load
from evotune.space import ConfigSpace
from tests.toy import LADDER, SPACE, ToyEvaluator, latency_ms


def make(folder, evaluator=None, *, passes=2, samples=None, stop_after=None, **others):
    seen = []

    def on_progress(done, total):
        seen.append((done, total))
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt

    record(
        SPACE,
        evaluator or ToyEvaluator(),
        folder,
        {"kernel": "toy", "device": others.get("device", "toy"), "source_hash": others.get("source_hash")},
        fidelity=others.get("fidelity", LADDER[0]),
        passes=passes,
        samples=samples,
        seed=0,
        compile_jobs=2,
        on_progress=on_progress,
    )
    return seen


def test_every_configuration_is_measured_in_every_pass_and_the_median_is_kept(tmp_path):
    evaluator = ToyEvaluator()
    seen = make(tmp_path / "rec", evaluator, passes=3)
    assert evaluator.calls["measure"] == 3 * SPACE.cardinality
    assert seen[-1] == (3 * SPACE.cardinality, 3 * SPACE.cardinality)
    recording = load_recording(tmp_path / "rec")
    assert recording.meta["exhaustive"]
    for row in range(SPACE.cardinality):
        config = SPACE.config(row)
        assert recording.row(config).time_ms == pytest.approx(latency_ms(config), rel=1e-6)


def test_an_interrupted_recording_goes_on_where_it_stopped(tmp_path):
    first, second = ToyEvaluator(), ToyEvaluator()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "rec", first, stop_after=30)
    kept = len((tmp_path / "rec" / PARTIAL).read_text().splitlines())
    make(tmp_path / "rec", second)
    assert kept == 1 + 30  # the first line says what was measured
    assert second.calls["measure"] == 2 * SPACE.cardinality - 30
    assert not (tmp_path / "rec" / PARTIAL).exists()


def test_a_line_cut_off_while_it_was_written_is_measured_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "rec", stop_after=30)
    partial = tmp_path / "rec" / PARTIAL
    partial.write_text(partial.read_text()[:-20])
    evaluator = ToyEvaluator()
    make(tmp_path / "rec", evaluator)
    assert evaluator.calls["measure"] == 2 * SPACE.cardinality - 29
    assert load_recording(tmp_path / "rec").meta["n_valid"] == SPACE.cardinality


def test_what_follows_a_line_that_was_cut_off_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "rec", stop_after=30)
    partial = tmp_path / "rec" / PARTIAL
    partial.write_text(partial.read_text()[:-20])
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "rec", stop_after=10)
    evaluator = ToyEvaluator()
    make(tmp_path / "rec", evaluator)
    assert evaluator.calls["measure"] == 2 * SPACE.cardinality - 29 - 10


@pytest.mark.parametrize(
    "other",
    [{"device": "another"}, {"source_hash": "edited"}, {"fidelity": LADDER[1]}],
    ids=lambda o: next(iter(o)),
)
def test_measurements_of_something_else_are_not_mixed_in(tmp_path, other):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "rec", stop_after=30)
    before = (tmp_path / "rec" / PARTIAL).read_text()
    with pytest.raises(UsageError, match=r"partial\.jsonl is of another measurement: .*give another folder"):
        make(tmp_path / "rec", **other)
    assert (tmp_path / "rec" / PARTIAL).read_text() == before
    make(tmp_path / "rec", passes=3)  # more of the same goes on


def test_failures_are_recorded_once_by_what_failed(tmp_path):
    evaluator = ToyEvaluator(fails=lambda c: c["layout"] == "nn")
    make(tmp_path / "rec", evaluator)
    meta = json.loads((tmp_path / "rec" / "meta.json").read_text())
    assert meta["n_compile_fail"] == SPACE.cardinality // 2
    assert evaluator.calls["measure"] == SPACE.cardinality


class Silent:
    def on_note(self, text):
        pass

    def on_trial(self, trial, tuner, *, is_best):
        pass


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled") / "rec"
    make(folder, samples=10)
    return folder


@pytest.mark.parametrize("search", get_args(Run.model_fields["search"].annotation))
def test_a_search_on_a_sample_evaluates_what_was_recorded_and_nothing_else(sample, tmp_path, search):
    recorded = load_recording(sample)
    chosen = {"run.max_evaluations": 60, "run.search": search, "run.journal": str(tmp_path / "j.db")}
    result = tune(str(sample), load(None, {**chosen, "llm.provider": "mock"}, {}), observer=Silent())
    trials = history.load(tmp_path / "j.db").trials
    assert {recorded.space.key(trial.config) for trial in trials} <= set(recorded.rows)
    assert not any(trial.failure for trial in trials)
    assert result.stopped == "exhausted"
    assert result.best["latency_ms"] == min(row.time_ms for row in recorded.rows.values())


def test_what_was_not_recorded_is_not_legal_in_the_space_of_a_sample(sample):
    recording = load_recording(sample)
    space = recording.space
    assert space.cardinality == len(recording.rows)
    assert {tuple(key) for key in space.keys.tolist()} == set(recording.rows)
    assert space.default == SPACE.default
    for row in range(SPACE.cardinality):
        config = SPACE.config(row)
        is_recorded = SPACE.key(config) in recording.rows
        assert (space.violations(config) == []) == is_recorded
        assert space.holds(SPACE.keys[row : row + 1]).tolist() == [is_recorded]
    assert space.violations({**SPACE.default, "tile": 7}) == ["tile = 7 is not one of [16, 32, 64, 128]"]
    neighbours = [SPACE.key(c) for row in range(space.cardinality) for c in space.neighbors(space.config(row))]
    assert set(neighbours) <= set(recording.rows)


def test_a_space_that_is_too_large_to_list_is_replayed_as_far_as_it_was_recorded(tmp_path):
    whole = ConfigSpace.from_dict({f"p{i}": list(range(50)) for i in range(12)}, ["p0 <= p1"])
    assert not whole.is_enumerable
    assert whole.cartesian > 2**63
    rows = {whole.key(c): Row(1.0 + i, OK, 1.0, 1.0, 0.0) for i, c in enumerate(whole.sample(Random(0), 30))}
    save_recording(tmp_path / "large", {}, whole, rows)
    space = load_recording(tmp_path / "large").space
    assert space.cardinality == len(rows) == 30
    assert all(space.violations(space.config(row)) == [] for row in range(30))
    assert space.holds(np.array(list(rows))).all()
    assert not any(space.holds(np.array([whole.key(c) for c in whole.sample(Random(1), 30)])))


def test_a_sample_holds_the_default_and_says_that_it_is_not_all(tmp_path):
    make(tmp_path / "rec", samples=10)
    recording = load_recording(tmp_path / "rec")
    assert not recording.meta["exhaustive"]
    assert len(recording.rows) in (10, 11)
    assert recording.row(SPACE.default).time_ms is not None
