import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest

from evotune import settings
from evotune.compare import methods, open_space, score, write_page
from evotune.compare.belief import MOST_CELLS, beliefs
from evotune.compare.comparison import Comparison
from evotune.compare.page import PANELS
from evotune.compare.runs import run_search
from evotune.replay import Row, load_recording, save_recording
from evotune.session import make_surrogate
from evotune.space import ConfigSpace

SCRIPT = '<script type="module">'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A recording of 8 x 5 x 3 configurations, of which some are not legal and some fail."""
    space = ConfigSpace.from_dict({"a": range(8), "b": range(5), "c": ["x", "y", "z"]}, ["a + b < 11"])
    rows = {}
    for key in map(tuple, space.keys.tolist()):
        failed = key[0] == key[1] + 1
        ms = None if failed else 1.0 + (key[0] - 5) ** 2 + 0.3 * (key[1] - 1) ** 2 + 0.01 * key[2]
        rows[key] = Row(ms, "2" if failed else "0", 100.0, 50.0, 0.01)
    folder = tmp_path_factory.mktemp("recorded") / "toy"
    save_recording(folder, {"device": "a bowl", "kernel": "toy"}, space, rows)
    return load_recording(folder)


@pytest.fixture(scope="module")
def compared(toy):
    recordings = [toy, open_space("synthetic")]
    made = product(recordings, ("evotune", "random"), (3, 4))
    runs = [run_search(r, m, methods.factory(m), seed, 30) for r, m, seed in made]
    return Comparison(runs, recordings, 30, {})


@pytest.fixture(scope="module")
def page(compared, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "page.html"
    write_page(compared, score(compared.runs, compared.recordings, compared.budget), out)
    return out


def legal_cells(belief, moment, cut):
    """Position, configuration and what is shown of each combination in a slice."""
    values = {axis.name: axis.values for axis in belief.axes}
    for i, (down, across) in enumerate(product(values[cut.down], values[cut.across])):
        yield i, {**moment.incumbent, cut.down: down, cut.across: across}


def test_a_belief_is_that_of_a_surrogate_which_was_told_the_same(compared, toy):
    belief = beliefs(compared)[0]
    assert (belief.space, belief.seed) == ("toy", 3)
    assert [m.evaluations for m in belief.moments] == [10, 25]
    run = next(r for r in compared.runs if (r.space, r.method) == ("toy", "evotune"))
    for moment in belief.moments:
        surrogate = make_surrogate(toy.space, settings.load(None, {"run.seed": 3}, {}))
        for config, ms in run.evaluations[: moment.evaluations]:
            row = toy.row(config)
            variance = 0.0 if ms is None else (row.rel_std / math.sqrt(row.repeats)) ** 2
            surrogate.observe(config, None if ms is None else math.log(ms), fidelity_rank=3, variance=variance)
        for cut in moment.slices:
            cells = [(i, c) for i, c in legal_cells(belief, moment, cut) if cut.std[i] is not None]
            configs = [c for _, c in cells]
            mean, std = surrogate.predict(configs)
            shown = {name: [getattr(cut, name)[i] for i, _ in cells] for name in PANELS}
            assert shown["latency_ms"] == pytest.approx(np.exp(mean), rel=1e-3)
            assert shown["std"] == pytest.approx(std, rel=0.06)
            assert shown["utility"] == pytest.approx(surrogate.score(configs), rel=6e-3)


def test_beside_a_belief_stands_what_was_recorded_and_what_had_been_evaluated(compared):
    for belief, recording in zip(beliefs(compared), compared.recordings, strict=True):
        run = next(r for r in compared.runs if (r.space, r.method) == (recording.name, "evotune"))
        for moment in belief.moments:
            known = [dict(config) for config, _ in run.evaluations[: moment.evaluations]]
            assert moment.incumbent in known
            for cut in moment.slices:
                for i, config in legal_cells(belief, moment, cut):
                    row = None if recording.space.violations(config) else recording.row(config)
                    assert (row is None) == (cut.std[i] is None)
                    true_ms = None if row is None else row.time_ms
                    assert cut.true_ms[i] == (None if true_ms is None else pytest.approx(true_ms, rel=1e-3))
                    assert (i in cut.failed) == (row is not None and true_ms is None)
                    assert (i in cut.evaluated) == (config in known)


def test_of_the_toy_every_pair_is_shown_and_what_matters_most_comes_first(compared):
    belief = beliefs(compared)[0]
    assert [axis.name for axis in belief.axes] == ["a", "b", "c"]
    assert [{s.down, s.across} for s in belief.moments[0].slices] == [{"a", "b"}, {"a", "c"}, {"b", "c"}]
    assert all(any(s.failed for s in m.slices) and any(s.evaluated for s in m.slices) for m in belief.moments)


def test_of_a_large_space_the_most_influential_parameters_are_shown(tmp_path):
    space = ConfigSpace.from_dict({f"p{i}": range(40) if i == 2 else range(3) for i in range(5)})
    rows = {tuple(key): Row(1.0 + 0.1 * key[2] + 0.5 * key[4], "0", 1.0, 1.0, 0.01) for key in space.keys.tolist()}
    save_recording(tmp_path / "wide", {"device": "a plane"}, space, rows)
    recording = load_recording(tmp_path / "wide")
    run = run_search(recording, "evotune", methods.factory("evotune"), 0, 25)
    (belief,) = beliefs(Comparison([run], [recording], 25, {}))
    assert [axis.name for axis in belief.axes][:2] == ["p2", "p4"]
    shown = belief.axes[0].values
    assert (len(shown), shown[0], shown[-1]) == (31, 0, 39)
    assert sum(len(s.std) for s in belief.moments[-1].slices) <= MOST_CELLS


def test_a_slice_in_which_nothing_shown_is_legal_is_empty(tmp_path):
    space = ConfigSpace.from_dict({"p": range(40), "q": range(3), "tied": range(40)}, ["p == tied"])
    rows = {
        tuple(key): Row(1.0 + abs(key[0] - 2) + 50 * key[1], "0", 1.0, 1.0, 0.01) for key in space.keys.tolist()
    }
    save_recording(tmp_path / "line", {"device": "a line"}, space, rows)
    recording = load_recording(tmp_path / "line")
    run = run_search(recording, "evotune", methods.factory("evotune"), 0, 100)
    (belief,) = beliefs(Comparison([run], [recording], 100, {}))
    last = belief.moments[-1]
    assert last.incumbent["p"] == 2
    assert [axis.name for axis in belief.axes] == ["q", "p"]
    assert 2 not in belief.axes[1].values
    assert {*last.slices[0].std} == {None}


def test_without_a_run_of_evotune_nothing_is_said_of_beliefs(compared, tmp_path):
    others = [r for r in compared.runs if r.method == "random"]
    found = Comparison(others, compared.recordings, compared.budget, {})
    write_page(found, score(others, found.recordings, found.budget), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "surrogate" not in text
    assert SCRIPT not in text


def test_the_page_shows_curves_heat_map_and_beliefs_and_needs_nothing_else(compared, page):
    text = page.read_text()
    assert not re.search(r"https?://|src=|@import|url\(", text)
    assert text.count("<polyline") == 3 * 2 * 2
    assert len(re.findall(r'<td style="background: rgba', text)) == 4
    told = re.search(r'id="beliefs">(.*?)</script>', text, re.DOTALL)
    assert told is not None
    assert json.loads(told[1]) == json.loads(json.dumps([asdict(b) for b in beliefs(compared)], allow_nan=False))


def test_ten_spaces_of_the_largest_size_stay_below_two_megabytes(page, compared):
    """A space takes its cells, at most so many, at five moments."""
    belief = beliefs(compared)[1]
    moment = belief.moments[-1]
    per_cell = len(json.dumps(asdict(moment), separators=(",", ":"))) / sum(len(s.std) for s in moment.slices)
    rest = len(page.read_bytes())
    assert rest + 10 * 5 * MOST_CELLS * per_cell < 2e6


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("control", ["space", "pair", "moment"])
def test_another_choice_gives_another_picture_without_an_error(page, tmp_path, control):
    before = page.read_text()
    listens = "<script>onerror = (why) => document.documentElement.append(`page error: ${why}`)</script>"
    chooses = f"""{SCRIPT}
        const chosen = document.getElementById("{control}");
        chosen.selectedIndex = chosen.selectedIndex === 0 ? 1 : 0;
        chosen.dispatchEvent(new Event("change", {{ bubbles: true }}));
    </script>"""
    pictures = []
    for name, script in (("as_is", ""), ("chosen", chooses)):
        changed = tmp_path / f"{name}.html"
        changed.write_text(before.replace("<head>", f"<head>{listens}").replace("</body>", f"{script}</body>"))
        shown = dumped(changed, tmp_path / "profile")
        assert "page error" not in shown.removeprefix(shown.partition("</head>")[0])
        assert '<form id="choice">' in shown
        found = {panel: re.search(rf'<svg id="{panel}".*?</svg>', shown, re.DOTALL) for panel in PANELS}
        pictures.append({panel: picture[0] for panel, picture in found.items() if picture})
    for panel in PANELS:
        assert pictures[0][panel].count("<rect") > 40
        assert pictures[0][panel] != pictures[1][panel]


def dumped(page, profile):
    """The document as Chromium has it after the scripts ran."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
