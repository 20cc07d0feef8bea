"""Our searches inside Helion; skipped with the reason where Helion is not installed."""

import importlib
import math
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from evotune.errors import UsageError

pytest.importorskip("helion", reason="needs helion; pip install helion", exc_type=ImportError)

import helion
from helion.autotuner import LocalAutotuneCache, search_algorithms
from helion.autotuner.base_search import PopulationBasedSearch
from helion.exc import NoConfigFound
from helion.runtime.settings import default_autotuner_fn
from simulated import benchmarked, bound, environment, latency_ms, use

import evotune.helion
from evotune.helion import EvoTune, MultiFidelityBayesianSearch
from evotune.helion.line import Line
from evotune.helion.space import HelionSpace
from evotune.trial import Candidate

SMALL = {"n_low_fidelity": 14, "n_medium_fidelity": 5, "n_high_fidelity": 3, "n_ultra_fidelity": 2}
OPTIONS = {EvoTune: {"max_evaluations": 28}, MultiFidelityBayesianSearch: SMALL}
OURS = pytest.mark.parametrize("search", OPTIONS)


@pytest.fixture(autouse=True)
def _as_in_simulated(monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def tune(search=EvoTune, answer=latency_ms, kernel="matmul", gpu="h100", settings=None, **options):
    """What a search returns, and what it asked the provider for."""
    with bound(kernel, gpu) as (found, args):
        for name, value in (settings or {}).items():
            setattr(found.settings, name, value)
        made = search(found, args, **{**OPTIONS[search], **options})
        log = use(made, answer)
        return made.autotune(), log, made


usual = cache(tune)


@OURS
def test_it_returns_the_best_of_what_it_measured(search):
    best, log, made = usual(search)
    assert isinstance(made, PopulationBasedSearch)
    assert isinstance(best, helion.Config)
    with bound():
        assert made.config_gen.unflatten(made.config_gen.flatten(best)) == best
    assert latency_ms(best.config) == min(latency_ms(c) for c in benchmarked(log))


@OURS
def test_it_returns_what_helions_finish_returns(search, monkeypatch):
    other = helion.Config(num_warps=16)
    monkeypatch.setattr(PopulationBasedSearch, "_finalize", lambda self: other)
    options = {"n_low_fidelity": 9} if search is MultiFidelityBayesianSearch else {"max_evaluations": 9}
    assert tune(search, **options)[0] is other


@OURS
def test_no_configuration_is_measured_twice_as_a_new_one(search):
    _, log, _ = usual(search)
    found = [repr(sorted(c.items())) for c in benchmarked(log)]
    assert len(found) == len(set(found))


class Proposes:
    """A searcher that has a list of configurations to propose, and keeps what it is told."""

    def __init__(self, configs):
        self._left = [Candidate(dict(c), "", "random") for c in configs]
        self.told = []

    def ask(self, pending):
        return self._left.pop(0) if self._left else None

    def tell(self, feedback):
        self.told += feedback


def test_two_names_of_one_configuration_are_measured_once_and_both_are_told():
    with bound() as (found, args):
        made = EvoTune(found, args)
        space = HelionSpace(made.config_gen)
        plain = dict(space.space.default)
        one, other = {**plain, "num_sm_multiplier": 2}, {**plain, "num_sm_multiplier": 4}  # pid_type is flat
        proposes = Proposes([one, other, plain, {**plain, "num_stages": 5}, one])
        line = Line(space, proposes, made.make_unbenchmarked)
        batch = line.gather(4)
        assert [asked.member.config.config["num_stages"] for asked in batch] == [plain["num_stages"], 5]
        for asked in batch:
            asked.member.perfs.append(1.5)
        line.tell(batch)
        assert line.gather(4) == []
    told = [(item.config["num_sm_multiplier"], item.config["num_stages"]) for item in proposes.told]
    stages = plain["num_stages"]
    assert set(told) == {(2, stages), (4, stages), (1, stages), (1, 5)}
    assert {item.loss for item in proposes.told} == {math.log(1.5)}


def test_it_finds_better_than_chance_does_with_three_times_as_many():
    best, log, _ = tune(max_evaluations=60)
    with bound() as (found, args):
        chance = search_algorithms["RandomSearch"](found, args, count=180)
        use(chance)
        other = chance.autotune()
    assert len(benchmarked(log)) == 60
    assert latency_ms(best.config) < 0.9 * latency_ms(other.config)


def test_it_begins_with_what_helion_recommends():
    _, log, made = tune(max_evaluations=12)
    recommended = [config for _, config in made.config_gen.seed_flat_config_pairs()]
    first = [helion.Config(**config) for config in log[0][1]]
    assert all(config in first for config in recommended)
    assert made.config_spec.default_config().config["block_sizes"] == log[0][1][0]["block_sizes"]


def test_a_users_seed_is_measured_among_the_first():
    mine = helion.Config(block_sizes=[32, 64, 128], num_warps=2, num_stages=5)
    _, log, _ = tune(max_evaluations=12, settings={"autotune_seed_configs": (mine,)})
    assert any(c["block_sizes"] == [32, 64, 128] and c["num_warps"] == 2 for c in log[0][1])


@OURS
def test_what_fails_never_wins_and_is_learnt(search):
    def answer(config):
        """Most seeds fail: whatever has four warps or fewer."""
        return latency_ms(config) if config["num_warps"] > 4 else math.inf

    best, log, _ = tune(search, answer)
    assert best.config["num_warps"] > 4
    measured = benchmarked(log)
    late = measured[len(measured) // 2 :]
    assert sum(c["num_warps"] <= 4 for c in late) < 0.4 * len(late)  # half of all values


def test_if_nothing_runs_helions_own_error_says_so():
    with pytest.raises(NoConfigFound):
        tune(answer=lambda config: math.inf, max_evaluations=20)


@pytest.mark.parametrize("n", [1, 5, 20])
def test_no_more_is_measured_than_the_budget(n):
    _, log, _ = tune(max_evaluations=n)
    assert len(benchmarked(log)) == n


def test_helions_effort_sets_the_budget():
    for effort, n in {"quick": 80, "full": 400}.items():
        with bound() as (found, args):
            found.settings.autotune_effort = effort
            made = evotune.helion.autotuner(found, args)
            assert made.autotuner.max_evaluations == n


def test_helions_wall_clock_budget_ends_the_search():
    def answer(config):
        time.sleep(0.02)
        return latency_ms(config)

    _, log, _ = tune(answer=answer, max_evaluations=400, settings={"autotune_budget_seconds": 1})
    assert 1 < len(benchmarked(log)) < 120


def test_helions_limit_of_generations_ends_the_search():
    _, log, _ = tune(max_evaluations=400, max_generations=2, batch_size=3)
    assert [len(entry[1]) for entry in log if entry[0] == "benchmark"][2:] == [3, 3]


def test_what_a_users_filter_drops_is_not_measured_and_costs_nothing():
    settings = {"autotune_config_filter": lambda config: config if config.config["num_warps"] != 4 else None}
    best, log, _ = tune(max_evaluations=30, settings=settings)
    assert all(c["num_warps"] != 4 for c in benchmarked(log))
    assert len(benchmarked(log)) == 30
    assert best.config["num_warps"] != 4


def test_promoted_configurations_are_timed_longer_and_longer():
    _, log, made = usual(MultiFidelityBayesianSearch)
    assert len(benchmarked(log)) < made.schedule.evaluations
    again = [(entry[1], len(entry[2])) for entry in log if entry[0] == "again"][:-1]  # the last is Helion's finish
    assert [ms for ms, _ in again] == sorted(ms for ms, _ in again)
    assert {ms for ms, _ in again} == {150, 500, 5000}


def test_a_configuration_that_fails_when_promoted_does_not_win():
    best_of_first = {}

    def answer(config):
        name = repr(sorted(config.items()))
        best_of_first[name] = best_of_first.get(name, 0) + 1
        is_second = best_of_first[name] > 1
        return math.inf if is_second and config["num_warps"] == 8 else latency_ms(config)

    best, _, _ = tune(MultiFidelityBayesianSearch, answer)
    assert best.config["num_warps"] != 8


def test_it_works_in_a_space_of_1e15():
    with bound("matmul", "b200") as (found, args):
        made = EvoTune(found, args, max_evaluations=16)
        log = use(made)
        made.autotune()
        assert HelionSpace(made.config_gen).space.cardinality > 1e15
    assert benchmarked(log)


def test_a_model_takes_part_only_if_it_is_asked_for(monkeypatch):
    opened = []
    monkeypatch.setattr("evotune.asking.open_model", lambda *_, **named: opened.append(named["space"]))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-that-nobody-spends")
    tune(max_evaluations=12)
    assert not opened
    monkeypatch.setenv("EVOTUNE_LLM_PROVIDER", "mock")
    tune(max_evaluations=12)
    assert len(opened) == 1


@pytest.mark.parametrize("wrong", [{"max_evaluations": 0}, {"batch_size": 0}, {"max_evaluations": 2.5}])
def test_wrong_numbers_are_refused_by_name(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        tune(**wrong)


def test_repetitions_must_rise():
    with pytest.raises(UsageError, match="must not fall"):
        tune(MultiFidelityBayesianSearch, fidelity_medium=3)


# -- how Helion comes to use it -------------------------------------------------------------------


def test_as_autotuner_fn_it_is_behind_helions_cache():
    with bound() as (found, args):
        found.settings.autotuner_fn = evotune.helion.autotuner
        made = found.settings.autotuner_fn(found, args, max_evaluations=15)
        assert isinstance(made, LocalAutotuneCache)
        assert isinstance(made.autotuner, EvoTune)
        assert made.autotuner.max_evaluations == 15


@pytest.mark.parametrize("name", ["EvoTune", "MultiFidelityBayesianSearch"])
def test_helion_finds_it_by_name(name, monkeypatch):
    monkeypatch.setenv("HELION_AUTOTUNER", name)
    with bound() as (found, args):
        assert type(default_autotuner_fn(found, args).autotuner).__name__ == name


FIRST_OURS = """
import os, sys
import evotune.helion
assert not {"helion", "torch"} & set(sys.modules), "importing it costs torch"
assert evotune.helion.autotuner
sys.path.insert(0, sys.argv[1])
from simulated import benchmarked, bound, environment, use
os.environ.update(environment(), HELION_AUTOTUNER="EvoTune")
from helion.runtime.settings import default_autotuner_fn
with bound() as (found, args):
    search = default_autotuner_fn(found, args, max_evaluations=28).autotuner
    log = use(search)
    search.autotune()
print(benchmarked(log))
"""
FIRST_HELION = """
import os, sys
os.environ["HELION_AUTOTUNER"] = "EvoTune"
import helion
from helion.autotuner import search_algorithms
from helion.runtime.settings import default_autotuner_fn
from types import SimpleNamespace
try:
    default_autotuner_fn(SimpleNamespace(), ())
except ValueError as error:
    print(error)
import evotune.helion
print("EvoTune" in search_algorithms)
"""


def other_process(code, hash_seed):
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, here],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_imported_before_helion_it_is_found_and_the_seed_fixes_what_is_measured():
    _, log, _ = usual()
    assert other_process(FIRST_OURS, "7") == f"{benchmarked(log)}\n"


@pytest.mark.slow
def test_imported_after_helion_it_is_found_and_before_that_helion_says_it_is_unknown():
    said, is_found = other_process(FIRST_HELION, "0").splitlines()
    assert said.startswith("Unknown HELION_AUTOTUNER value: EvoTune, valid options are: ")
    assert is_found == "True"


def test_another_seed_measures_something_else():
    _, log, _ = tune(settings={"autotune_random_seed": 2})
    assert benchmarked(log) != benchmarked(usual()[1])


def test_a_helion_that_it_does_not_fit_goes_on_without_it(monkeypatch, caplog):
    register = importlib.import_module("evotune.helion.register")
    monkeypatch.setitem(sys.modules, "evotune.helion.plugin", None)
    register.register()
    assert "do not fit this version of Helion" in caplog.text
