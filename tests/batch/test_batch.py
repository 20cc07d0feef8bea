"""Batches of replayed runs: resumed, limited, interrupted, with pages; nothing is timed."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from evotune import history
from evotune.batch import plan_batch, read_batch, run_batch, write_pages
from evotune.batch.run import Outcome
from evotune.batch.terminal import print_outcomes
from evotune.cli import main
from evotune.errors import DeviceError, Fatal, UsageError
from evotune.journal import Journal, LlmCall, Run
from evotune.kernel import load_kernel
from evotune.session import describe, tune
from evotune.settings import load
from evotune.terminal import Output  # rich draws a random number when it is imported
from evotune.trial import Candidate, Fidelity, Measurement, Trial
from tests.test_transfer import recorded

ROOT = Path(__file__).parents[2]


class Silent:
    def on_note(self, text: str) -> None:
        pass

    def on_trial(self, trial, tuner, *, is_best) -> None:
        pass


@contextlib.contextmanager
def silently(title: str):
    yield Silent()


class Batch:
    """Three recordings, and calls of the same batch as often as is wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [str(recorded(folder / name, device=name)) for name in ("one", "two", "three")]
        self.titles: list[str] = []
        self.begun: list[str] = []
        self.jobs: list[dict] = [{"kernel": name} for name in self.names]
        self.defaults: dict = {"max_evaluations": 5}
        self.in_all: dict = {}

    def plan(self):
        file = self.folder / "jobs.yaml"
        file.write_text(json.dumps({"defaults": self.defaults, "in_all": self.in_all, "jobs": self.jobs}))
        settings = load(None, {"run.journal": str(self.folder / "j.db"), "llm.provider": "none"}, {})
        return plan_batch(read_batch(file, settings), settings, {})

    def __call__(self, **raises: BaseException) -> list[Outcome]:
        """Of each recording by its name: what happens before it is tuned."""

        def tune_one(name, settings, *, observer):
            self.begun.append(Path(name).name)
            if Path(name).name in raises:
                raise raises[Path(name).name]
            return tune(name, settings, observer=observer)

        @contextlib.contextmanager
        def observe(title):
            self.titles.append(title)
            yield Silent()

        self.begun.clear()
        return run_batch(self.plan(), observe, tune_one=tune_one)


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def states(outcomes) -> list[str]:
    return [outcome.state for outcome in outcomes]


def test_the_same_command_again_runs_nothing_and_tells_the_same(batch, capsys):
    first = batch()
    assert states(first) == ["found"] * 3
    assert batch.begun == ["one", "two", "three"]
    assert [re.sub(r": \S+/", ": ", title) for title in batch.titles] == [
        "job 1 of 3: one on auto",
        "job 2 of 3: two on auto (so far 1 found)",
        "job 3 of 3: three on auto (so far 2 found)",
    ]
    print_outcomes(first, Output())
    assert "3 jobs: 3 found\n" in capsys.readouterr().out
    again = batch()
    print_outcomes(again, Output())
    assert "3 jobs: 3 found; 3 done before\n" in capsys.readouterr().out
    assert batch.begun == []
    assert [o.result["best"] for o in again] == [o.result["best"] for o in first]
    assert [planned.state for planned in batch.plan().jobs] == ["done"] * 3


def test_a_larger_budget_goes_on_with_the_runs_that_have_ended(batch):
    first = batch()
    batch.jobs[1]["max_evaluations"] = 8
    plan = batch.plan()
    assert [planned.state for planned in plan.jobs] == ["done", "goes on", "done"]
    assert plan.evaluations_left == 3
    again = batch()
    assert batch.begun == ["two"]
    assert (again[1].result["run_id"], again[1].result["evaluations"]) == (first[1].result["run_id"], 8)


def test_a_job_that_fails_does_not_stop_the_others_and_is_tried_again(batch):
    outcomes = batch(one=UsageError("the run is being worked on"), two=DeviceError("fell off the bus"))
    assert states(outcomes) == ["failed", "device fault", "found"]
    assert [o.why for o in outcomes] == ["the run is being worked on", "fell off the bus", None]
    assert states(batch(two=Fatal("no such key"))) == ["found", "failed", "found"]
    assert batch.begun == ["one", "two"]


def test_an_interrupted_batch_goes_on_where_it_stood(batch):
    outcomes = batch(two=KeyboardInterrupt())
    assert states(outcomes) == ["found", "interrupted", "not begun"]
    assert batch.begun == ["one", "two"]
    assert states(batch()) == ["found"] * 3
    assert batch.begun == ["two", "three"]


def test_all_jobs_together_stay_within_their_evaluations_also_over_several_calls(batch):
    batch.in_all = {"max_evaluations": 12}
    assert batch.plan().evaluations_left == 12
    outcomes = batch()
    assert [o.result["evaluations"] for o in outcomes] == [5, 5, 2]
    *_, last = again = batch()
    assert states(again) == ["found", "found", "found"]
    assert last.result == outcomes[-1].result
    assert outcomes[-1].why == "2 of 5 evaluations: those of the batch are spent"
    assert last.why == "all 12 evaluations of the batch are spent"
    assert batch.begun == []
    batch.in_all = {"max_evaluations": 13}
    assert [o.result["evaluations"] for o in batch()] == [5, 5, 3]


def test_what_only_a_cluster_knows_does_not_keep_a_job_back_and_its_evaluations_count(batch):
    batch.defaults |= {"engine": "ray", "targets": ["b200"], "max_evaluations": 5}
    batch.jobs = [{"kernel": "kernels/vector_add.py"}, {"kernel": "kernels/softmax.py"}]
    batch.in_all = {"max_evaluations": 8}
    plan = batch.plan()
    assert [planned.trouble for planned in plan.jobs] == [None, None]

    def tune_elsewhere(name, settings, *, observer):
        run = settings.run.model_copy(update={"engine": "local", "target": "auto"})
        recording = batch.names[["vector_add.py", "softmax.py"].index(Path(name).name)]
        return tune(recording, settings.model_copy(update={"run": run}), observer=observer)

    outcomes = run_batch(plan, silently, tune_one=tune_elsewhere)
    assert [o.result["evaluations"] for o in outcomes] == [5, 3]


def test_a_run_on_the_cpus_of_a_cluster_is_the_run_that_is_made_here(batch):
    batch.jobs = [{"kernel": "kernels/vector_add.py", "targets": ["cpu"]}]
    here = batch.plan().jobs[0].key
    batch.defaults |= {"engine": "ray"}
    assert batch.plan().jobs[0].key == here != ""


H100, PCIE = {"capability": 90, "multiprocessors": 132}, {"capability": 90, "multiprocessors": 114}


def ended_elsewhere(batch: Batch, facts: dict, *, target: str = "h100", triton: str = "3.9", evaluations=1) -> str:
    """A run of vector_add that was made where GPUs are, and came into this journal."""
    kernel = load_kernel(ROOT / "kernels/vector_add.py")
    chosen = load(None, {}, {})
    problem = {**kernel.problem(None, "cuda"), **facts}
    described = {**describe(problem, target, chosen), "device": f"GPU {facts}", "versions": {"triton": triton}}
    config = {"BLOCK": 64}
    with Journal(batch.folder / "j.db") as journal:
        run = journal.open_run(kernel.name, kernel.source_hash, described)
        for number in range(evaluations):
            timed = Measurement(Fidelity(3, "high", 50), "measured", (1.0,))
            trial = Trial(number, Candidate(config, "", "default", None), (timed,))
            run.begin(trial)
            run.append(trial)
        best = {"config": config, "latency_ms": 1.0, "ci95_ms": [1.0, 1.0]}
        run.finish(
            "evaluations",
            {"run_id": run.id, "evaluations": evaluations, "stopped": "evaluations", "seconds": 1.0, "best": best},
        )
        return run.id


@pytest.fixture
def no_gpus(monkeypatch) -> None:
    monkeypatch.setattr("evotune.subject.detect", list)
    monkeypatch.setattr("evotune.batch.plan.load_checked", load_kernel)  # no process for each plan


@pytest.mark.usefixtures("no_gpus")
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_run_that_has_ended_on_a_device_that_is_out_of_reach_is_done(batch, engine):
    batch.defaults = {"engine": engine, "max_evaluations": 1}
    batch.jobs = [{"kernel": "vector_add", "targets": ["h100"]}]
    assert batch.plan().jobs[0].state == ("cannot run" if engine == "local" else "new")
    run_id = ended_elsewhere(batch, H100)
    (planned,) = batch.plan().jobs
    assert (planned.state, planned.known.run_id, planned.to_json()["why"]) == ("done", run_id, None)
    (outcome,) = batch()
    assert (batch.begun, outcome.state, outcome.result["run_id"]) == ([], "found", run_id)
    batch.defaults["max_evaluations"] = 2
    assert batch.plan().jobs[0].state == ("cannot run" if engine == "local" else "goes on")


@pytest.mark.usefixtures("no_gpus")
@pytest.mark.parametrize("targets", [["auto"], ["cuda"]])
def test_where_a_target_fits_any_device_only_the_cluster_tells_whether_a_job_is_done(batch, targets):
    batch.defaults = {"engine": "ray", "max_evaluations": 1}
    batch.jobs = [{"kernel": "vector_add", "targets": targets}]
    ended_elsewhere(batch, H100)
    ended_elsewhere(batch, {"capability": 80, "multiprocessors": 108}, target="cuda")
    assert [planned.state for planned in batch.plan().jobs] == ["new"]


@pytest.mark.usefixtures("no_gpus")
@pytest.mark.parametrize("other", [{"facts": PCIE}, {"facts": H100, "triton": "3.8"}])
def test_runs_on_two_devices_or_with_two_versions_are_not_guessed_between(batch, other):
    batch.defaults = {"engine": "ray", "max_evaluations": 1}
    batch.jobs = [{"kernel": "vector_add", "targets": ["h100"]}]
    ended_elsewhere(batch, H100)
    assert [planned.state for planned in batch.plan().jobs] == ["done"]
    ended_elsewhere(batch, **other)
    assert [planned.state for planned in batch.plan().jobs] == ["new"]


def test_all_jobs_together_stay_within_their_time(batch, monkeypatch):
    now_s, given_s = [1000.0], []
    monkeypatch.setattr("evotune.batch.run.time", SimpleNamespace(monotonic=lambda: now_s[0]))

    def tune_one(name, settings, *, observer):
        now_s[0] += 50
        given_s.append(settings.run.max_seconds)
        raise UsageError("no")

    batch.in_all = {"max_seconds": 100}
    batch.jobs[0]["max_seconds"] = 70
    outcomes = run_batch(batch.plan(), silently, tune_one=tune_one)
    assert given_s == [70, 50]
    assert states(outcomes) == ["failed", "failed", "not begun"]
    assert outcomes[2].why == "all 100.0 s of the batch are spent"


def test_all_jobs_together_stay_within_their_money(batch):
    given_usd = []

    def tune_one(name, settings, *, observer):
        given_usd.append(settings.llm.max_usd)
        return tune(name, settings, observer=observer)

    batch.in_all = {"max_usd": 0.5}
    batch.jobs[1]["max_usd"] = 0.25
    assert states(run_batch(batch.plan(), silently, tune_one=tune_one)) == ["found"] * 3
    assert given_usd == [0.5, 0.25, 0.5]


def test_money_that_a_failed_job_has_spent_is_gone(batch):
    batch.in_all = {"max_usd": 0.5}

    def tune_one(name, settings, *, observer):
        run_id = tune(name, settings, observer=observer).run_id
        with Journal(batch.folder / "j.db") as journal:
            call = LlmCall("some", "model", 1, 1, 1.0, 0.1, spent_usd=1.0)
            Run(journal, run_id, is_new=False, replaces_edited=False).record_call(call)
        raise DeviceError("fell off the bus")

    outcomes = run_batch(batch.plan(), silently, tune_one=tune_one)
    assert states(outcomes) == ["device fault", "not begun", "not begun"]
    assert outcomes[1].why == "all $0.5 of the batch are spent"


def test_a_run_that_the_limit_of_all_has_cut_is_gone_on_with(batch):
    batch()
    journal = batch.folder / "j.db"
    batch.jobs = batch.jobs[:1]
    batch.defaults = {"max_evaluations": 50, "max_seconds": 0.0001}
    (cut,) = batch()
    assert cut.result["stopped"] == "seconds"
    batch.defaults = {"max_evaluations": 50, "max_seconds": 600}
    assert [p.state for p in batch.plan().jobs] == ["goes on"]
    batch.defaults = {"max_evaluations": 50, "max_seconds": 0.0001}
    assert [p.state for p in batch.plan().jobs] == ["done"]
    assert len(history.runs(journal)) == 3


def test_a_run_that_was_killed_after_it_had_gone_on_is_not_done(batch):
    batch()
    with contextlib.closing(sqlite3.connect(batch.folder / "j.db")) as db, db:
        db.execute("UPDATE run SET result = json_set(result, '$.evaluations', 4)")  # of an earlier state of it
    assert [p.state for p in batch.plan().jobs] == ["goes on"] * 3


def test_a_run_that_was_cut_off_in_its_finals_holds_them(batch):
    first = batch()
    with contextlib.closing(sqlite3.connect(batch.folder / "j.db")) as journal:
        journal.execute("UPDATE run SET result=NULL, stopped=NULL WHERE id=?", [first[1].result["run_id"]])
        journal.commit()
    again = batch()
    assert states(again) == ["found"] * 3
    assert [outcome.was_done for outcome in again] == [True, False, True]
    assert again[1].result["run_id"] == first[1].result["run_id"]
    assert again[1].result["evaluations"] == 5


def test_a_job_is_known_by_the_source_that_warms_it(batch):
    cold, *sources = batch.names
    recorded(Path(sources[1]), device="three", factor=2.0)
    batch.jobs = [{"kernel": cold}]
    batch()
    batch.jobs = [{"kernel": cold, "warm_start": source} for source in sources]
    assert [p.state for p in batch.plan().jobs] == ["new", "new"]
    first = batch()
    assert [p.state for p in batch.plan().jobs] == ["done", "done"]
    batch.jobs.reverse()
    assert [o.result["run_id"] for o in batch()] == [o.result["run_id"] for o in reversed(first)]
    assert batch.begun == []


def test_an_edited_kernel_is_tuned_anew(batch):
    first = batch()
    recorded(Path(batch.names[0]), device="one", factor=2.0)
    assert [p.state for p in batch.plan().jobs] == ["new", "done", "done"]
    assert batch()[0].result["run_id"] != first[0].result["run_id"]


def test_the_index_leads_to_a_page_for_each_run_and_text_stays_text(batch):
    batch.jobs[2]["seed"] = 7
    outcomes = batch(two=DeviceError("<script>alert(1)</script>"))
    folder = batch.folder / "pages"
    folder.mkdir()
    write_pages(outcomes, batch.folder / "j.db", folder)
    index = (folder / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"]+)">', index)
    assert links == [f"{o.result['run_id']}.html" for o in outcomes if o.result]
    for link in links:
        assert "<!doctype html>" in (folder / link).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in index
    assert index.count(", seed 7</th>") == 1
    assert "<script" not in index
    assert len(re.findall("<tr>", index)) == 4
    for link in links:  # whose runs have ended: what stands there is not made again
        (folder / link).write_text("mine", encoding="utf-8")
    again = batch()
    write_pages(again, batch.folder / "j.db", folder)
    assert [(folder / link).read_text(encoding="utf-8") for link in links] == ["mine"] * 2
    assert (folder / f"{again[1].result['run_id']}.html").stat().st_size > 10_000


def evotune(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["evotune", "batch", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_the_command_plans_runs_and_tells(batch, monkeypatch, capsys):
    monkeypatch.chdir(batch.folder)
    jobs = Path("jobs.yaml")
    jobs.write_text(
        "defaults: {max_evaluations: 4, provider: none}\njobs: [{kernel: ./one, seed: 3}, {kernel: ./two}]"
    )
    code, out, _ = evotune(monkeypatch, capsys, jobs, "--dry-run")
    assert code == 0
    assert "   1  ./one on auto, seed 3: new, 4 evaluations\n" in out
    assert "2 jobs: 2 new\nat most 8 evaluations in all; journal .evotune/journal.db\n" in out
    assert not Path(".evotune").exists()
    code, out, err = evotune(monkeypatch, capsys, jobs, "--json", "--report", "pages")
    assert code == 0
    told = json.loads(out)
    assert [(job["kernel"], job["state"]) for job in told["jobs"]] == [("./one", "found"), ("./two", "found")]
    assert told["jobs"][0]["result"]["evaluations"] == 4
    assert "job 2 of 2: ./two on auto (so far 1 found)" in err
    assert {page.name for page in Path("pages").iterdir()} == {
        "index.html",
        *(f"{job['result']['run_id']}.html" for job in told["jobs"]),
    }
    code, out, err = evotune(monkeypatch, capsys, jobs)
    assert (code, err) == (0, "")
    assert "2 jobs: 2 found" in out
    code, out, _ = evotune(monkeypatch, capsys, jobs, "--dry-run", "--json")
    assert [job["state"] for job in json.loads(out)["jobs"]] == ["done", "done"]


def test_exit_codes_tell_the_gravest_of_what_happened(batch, monkeypatch, capsys):
    monkeypatch.chdir(batch.folder)
    jobs = Path("jobs.yaml")
    jobs.write_text("jobs: [{kernl: x}]")
    code, out, err = evotune(monkeypatch, capsys, jobs)
    assert (code, out) == (2, "")
    assert "error: jobs.yaml: jobs[0].kernl is not known (did you mean 'kernel'?)" in err
    # H100 is not here: the other job is done all the same.
    jobs.write_text(
        "jobs: [{kernel: matmul, targets: [h100]}, {kernel: ./one, max_evaluations: 3, provider: none}]"
    )
    code, out, _ = evotune(monkeypatch, capsys, jobs)
    assert code == 3
    assert "matmul on h100: device fault: target h100 was asked for" in out
    assert "1 device fault, 1 found" in out
    few = "{max_evaluations: 3}"
    jobs.write_text(f"defaults: {{provider: none}}\nin_all: {few}\njobs: [{{kernel: ./one}}, {{kernel: ./two}}]")
    code, out, _ = evotune(monkeypatch, capsys, jobs)
    assert code == 1
    assert "all 3 evaluations of the batch are spent" in out
