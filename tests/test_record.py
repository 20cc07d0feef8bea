import json

import pytest

from evotune.record import PARTIAL, record
from evotune.replay import load_recording
from tests.toy import LADDER, SPACE, ToyEvaluator, latency_ms


def make(folder, evaluator=None, *, passes=2, samples=None, stop_after=None):
    seen = []

    def on_progress(done, total):
        seen.append((done, total))
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt

    record(
        SPACE,
        evaluator or ToyEvaluator(),
        folder,
        {"kernel": "toy", "device": "toy"},
        fidelity=LADDER[0],
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
    assert kept == 30
    assert second.calls["measure"] == 2 * SPACE.cardinality - kept
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


def test_failures_are_recorded_once_by_what_failed(tmp_path):
    evaluator = ToyEvaluator(fails=lambda c: c["layout"] == "nn")
    make(tmp_path / "rec", evaluator)
    meta = json.loads((tmp_path / "rec" / "meta.json").read_text())
    assert meta["n_compile_fail"] == SPACE.cardinality // 2
    assert evaluator.calls["measure"] == SPACE.cardinality


def test_a_sample_holds_the_default_and_says_that_it_is_not_all(tmp_path):
    make(tmp_path / "rec", samples=10)
    recording = load_recording(tmp_path / "rec")
    assert not recording.meta["exhaustive"]
    assert len(recording.rows) in (10, 11)
    assert recording.row(SPACE.default).time_ms is not None
