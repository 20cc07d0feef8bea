"""The page in a browser: it draws without an error, its controls work, and nothing overflows a phone."""

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from evotune.journal import Journal
from evotune.report import View, text_of
from evotune.report.live import Live, server_of
from tests.report.histories import DESCRIPTION
from tests.report.test_report_live import add
from tests.report.test_report_page import JOURNAL, KINDS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

HERE = Path(__file__).parent
COLLECTS = """<!doctype html><pre id="result"></pre><script>
const told = [], result = document.getElementById("result");
addEventListener("message", ({ data }) => { told.push(data); result.textContent = JSON.stringify(told); });
</script>"""


def with_script(text, name, **constants):
    """A page with a script of this folder at its end."""
    known = "".join(f"const {name} = {json.dumps(value)};" for name, value in constants.items())
    script = (HERE / name).read_text(encoding="utf-8")
    return text.replace("</body>", f'<script type="module">{known}{script}</script></body>')


def opened(url, tmp_path, budget_ms=4000):
    """The document after its scripts ran, and what the console said."""
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--virtual-time-budget={budget_ms}"]
    done = subprocess.run(
        [*command, "--window-size=1400,2000", "--dump-dom", url],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def result_of(document):
    found = re.search(r'<pre id="result">(.*?)</pre>', document, re.DOTALL)
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_every_kind_of_run_fits_a_phone_and_says_nothing_on_the_console(tmp_path):
    frames = []
    for i, (kind, history) in enumerate(KINDS.items()):
        text = with_script(text_of(View(history), JOURNAL), "layout.js", KIND=kind)
        (tmp_path / f"{i}.html").write_text(text, encoding="utf-8")
        frames.append(f'<iframe src="{i}.html" width="390" height="800"></iframe>')
    (tmp_path / "all.html").write_text(COLLECTS + "".join(frames), encoding="utf-8")
    document, said = opened((tmp_path / "all.html").as_uri(), tmp_path)
    assert said == []
    found = {told["kind"]: told for told in result_of(document)}
    assert set(found) == set(KINDS)
    for kind, told in found.items():
        assert told["width"] <= 390, kind
        assert (told["clipped"], told["unreachable"], told["unnamed"]) == ([], 0, []), kind
    assert found["ordinary"]["marks"] > 60
    assert found["no trial"]["marks"] == 0


def test_an_error_on_the_console_is_heard(tmp_path):
    (tmp_path / "inner.html").write_text("<script>nothing.there</script>")
    (tmp_path / "outer.html").write_text('<iframe src="inner.html"></iframe>')
    assert len(opened((tmp_path / "outer.html").as_uri(), tmp_path)[1]) == 1


def test_all_controls_do_what_they_say(tmp_path):
    history = KINDS["ordinary"]
    text = with_script(text_of(View(history), JOURNAL), "controls.js")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    document, said = opened((tmp_path / "page.html").as_uri(), tmp_path)
    assert said == []
    out = result_of(document)

    count = len(history.trials)
    timed = [t for t in history.trials if t.failure is None]
    mutations = sum(t.candidate.origin == "mutation" for t in history.trials)
    assert out["points"] == [count, count - mutations, "false", count]

    assert out["heat"]["differ"]
    assert out["heat"]["redrawn"]
    assert sorted(out["heat"]["names"]) == ["layout", "stages", "tile"]
    assert out["cells"] > 3

    tall = [t for t in timed if t.config["tile"] == 8]
    assert out["kept"] == [len(timed), len(tall), len(timed)]
    assert out["slider"] == "8"
    assert out["brushed"] == {
        "rows": sum(t.config["tile"] == 8 for t in history.trials),
        "tiles": ["8"],
        "said": f"{len(tall)} of {len(timed)} timed trials pass the ranges.",
    }
    low = [t for t in timed if t.config["stages"] == 0]
    assert out["dragged"] == {"kept": len(low), "to": "0"}

    assert out["sorted"]["aria"] == "ascending"
    ms = [f"{t.latency_ms:.4g}" for t in sorted(timed, key=lambda t: t.latency_ms)]
    assert out["sorted"]["up"] == [*ms, "–"]
    assert out["sorted"]["down"] == [*ms[::-1], "–"]
    wanted = [t for t in timed if t.config["tile"] == 8 and t.candidate.origin == "mutation"]
    assert sorted(out["found"]["rows"], key=int) == [str(t.number + 1) for t in wanted]
    assert out["found"]["said"] == f"{len(wanted)} of {count} trials."
    assert out["failed"] == [str(t.number + 1) for t in history.trials if t.failure]
    assert out["default"] == ["1"]

    assert out["theme"] == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
    assert out["skip"]["left"] >= 0
    assert out["skip"]["isFirst"]
    assert out["copied"]["said"] in ("Copied", "Selected: copy with your keys")
    assert out["copied"]["selected"].strip() == repr(dict(history.best["config"]))


def test_the_page_follows_a_run_that_goes_on(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("toy", "cafe", DESCRIPTION)
        for number in range(6):
            add(run, number)
        live = Live(journal.path, None)
        state = live.state
        is_asked = threading.Event()

        def state_after_one_more():
            if not is_asked.is_set():
                is_asked.set()
                add(run, 6)
            return state()

        live.state = state_after_one_more
        with server_of(live, 0) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            document, said = opened(f"http://127.0.0.1:{server.server_port}/", tmp_path, budget_ms=6000)
            server.shutdown()
            thread.join()
    assert said == []
    assert is_asked.is_set()
    assert re.search(r'id="live"[^>]*data-revision="7 running[^>]*>Live: 7 evaluations; it goes on\.<', document)
    assert "7 of 7 trials." in document
    assert re.search(r'<section id="summary".*?7 evaluations', document, re.DOTALL)
