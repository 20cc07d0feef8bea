import gzip
import json

import pytest

from evotune.errors import Rejected, UsageError
from evotune.replay import FIDELITY, ReplayEvaluator, Row, load_recording, save_recording
from evotune.space import ConfigSpace

SPACE = ConfigSpace.from_dict(
    {"tile": [16, 32], "fast": [False, True], "flags": ["-O2", "-O3"], "f": [0.5, 2.0]},
    ["tile == 16 or fast"],
    default={"tile": 32, "fast": True, "flags": "-O3", "f": 0.5},
)


def make(folder):
    rows = {}
    for i, key in enumerate(map(tuple, SPACE.keys.tolist())):
        status = "1" if i == 1 else "2" if i == 2 else "0"
        rows[key] = Row(1.0 + i if status == "0" else None, status, 200.0, 32 * (1.0 + i), 0.02)
    save_recording(folder, {"kernel": "toy", "device": "here", "licence": "MIT"}, SPACE, rows)
    return rows


def test_a_saved_recording_loads_as_it_was_and_the_same_content_gives_the_same_bytes(tmp_path):
    rows = make(tmp_path / "toy")
    loaded = load_recording(tmp_path / "toy")
    assert loaded.rows == {
        k: r if r.time_ms else Row(None, r.status, 200.0, r.bench_ms, 0.02) for k, r in rows.items()
    }
    assert loaded.space.default == SPACE.default
    assert type(loaded.space) is ConfigSpace  # a sample would make another one
    assert loaded.meta["exhaustive"]
    assert loaded.meta["optimum_ms"] == 1.0
    before = (tmp_path / "toy" / "space.csv.gz").read_bytes()
    make(tmp_path / "toy")
    assert (tmp_path / "toy" / "space.csv.gz").read_bytes() == before


def test_replay_gives_recorded_latencies_and_failures_labelled_as_replayed(tmp_path):
    make(tmp_path / "toy")
    evaluator = ReplayEvaluator(load_recording(tmp_path / "toy"))
    config = evaluator.recording.space.config
    assert evaluator.compile(config(0)).compile_s == 0.2
    measured = evaluator.measure(config(0), FIDELITY)
    assert measured.latency_ms == 1.0
    assert measured.provenance == "replayed"
    assert measured.relative_error == pytest.approx(0.02 / 32**0.5)
    with pytest.raises(Rejected, match="compile"):
        evaluator.compile(config(1))
    assert evaluator.measure(config(2), FIDELITY).failed_stage == "run"


def test_a_legal_configuration_that_was_not_recorded_is_rejected(tmp_path):
    make(tmp_path / "toy")
    table = tmp_path / "toy" / "space.csv.gz"
    lines = gzip.decompress(table.read_bytes()).splitlines(keepends=True)
    table.write_bytes(gzip.compress(b"".join(lines[:-1])))
    with pytest.raises(UsageError, match="cut short"):
        load_recording(tmp_path / "toy")
    path = tmp_path / "toy" / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "n": len(lines) - 2}))
    evaluator = ReplayEvaluator(load_recording(tmp_path / "toy"))
    with pytest.raises(Rejected, match="not recorded"):
        evaluator.compile(SPACE.config(SPACE.cardinality - 1))


@pytest.mark.parametrize("damage", ["no table", "cut", "columns", "json", "value"])
def test_a_damaged_recording_is_a_usage_error_naming_the_folder(tmp_path, damage):
    folder = tmp_path / "toy"
    make(folder)
    table = folder / "space.csv.gz"
    text = gzip.decompress(table.read_bytes()).decode()
    if damage == "no table":
        table.unlink()
    elif damage == "cut":
        table.write_bytes(table.read_bytes()[:60])
    elif damage == "columns":
        table.write_bytes(gzip.compress(text.replace("time_ms", "t").encode()))
    elif damage == "json":
        (folder / "meta.json").write_text("{")
    else:
        table.write_bytes(gzip.compress(text.replace("32,True", "33,True").encode()))
    with pytest.raises(UsageError, match="toy"):
        load_recording(folder)


def test_a_recording_from_elsewhere_cannot_run_code_through_its_restrictions(tmp_path):
    make(tmp_path / "toy")
    path = tmp_path / "toy" / "meta.json"
    meta = json.loads(path.read_text())
    meta["restrictions"] = ["__import__('pathlib').Path('owned').touch()"]
    path.write_text(json.dumps(meta))
    with pytest.raises(UsageError, match="constraint"):
        load_recording(tmp_path / "toy")
