"""The file of jobs: what it means, and all that is wrong with it in one message."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import pytest

from evotune.batch import plan_batch, read_batch
from evotune.batch.jobs import NO_OPTIONS, OPTIONS
from evotune.cli.run import run
from evotune.errors import UsageError
from evotune.kernel import load_kernel
from evotune.settings import Settings, load

ROOT = Path(__file__).parents[2]


def base(tmp_path: Path, **flags) -> Settings:
    return load(None, {"run.journal": str(tmp_path / "j.db"), "llm.provider": "none", **flags}, {})


def read(tmp_path: Path, text: str, **flags):
    path = tmp_path / "jobs.yaml"
    path.write_text(text, encoding="utf-8")
    return read_batch(path, base(tmp_path, **flags))


def test_each_kernel_is_tuned_at_each_shape_for_each_target_and_high_priority_comes_first(tmp_path):
    batch = read(
        tmp_path,
        """
        jobs:
          - kernel: softmax
          - {kernel: matmul, shapes: [small, wide], targets: [cpu, h100], priority: 2}
          - {kernel: attention, priority: -1}
          - {kernel: vector_add, priority: 2}
        """,
    )
    assert [str(job) for job in batch.jobs] == [
        "matmul small on cpu",
        "matmul small on h100",
        "matmul wide on cpu",
        "matmul wide on h100",
        "vector_add on auto",
        "softmax on auto",
        "attention on auto",
    ]


def test_jobs_that_differ_in_what_tells_runs_apart_are_called_by_it(tmp_path):
    batch = read(
        tmp_path,
        """
        jobs:
          - {kernel: matmul, shapes: [small]}
          - {kernel: matmul, shapes: [small], seed: 2, max_evaluations: 9, provider: mock}
          - {kernel: matmul, shapes: [small], search: mfbo, warm_start: a.db}
        """,
    )
    assert [str(job) for job in batch.jobs] == [
        "matmul small on auto",
        "matmul small on auto, seed 2",
        "matmul small on auto, search mfbo, warm start a.db",
    ]


def test_a_job_wins_over_the_defaults_and_they_over_the_settings(tmp_path):
    batch = read(
        tmp_path,
        """
        defaults: {max_evaluations: 20, seed: 1, shapes: [small], provider: mock, priority: 3}
        in_all: {max_evaluations: 100, max_usd: 2.5}
        jobs:
          - {kernel: matmul, seed: 2, on_llm_error: fallback, max_usd: 1}
          - {kernel: softmax, shapes: [odd], priority: 1}
        """,
        **{"run.seed": 9, "run.search": "random", "run.max_evaluations": 7},
    )
    matmul, softmax = batch.jobs
    assert (matmul.settings.run.max_evaluations, matmul.settings.run.seed) == (20, 2)
    assert (softmax.settings.run.max_evaluations, softmax.settings.run.seed) == (20, 1)
    assert matmul.settings.run.search == "random"
    assert (matmul.settings.llm.provider, matmul.settings.llm.on_error) == ("mock", "fallback")
    assert (matmul.settings.llm.max_usd, softmax.settings.llm.max_usd) == (1, None)
    assert [(job.settings.run.shape, job.priority) for job in batch.jobs] == [("small", 3), ("odd", 1)]
    assert (batch.in_all.max_evaluations, batch.in_all.max_usd) == (100, 2.5)


def test_all_that_is_wrong_is_told_at_once_with_its_place_and_the_nearest_name(tmp_path):
    with pytest.raises(UsageError) as error:
        read(
            tmp_path,
            """
            defaults: {max_evalutions: 20, seed: -1}
            jobs:
              - {kernel: matmul, max_seconds: soon, priority: high}
              - {shapes: [small]}
              - {kernel: matmul, shapes: small, target: h100}
              - {kernel: matmul, shapes: [{m: 64}], search: randm}
            """,
        )
    lines = [line.removeprefix(f"{tmp_path / 'jobs.yaml'}: ") for line in str(error.value).splitlines()]
    assert lines == [
        "defaults.max_evalutions is not known (did you mean 'max_evaluations'?)",
        "defaults.seed is -1; it should be greater than or equal to 0",
        "jobs[0].priority is 'high'; it should be a valid integer",
        "jobs[0].max_seconds is 'soon'; it should be a valid number",
        "jobs[1].kernel is missing",
        "jobs[2].target is not known (did you mean 'targets'?)",
        "jobs[2].shapes is 'small'; it should be a valid list",
        "jobs[3].shapes[0] is {'m': 64}; it should be a valid string",
        "jobs[3].search is 'randm'; it should be 'evotune', 'mfbo', 'random', 'pattern', 'de', 'genetic' or "
        "'annealing'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "{default: {seed: 1}, jobs: [{kernel: matmul, sed: 2}, {seed: -1}, matmul, {kernel: matmul}]}",
            [
                "jobs[2] is 'matmul'; it should be a valid dictionary",
                "default is not known (did you mean 'defaults'?)",
                "jobs[0].sed is not known (did you mean 'seed'?)",
                "jobs[1].kernel is missing",
                "jobs[1].seed is -1; it should be greater than or equal to 0",
            ],
        ),
        (
            "{in_all: {max_seconds: soon}, defaults: [seed], jobs: [{kernel: 7}]}",
            [
                "defaults is ['seed']; it should be a valid dictionary",
                "in_all.max_seconds is 'soon'; it should be a valid number",
                "jobs[0].kernel is 7; it should be a valid string",
            ],
        ),
        (
            "{kernel: matmul, max_usd: 2, shapes: [1]}",
            [
                "jobs is missing",
                "kernel is a key of a job and not of the file; defaults.kernel is for each of them",
                "max_usd is a key of a job and not of the file; defaults.max_usd is for each of them, and "
                "in_all.max_usd for all together",
                "shapes is a key of a job and not of the file; defaults.shapes is for each of them",
            ],
        ),
        ("{defaults: {sed: 1}}", ["jobs is missing", "defaults.sed is not known (did you mean 'seed'?)"]),
    ],
)
def test_what_is_wrong_with_the_file_does_not_hide_what_is_wrong_with_its_jobs(tmp_path, text, expected):
    with pytest.raises(UsageError) as error:
        read(tmp_path, text)
    lines = str(error.value).splitlines()
    assert [line.removeprefix(f"{tmp_path / 'jobs.yaml'}: ") for line in lines] == expected


def test_a_section_without_keys_is_as_good_as_none(tmp_path):
    batch = read(tmp_path, "defaults:\nin_all:\njobs: [{kernel: matmul}]")
    assert [str(job) for job in batch.jobs] == ["matmul on auto"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "jobs is missing"),
        ("jobs: []", "jobs"),
        ("jobs: matmul", "jobs is 'matmul'; it should be a valid list"),
        ("job: [{kernel: matmul}]", "job is not known.*did you mean 'jobs'"),
        ("{jobs: [{kernel: matmul}], in_all: {max_evaluation: 3}}", "in_all.max_evaluation is not known"),
        ("jobs: [", "is not valid YAML"),
    ],
)
def test_a_file_that_lists_no_jobs_is_refused(tmp_path, text, words):
    with pytest.raises(UsageError, match=words):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        (
            "jobs: [{kernel: matmul}, {kernel: ./kernels/matmul.py, max_evaluations: 9}, {kernel: copy.py}]",
            [
                "jobs[1]: ./kernels/matmul.py on auto would be the same run as jobs[0]: matmul on auto",
                "jobs[2]: copy.py on auto would be the same run as jobs[0]: matmul on auto",
            ],
        ),
        (
            "jobs: [{kernel: matmul, targets: [auto, cpu], shapes: [default, small]}, {kernel: matmul}]",
            [
                "jobs[0]: matmul default on cpu would be the same run as jobs[0]: matmul default on auto",
                "jobs[0]: matmul small on cpu would be the same run as jobs[0]: matmul small on auto",
                "jobs[1]: matmul on auto would be the same run as jobs[0]: matmul default on auto",
            ],
        ),
        (
            "jobs: [{kernel: matmul, targets: [h100]}, {kernel: matmul, shapes: [gpu], targets: [h100, b200]}]",
            ["jobs[1]: matmul gpu on h100 would be the same run as jobs[0]: matmul on h100"],
        ),
        (
            "{defaults: {engine: ray}, jobs: [{kernel: matmul}, {kernel: kernels/matmul.py}, "
            "{kernel: matmul, shapes: [gpu], targets: [h100, cuda]}, {kernel: matmul, seed: 1}]}",
            ["jobs[1]: kernels/matmul.py on auto would be the same run as jobs[0]: matmul on auto"],
        ),
    ],
)
def test_jobs_that_would_be_one_run_are_refused_however_they_are_spelt(tmp_path, monkeypatch, text, twice):
    copied = Path(shutil.copy(ROOT / "kernels/matmul.py", tmp_path / "copy.py"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("evotune.subject.detect", list)
    monkeypatch.setattr("evotune.batch.plan.load_checked", load_kernel)  # no process for each kernel
    with pytest.raises(UsageError) as error:
        plan_batch(read(tmp_path, text.replace("copy.py", str(copied))), base(tmp_path), {})
    lines = str(error.value).replace(f"{tmp_path}/", "").splitlines()
    assert lines == [f"{line}; leave one out, or give it another seed" for line in twice]


def test_every_option_of_a_run_that_is_a_setting_is_a_key_of_a_job():
    not_settings = {
        "kernel",
        "out",
        "per_model",
        "journal",
        "track",
        "fresh",
        "dry_run",
        "config",
        "as_json",
        "verbose",
        "quiet",
    }
    options = set(inspect.signature(run).parameters) - not_settings - {"progress"} - set(NO_OPTIONS)
    assert options == set(OPTIONS)


def test_what_only_the_kernels_know_is_told_for_all_jobs_at_once(tmp_path):
    batch = read(
        tmp_path,
        """
        jobs:
          - {kernel: matmul, shapes: [smal, small], targets: [cpu]}
          - {kernel: matmull}
          - {kernel: softmax, targets: [h1000]}
          - {kernel: softmax, provider: opnai}
        """,
    )
    with pytest.raises(UsageError) as error:
        plan_batch(batch, base(tmp_path), {})
    found = str(error.value).splitlines()
    assert len(found) == 4
    for line, words in zip(
        found,
        (
            ["jobs[0]: matmul smal on cpu: ", "did you mean 'small'"],
            ["jobs[1]", "did you mean 'matmul'"],
            ["jobs[2]", "did you mean 'h100'"],
            ["jobs[3]", "did you mean 'openai'"],
        ),
        strict=True,
    ):
        assert all(word in line for word in words), line
