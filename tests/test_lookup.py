"""The table of what was found: written from journals, read by production code that has no NumPy."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import evotune
from evotune import history, lookup_table
from evotune.errors import UsageError
from evotune.export import FORMATS, export
from evotune.kernel import load_kernel
from tests.export.journals import H100, MATMUL, PROBLEM, write, write_shapes

B200 = "NVIDIA B200"
FACTS = {"capability": 90, "multiprocessors": 132}


def block(m: int) -> dict:
    return {**MATMUL, "BLOCK_M": m}


def exported(journal: Path, table: Path):
    found = FORMATS["lookup"].find([history.load(journal, run.run_id) for run in history.runs(journal)])
    made = export(found, "lookup")
    table.write_text(made.text, encoding="utf-8")
    return made


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three problems on one device, one of them on another one as well."""
    journal = tmp_path / "j.db"
    for m, config in ((1, 16), (100, 64), (10_000, 128)):
        write(journal, [block(0), block(config)], problem={**PROBLEM, **FACTS, "m": m})
    write(journal, [block(0), block(256)], problem={**PROBLEM, "m": 100}, device=B200)
    exported(journal, tmp_path / "table.json")
    return tmp_path / "table.json"


def test_the_configuration_of_a_problem_on_a_device_is_found_and_any_other_is_not(table):
    def found(m, device, kernel="matmul"):
        return evotune.lookup(kernel, {**PROBLEM, "m": m}, device, table=table)

    assert found(100, H100["device"]) == block(64)
    assert found(100, B200) == block(256)
    assert found(1, H100["device"]) == block(16)
    assert found(1, B200) is None
    assert found(101, H100["device"]) is None
    assert found(100, "NVIDIA A100") is None
    assert found(100, None, "softmax") is None


def test_what_is_given_may_be_changed_by_whoever_asked(table):
    problem = {**PROBLEM, "m": 1}
    evotune.lookup("matmul", problem, H100["device"], table=table).clear()
    assert evotune.lookup("matmul", problem, H100["device"], table=str(table)) == block(16)


def test_without_a_device_the_only_one_is_taken_and_of_several_none(table, tmp_path):
    with pytest.raises(UsageError, match=r"matmul on NVIDIA B200, NVIDIA H100.*`device`"):
        evotune.lookup("matmul", PROBLEM, table=table)
    write(tmp_path / "one.db", [MATMUL])
    exported(tmp_path / "one.db", tmp_path / "one.json")
    assert evotune.lookup("matmul", PROBLEM, table=tmp_path / "one.json") == MATMUL


@pytest.mark.parametrize(("m", "expected"), [(9, 16), (20, 64), (990, 64), (1100, 128), (10**9, 128)])
def test_the_nearest_problem_by_the_log_of_sizes_is_taken_if_that_is_wanted(table, m, expected):
    ask = {"problem": {**PROBLEM, "m": m}, "device": H100["device"], "table": table}
    assert evotune.lookup("matmul", **ask, nearest=True) == block(expected)
    assert evotune.lookup("matmul", **ask) is None


def test_another_dtype_is_never_near(table):
    problem = {**PROBLEM, "dtype": "int8"}
    assert evotune.lookup("matmul", problem, H100["device"], table=table, nearest=True) is None


def test_other_names_than_those_that_were_tuned_for_are_an_error(table):
    with pytest.raises(UsageError, match="other names than those that were tuned for: dtype, k, m, n"):
        evotune.lookup("matmul", {"m": 1, "n": 2}, B200, table=table)
    with pytest.raises(UsageError, match="those that were tuned for have"):
        evotune.lookup("matmul", {**PROBLEM, "m": "many"}, B200, table=table, nearest=True)


@pytest.mark.parametrize("nearest", [False, True])
def test_a_configuration_of_another_text_of_the_kernel_is_never_given_to_who_names_the_file(tmp_path, nearest):
    kernel = tmp_path / "matmul.py"
    kernel.write_text(Path("kernels/matmul.py").read_text(encoding="utf-8"), encoding="utf-8")
    same = load_kernel(kernel).source_hash
    entry = {"kernel": "matmul", "device": B200, "problem": PROBLEM}
    entries = [
        {**entry, "config": block(1), "source_hash": "newer"},
        {**entry, "config": block(2), "source_hash": same},
    ]
    edited = tmp_path / "edited.py"
    edited.write_text(kernel.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"schema": 1, "entries": entries}), encoding="utf-8")

    def found(source):
        return evotune.lookup("matmul", PROBLEM, B200, table=table, source=source, nearest=nearest)

    assert found(kernel) == block(2)
    assert found(edited) is None
    assert found(None) == block(1)
    with pytest.raises(UsageError, match=r"cannot read .*none\.py"):
        found(tmp_path / "none.py")


def test_it_brings_in_nothing_heavy(table):
    code = (
        "import json, sys, evotune\n"
        f"assert evotune.lookup('matmul', {PROBLEM!r} | {{'m': 1}}, {H100['device']!r}, table={str(table)!r})\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "pydantic", "torch", "triton", "scipy", "sklearn", "typer", "rich", "yaml", "sqlite3"}
    assert heavy.isdisjoint(json.loads(done.stdout))


def test_many_threads_read_the_file_once_and_find_the_same(table, monkeypatch):
    reads, begin = [], threading.Barrier(8)
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **how: reads.append(self) or read(self, **how))

    def ask(_):
        begin.wait()
        return [evotune.lookup("matmul", {**PROBLEM, "m": m}, H100["device"], table=table) for m in (1, 100)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert found == [[block(16), block(64)]] * 8
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("{", "is no lookup table of evotune"),
        ("[]", "is no lookup table"),
        ('{"schema": 1, "entries": [{"kernel": "x"}]}', "is no lookup table"),
        ('{"schema": 2, "entries": []}', "has schema 2, this evotune reads 1"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_words_every_time(tmp_path, text, words):
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    for _ in range(2):
        with pytest.raises(UsageError, match=words):
            evotune.lookup("matmul", PROBLEM, table=path)


def test_a_table_has_the_fastest_of_each_kernel_problem_and_device_and_what_makes_it_believable(tmp_path):
    journal = tmp_path / "j.db"
    fast = write(journal, [MATMUL, block(2), block(3)])
    write(journal, [MATMUL, block(2)])
    other = write(journal, [{"BLOCK": 64}], kernel="softmax", problem={"rows": 8, "dtype": "float16"})
    shapes = write_shapes(journal)
    write(journal, [MATMUL], provenance="replayed", problem={})
    write(journal, [MATMUL], result=False)
    made = exported(journal, tmp_path / "table.json")
    entries = json.loads(made.text)["entries"]
    assert {e["run_id"] for e in entries} == {fast, other, shapes}
    assert made.notes == (
        "1 results are left out: others are faster at the same problem",
        "2 results are left out: not measured, or of runs that have not ended",
    )
    (entry,) = (e for e in entries if e["run_id"] == fast)
    assert entry["config"] == block(3)
    assert entry["problem"] == PROBLEM
    assert (entry["latency_ms"], entry["speedup"]) == (2 / 3, 3.0)
    assert entry["ci95_ms"] == [1.9 / 3, 2.1 / 3]
    assert (entry["device"], entry["versions"], entry["source_hash"]) == (H100["device"], H100["versions"], "hash")
    assert evotune.lookup("toy", {"n": 512}, table=tmp_path / "table.json") == {"tile": 64}


def test_nothing_that_was_only_replayed_becomes_a_table(tmp_path):
    write(tmp_path / "j.db", [MATMUL], provenance="replayed")
    with pytest.raises(UsageError, match="nothing of it was measured"):
        exported(tmp_path / "j.db", tmp_path / "table.json")


def test_the_command_writes_a_table_of_all_runs(tmp_path, monkeypatch, capsys):
    from evotune.cli import main

    write(tmp_path / "j.db", [MATMUL])
    write(tmp_path / "j.db", [block(7)], device=B200)
    arguments = ["export", "--all", "--format", "lookup", "--journal", "j.db", "--out", "table.json"]
    monkeypatch.chdir(tmp_path)
    for extra, code in (([], 0), (["r-1"], 2)):
        monkeypatch.setattr(sys, "argv", ["evotune", *arguments, *extra])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
    assert "--all takes all runs" in capsys.readouterr().err
    assert evotune.lookup("matmul", PROBLEM, B200, table="table.json") == block(7)


def test_the_attribute_is_the_function():
    assert evotune.lookup is lookup_table.lookup


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("m", [-5, float("nan"), float("inf"), 10**400, True, "5000", None])
def test_what_is_no_size_is_refused_and_not_near_to_anything(table, m, nearest):
    if not nearest and m in (True, "5000"):
        assert evotune.lookup("matmul", {**PROBLEM, "m": m}, B200, table=table) is None
        return
    with pytest.raises(UsageError, match=r"problem\['m'\] is"):
        evotune.lookup("matmul", {**PROBLEM, "m": m}, B200, table=table, nearest=nearest)


@pytest.mark.parametrize("problem", [None, [("m", 1)]])
def test_a_problem_that_is_no_mapping_is_refused(table, problem):
    with pytest.raises(UsageError, match="should be a mapping"):
        evotune.lookup("matmul", problem, B200, table=table)
