import json
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evotune.baselines import BASELINES
from evotune.compare import (
    compare,
    default_methods,
    default_seeds,
    methods,
    open_space,
    parallel,
    score,
    synthetic,
    write_page,
    write_plot,
)
from evotune.compare import runs as runs_module
from evotune.compare.comparison import Comparison
from evotune.compare.curves import panels
from evotune.compare.peers import PEERS
from evotune.compare.runs import SearchRun, run_search
from evotune.compare.svg import line_chart, looks
from evotune.errors import DeviceError, UsageError
from evotune.replay import ReplayEvaluator, load_recording, save_recording


@pytest.fixture
def toy(tmp_path):
    """A recording of 40 configurations with some failures, as a folder."""
    space = synthetic.ConfigSpace.from_dict({"a": range(8), "b": range(5)}, default={"a": 0, "b": 0})
    rows = {}
    for key in map(tuple, space.keys.tolist()):
        failed = key[0] == key[1]
        ms = None if failed else 1.0 + (key[0] - 5) ** 2 + (key[1] - 1) ** 2
        rows[key] = synthetic.Row(ms, "2" if failed else "0", 100.0, 50.0, 0.01)
    folder = tmp_path / "toy"
    save_recording(folder, {"device": "a bowl", "kernel": "toy"}, space, rows)
    return str(folder)


def without_time(comparison):
    return [(r.space, r.method, r.seed, [(dict(c), ms) for c, ms in r.evaluations]) for r in comparison.runs]


def test_a_comparison_makes_every_run_once_and_says_what_was_evaluated(toy, tmp_path):
    out, seen = tmp_path / "out.json", []
    found = compare([toy, "synthetic"], ["random", "de"], [4, 5], 12, out=out, on_progress=seen.append)
    recorded = json.loads(out.read_text())["runs"]
    assert recorded == found.to_json()["runs"]
    assert sorted((r["space"], r["method"], r["seed"]) for r in recorded) == sorted(
        (s, m, seed) for s in ("toy", "synthetic") for m in ("random", "de") for seed in (4, 5)
    )
    assert [p.done for p in seen] == list(range(1, 9))
    assert {p.total for p in seen} == {8}
    spaces = {r.name: r for r in found.recordings}
    for run in recorded:
        assert set(run) == {"space", "method", "seed", "overhead_s", "evaluations"}
        assert len(run["evaluations"]) == 12
        assert run["overhead_s"] > 0
        for e in run["evaluations"]:
            assert e["latency_ms"] == spaces[run["space"]].row(e["config"]).time_ms


def test_a_run_in_a_child_process_is_the_run_in_this_one(toy):
    here = run_search(load_recording(Path(toy)), "genetic", methods.factory("genetic"), 7, 30)
    there = compare([toy], ["genetic"], [7], 30, jobs=1)
    assert without_time(there) == [("toy", "genetic", 7, [(dict(c), ms) for c, ms in here.evaluations])]


def test_a_comparison_that_was_cut_off_goes_on_where_it_was(toy, tmp_path):
    out = tmp_path / "out.json"
    partial = tmp_path / "out.json.partial"

    def stop(progress):
        if progress.done in (1, 2):
            raise KeyboardInterrupt

    for lines in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            compare([toy], ["random"], range(5), 10, jobs=1, out=out, on_progress=stop)
        assert not out.exists()
        assert len(partial.read_text().splitlines()) == lines
        with partial.open("a") as end:
            end.write('{"mark": "cut off in the mid')
    kept, seen = partial.read_text().splitlines()[0], []
    found = compare([toy], ["random"], range(5), 10, jobs=1, out=out, on_progress=seen.append)
    assert [p.done for p in seen] == [3, 4, 5]
    assert found.runs[0] == SearchRun.from_json(json.loads(kept)["run"])
    assert without_time(found) == without_time(compare([toy], ["random"], range(5), 10, jobs=1))
    assert out.exists()
    assert not partial.exists()


def test_runs_of_another_budget_or_recording_are_not_taken_up(toy, tmp_path):
    out, seen = tmp_path / "out.json", []
    partial = tmp_path / "out.json.partial"

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare([toy], ["random"], [0], 10, jobs=1, out=out, on_progress=stop)
    kept = partial.read_text()
    compare([toy], ["random"], [0], 11, jobs=1, out=out, on_progress=seen.append)
    assert len(seen) == 1
    out.unlink()
    partial.write_text(kept)
    meta = Path(toy) / "meta.json"
    meta.write_text(meta.read_text() + "\n")
    compare([toy], ["random"], [0], 10, jobs=1, out=out, on_progress=seen.append)
    assert len(seen) == 2


def test_a_file_in_the_way_that_holds_no_runs_is_refused(toy, tmp_path):
    (tmp_path / "out.json.partial").write_text("my notes\n")
    with pytest.raises(UsageError, match=r"out\.json\.partial is not a list of runs"):
        compare([toy], ["random"], [0], 10, out=tmp_path / "out.json")


def test_a_search_that_raises_or_dies_ends_the_comparison_and_is_named(toy, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with pytest.raises(UsageError, match=r"factories:raises on .*toy, seed 3 raised RuntimeError: .*no luck"):
        compare([toy], ["factories:raises"], [3], 10)
    with pytest.raises(DeviceError, match=r"factories:dies on .*toy, seed 0: crash, exited with status 7"):
        compare([toy], ["factories:dies"], [0], 10)


def test_what_cannot_be_compared_is_refused_before_any_run(toy, tmp_path):
    twin = tmp_path / "elsewhere" / "toy"
    twin.parent.mkdir()
    Path(toy).rename(twin)
    Path(toy).symlink_to(twin)
    other = tmp_path / "other" / "toy"
    other.mkdir(parents=True)
    for name in ("meta.json", "space.csv.gz"):
        (other / name).write_bytes((twin / name).read_bytes())
    with pytest.raises(UsageError, match=r"did you mean 'genetic'"):
        compare([toy], ["genetics"], [0], 10)
    with pytest.raises(UsageError, match="cannot be imported"):
        compare([toy], ["os:nothing_there"], [0], 10)
    with pytest.raises(UsageError, match="nothing found"):
        compare([str(tmp_path / "nowhere")], ["random"], [0], 10)
    with pytest.raises(UsageError, match=r"several spaces are called \['toy'\]"):
        compare([str(twin), str(other)], ["random"], [0], 10)
    with pytest.raises(UsageError, match="at least"):
        compare([toy], ["random"], [], 10)


def test_a_finished_comparison_is_read_from_its_file_and_not_made_again(toy, tmp_path):
    out, seen, notes = tmp_path / "out.json", [], []
    first = compare([toy], ["random", "de"], [0, 1], 10, out=out)
    written = out.read_bytes()
    again = compare([toy], ["de", "random"], [1, 0], 10, out=out, on_progress=seen.append, on_note=notes.append)
    assert seen == []
    assert "nothing was run again" in notes[0]
    assert list(again.runs) == list(first.runs)
    assert out.read_bytes() == written
    assert not (tmp_path / "out.json.partial").exists()


@pytest.mark.parametrize(
    ("methods", "seeds", "budget"), [(["de"], [0], 10), (["random"], [0, 1], 10), (["random"], [0], 11)]
)
def test_the_file_of_another_comparison_is_refused_before_any_run_and_kept(toy, tmp_path, methods, seeds, budget):
    out, seen = tmp_path / "out.json", []
    compare([toy], ["random"], [0], 10, out=out)
    written = out.read_bytes()
    with pytest.raises(UsageError, match=r"out\.json exists, and is not of this comparison .*; move it away"):
        compare([toy], methods, seeds, budget, out=out, on_progress=seen.append)
    assert seen == []
    assert out.read_bytes() == written


@pytest.mark.parametrize("content", ["my notes\n", '{"runs": []}', "[1]", ""])
def test_a_file_that_is_no_comparison_is_never_overwritten(toy, tmp_path, content):
    out = tmp_path / "out.json"
    out.write_text(content)
    with pytest.raises(UsageError, match="move it away, or choose another name"):
        compare([toy], ["random"], [0], 10, out=out)
    assert out.read_text() == content


def test_a_place_that_cannot_be_written_is_found_before_any_run(toy, tmp_path, monkeypatch):
    seen = []
    (tmp_path / "folder").mkdir()
    for out, words in {
        tmp_path / "nowhere" / "out.json": f"there is no folder {tmp_path / 'nowhere'}",
        tmp_path / "folder": "it is not a file",
    }.items():
        with pytest.raises(UsageError, match=re.escape(words)):
            compare([toy], ["random"], [0], 10, out=out, on_progress=seen.append)
    monkeypatch.setattr("evotune.files.os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(UsageError, match="permission denied"):
        compare([toy], ["random"], [0], 10, out=tmp_path / "out.json", on_progress=seen.append)
    assert seen == []


def test_a_method_whose_code_was_changed_is_another_comparison(toy, tmp_path, monkeypatch):
    own, out = tmp_path / "own_search.py", tmp_path / "out.json"
    text = "from evotune.baselines import BASELINES\ndef make(r, s, budget): return BASELINES['de'](r.space, s)\n"
    own.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    compare([toy], ["own_search:make"], [0], 10, out=out)
    parallel._hash_of.cache_clear()  # as in the process of the next call
    compare([toy], ["own_search:make"], [0], 10, out=out)
    own.write_text(text.replace("'de'", "'random'"))
    parallel._hash_of.cache_clear()
    with pytest.raises(UsageError, match="not of this comparison"):
        compare([toy], ["own_search:make"], [0], 10, out=out)


def test_what_is_not_said_is_the_studys_on_its_landscape_and_leaves_mfbo_out_on_recordings():
    assert default_methods(["synthetic"]) == ("evotune", "mfbo", "pattern", "de", "random", "genetic", "annealing")
    assert list(default_seeds(["conv_A100", "synthetic"])) == [42, 123, 456, 789, 1011]
    assert default_methods(["conv_A100"]) == ["evotune", "pattern", "de", "random", "genetic", "annealing"]
    assert list(default_seeds(["conv_A100"])) == list(range(10))


def test_a_peer_that_is_not_installed_is_skipped_with_what_to_install(toy, monkeypatch):
    monkeypatch.setattr("evotune.compare.peers.find_spec", lambda name: None)
    found = compare([toy], ["random", "cma-es"], [0], 5)
    assert {r.method for r in found.runs} == {"random"}
    assert found.skipped == {"cma-es": "needs cmaes; pip install cmaes"}
    with pytest.raises(UsageError, match="optuna-gp needs optuna and torch"):
        compare([toy], ["optuna-gp"], [0], 5)


def test_every_method_has_a_factory_and_a_name_of_its_own():
    names = methods.names()
    assert len(set(names)) == len(names)
    assert set(names) == {*methods.OWN, *BASELINES, *PEERS}
    assert all(callable(methods.factory(name)) for name in names)


def test_overhead_is_the_cpu_time_of_the_search_and_not_of_the_look_ups(toy, monkeypatch):
    clock = [0.0]

    def takes(seconds, function):
        def slower(*arguments):
            clock[0] += seconds
            return function(*arguments)

        return slower

    monkeypatch.setattr(runs_module, "_cpu_s", lambda: clock[0])
    monkeypatch.setattr(runs_module.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(ReplayEvaluator, "compile", takes(1000.0, ReplayEvaluator.compile))
    closed = []

    def make(recording, seed, budget):
        search = BASELINES["random"](recording.space, seed)
        search.ask, search.tell = takes(1.0, search.ask), takes(0.25, search.tell)
        search.close = takes(0.125, lambda: closed.append(True))
        return search

    run = run_search(load_recording(Path(toy)), "m", takes(2.0, make), 0, 8)
    assert run.overhead_s == 2.0 + 8 * 1.25 + 0.125
    assert closed == [True]


def test_a_search_ends_where_the_space_does(toy):
    run = run_search(load_recording(Path(toy)), "random", methods.factory("random"), 0, 500)
    assert len(run.evaluations) == 40


def test_a_run_is_the_same_after_a_journey_through_json():
    run = SearchRun("s", "m", 1, 0.5, (({"a": 1}, 2.0), ({"a": 2}, None)))
    assert SearchRun.from_json(json.loads(json.dumps(run.to_json()))) == run


@pytest.fixture
def small():
    recording = open_space("synthetic")
    made = [
        run_search(recording, name, methods.factory(name), seed, 30)
        for name in ("random", "genetic")
        for seed in range(3)
    ]
    return Comparison(made, [recording], 30, {"cma-es": "needs <cmaes>"})


def test_curves_are_the_median_and_the_middle_half_of_the_runs(small):
    ((by_evaluations, by_time),) = panels(small)
    best = [min(ms for _, ms in run.evaluations[:10]) for run in small.runs if run.method == "genetic"]
    curve = by_evaluations.curves["genetic"]
    at = curve.x.tolist().index(10)
    assert curve.median[at] == pytest.approx(synthetic.OPTIMUM_MS / sorted(best)[1])
    assert curve.low[at] <= curve.median[at] <= curve.high[at]
    assert by_time.curves["random"].x[-1] == pytest.approx(30 * (0.5 + mean_bench_s()))
    for panel in (by_evaluations, by_time):
        for curve in panel.curves.values():
            assert (curve.median[1:] >= curve.median[:-1]).all()


def mean_bench_s():
    space = synthetic.space()
    times = [synthetic.latency_ms(space.config(i)) for i in range(space.cardinality)]
    return math.fsum(times) / len(times) * synthetic.REPS / 1e3


def test_a_chart_is_well_formed_and_draws_each_method_inside_its_frame(small):
    ((panel, _),) = panels(small)
    chart = ElementTree.fromstring(line_chart(panel, looks(panel.curves), width=500, height=300))
    lines = chart.findall("polyline")
    assert {line.findtext("title") for line in lines} == {"random", "genetic"}
    assert len({line.get("stroke") for line in lines}) == 2
    for points in (p.split() for e in [*lines, *chart.findall("polygon")] for p in [e.get("points")]):
        for x, y in (map(float, point.split(",")) for point in points):
            assert 0 <= x <= 500
            assert 0 <= y <= 300


def test_the_page_needs_nothing_else_and_shows_every_method_space_and_reason(small, tmp_path):
    hostile = SearchRun("synthetic", "<script>x", 0, 0.1, small.runs[0].evaluations)
    found = Comparison([*small.runs, hostile], small.recordings, small.budget, small.skipped)
    rows = score(found.runs, found.recordings, found.budget)
    write_page(found, rows, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?://|src=|@import|url\(", text)
    assert "<script>" not in text
    for word in ("random", "genetic", "synthetic", "&lt;script&gt;x", "needs &lt;cmaes&gt;", synthetic.DEVICE):
        assert word in text
    assert text.count("<polyline") == 6
    for row in rows:
        assert f"{row.score:.3f}" in text


def test_the_plot_is_a_picture_or_says_what_to_install(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("evotune.compare.plot.find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"pip install 'evotune\[plot\]'"):
            write_plot(small, tmp_path / "plot.png")
    pytest.importorskip("matplotlib")
    write_plot(small, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="cannot draw"):
        write_plot(small, tmp_path / "plot.xyz")
    assert "matplotlib.pyplot" not in sys.modules
