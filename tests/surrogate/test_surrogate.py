"""Promises of the surrogate, on small spaces with losses that are known everywhere."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from random import Random

import numpy as np
import pytest

from evotune.errors import UsageError
from evotune.space import ConfigSpace
from evotune.surrogate import Surrogate
from evotune.surrogate.view import View

VALUES = {"BLOCK_M": [16, 32, 48, 64, 96, 128], "BLOCK_N": [16, 32, 64, 128, 256], "warps": [1, 2, 4, 8]}
SPACE = ConfigSpace.from_dict({**VALUES, "layout": ["nt", "tn", "nn"]}, ["BLOCK_M * BLOCK_N <= 8192"])
HUGE = ConfigSpace.from_dict({f"p{i}": [1, 2, 4, 8, 16, 32, 64, 128] for i in range(12)}, ["p0 * p1 * p2 <= 4096"])


def loss(config) -> float:
    """A bowl in log2 of the tile, with a layout that is worse; not positive everywhere."""
    m, n, w = (math.log2(config[k]) for k in ("BLOCK_M", "BLOCK_N", "warps"))
    return (m - 6) ** 2 + 0.5 * (n - 6) ** 2 + 0.3 * (w - 2) ** 2 + (config["layout"] == "tn") - 5


def search(surrogate: Surrogate, n: int) -> list[dict]:
    tried = surrogate.start(8)
    for config in tried:
        surrogate.observe(config, loss(config))
    for _ in range(n - 8):
        tried += surrogate.suggest(1)
        surrogate.observe(tried[-1], loss(tried[-1]))
    return [dict(c) for c in tried]


def test_the_best_of_270_is_found_in_30():
    best = min(loss(SPACE.config(i)) for i in range(SPACE.cardinality))
    for seed in range(3):
        assert min(loss(c) for c in search(Surrogate(SPACE, seed=seed), 30)) == best


def test_the_opening_is_spread_out():
    def nearest(configs):
        points = SPACE.encode(configs)
        return (((points[:, None] - points[None]) ** 2).sum(2) + 9 * np.eye(8)).min()

    ours = [nearest(Surrogate(SPACE, seed=seed).start(8)) for seed in range(10)]
    chance = [nearest(SPACE.sample(Random(seed), 8)) for seed in range(100)]
    assert np.median(ours) > np.quantile(chance, 0.9)


def test_the_opening_has_as_many_points_as_were_asked_for():
    assert len({SPACE.key(c) for c in Surrogate(SPACE, seed=0).start(60)}) == 60


def test_the_opening_keeps_away_from_what_is_given():
    surrogate = Surrogate(SPACE, seed=0)
    given = surrogate.start(1)
    assert given[0] not in surrogate.start(5, given=given)


@pytest.mark.parametrize("space", [SPACE, HUGE])
def test_suggestions_are_legal_new_and_different_from_each_other_and_from_pending(space):
    surrogate, rng = Surrogate(space, seed=1), Random(1)
    seen = set()
    for _ in range(12):
        config = space.sample(rng, 1)[0]
        seen.add(space.key(config))
        surrogate.observe(config, sum(math.log2(v) for v in config.values() if isinstance(v, int)))
    pending = surrogate.suggest(2)
    found = surrogate.suggest(6, pending=pending)
    keys = [space.key(c) for c in found]
    assert len(set(keys)) == 6
    assert not set(keys) & (seen | {space.key(c) for c in pending})
    assert all(not space.violations(c) for c in found)


def test_a_batch_is_not_the_same_question_six_times():
    surrogate = Surrogate(SPACE, seed=0)
    tried = search(surrogate, 12)
    rest = [c for c in map(SPACE.config, range(SPACE.cardinality)) if c not in tried]
    highest = np.argsort(-surrogate.score(rest))[:6]
    together = surrogate.suggest(6)
    assert SPACE.key(together[0]) == SPACE.key(rest[highest[0]])
    assert {SPACE.key(c) for c in together} != {SPACE.key(rest[i]) for i in highest}


def test_every_configuration_is_suggested_once_and_then_nothing_is_left():
    space = ConfigSpace.from_dict({"a": [1, 2, 4], "b": [1, 2, 4]})
    surrogate = Surrogate(space, seed=0)
    seen = []
    while found := surrogate.suggest(1):
        seen.append(space.key(found[0]))
        surrogate.observe(found[0], float(found[0]["a"]))
    assert sorted(seen) == sorted(map(tuple, space.keys.tolist()))


def test_it_goes_on_when_everything_has_failed():
    surrogate = Surrogate(SPACE, seed=0)
    for _ in range(20):
        surrogate.observe(surrogate.suggest(1)[0], None)
    assert len(surrogate.suggest(3)) == 3
    assert not surrogate.is_trusted
    assert surrogate.score([SPACE.config(0)]) == [0.0]
    with pytest.raises(UsageError, match="nothing to predict"):
        surrogate.predict([SPACE.config(0)])


def test_a_failure_lowers_the_score_of_what_is_near_and_not_of_what_is_far():
    surrogate = Surrogate(SPACE, seed=0)
    tried = search(surrogate, 20)
    near, far = (
        [{"BLOCK_M": m, "BLOCK_N": 16, "warps": w, "layout": layout} for w in (1, 2)]
        for m, layout in ((16, "tn"), (128, "nn"))
    )
    assert not any(c in tried for c in near)
    before = surrogate.score([near[1], *far])
    # Two, because views take turns.
    for _ in range(2):
        surrogate.observe(near[0], None)
    drop = before - surrogate.score([near[1], *far])
    assert drop[0] > 0.5
    assert abs(drop[1:]).max() < 0.3


def test_predictions_agree_with_what_was_observed_and_doubt_grows_away_from_it():
    surrogate = Surrogate(SPACE, seed=0)
    tried = search(surrogate, 40)
    mean, std = surrogate.predict(tried)
    np.testing.assert_allclose(mean, [loss(c) for c in tried], atol=0.5)
    rest = [SPACE.config(i) for i in range(SPACE.cardinality) if SPACE.config(i) not in tried]
    mean_rest, std_rest = surrogate.predict(rest)
    assert std.mean() < std_rest.mean()
    assert np.corrcoef(mean_rest, [loss(c) for c in rest])[0, 1] > 0.9


def test_the_scale_and_sign_of_the_loss_do_not_matter():
    plain, scaled = Surrogate(SPACE, seed=3), Surrogate(SPACE, seed=3)
    for config in plain.start(10):
        plain.observe(config, loss(config))
        scaled.observe(config, 1000 * loss(config) - 7e4)
    assert plain.suggest(3) == scaled.suggest(3)


def test_scores_of_candidates_are_on_the_scale_of_the_pool():
    surrogate = Surrogate(SPACE, seed=0)
    tried = search(surrogate, 20)
    favourite = surrogate.suggest(1)
    assert surrogate.score(favourite)[0] == pytest.approx(surrogate.best_score, abs=1e-2)
    assert surrogate.score([max(tried, key=loss)])[0] < surrogate.best_score - 3


def test_a_lucky_noisy_sample_is_not_trusted():
    bad = {"BLOCK_M": 16, "BLOCK_N": 16, "warps": 1, "layout": "nt"}
    assert loss(bad) > 0
    lucky = min(loss(SPACE.config(i)) for i in range(SPACE.cardinality)) - 1

    def predicted(variance: float) -> float:
        surrogate = Surrogate(SPACE, seed=0)
        search(surrogate, 30)
        surrogate.observe(bad, lucky, variance=variance)
        return float(surrogate.predict([bad])[0][0])

    assert predicted(50.0) > predicted(0.0) + 1


def test_low_fidelity_observations_help_at_the_top_fidelity():
    opening = Surrogate(SPACE, seed=0).start(6)
    others = SPACE.sample(Random(2), 40)
    everything = [SPACE.config(i) for i in range(SPACE.cardinality)]

    def error(with_low: bool) -> float:
        surrogate = Surrogate(SPACE, seed=0)
        for config in opening:
            surrogate.observe(config, loss(config), fidelity_rank=3)
        for config in others if with_low else ():
            surrogate.observe(config, loss(config) + 0.2, fidelity_rank=1)
        return float(np.abs(surrogate.predict(everything)[0] - [loss(c) for c in everything]).mean())

    assert error(True) < 0.7 * error(False)


def test_a_loss_without_structure_sets_the_model_aside_and_structure_does_not():
    rows = Random(1).sample(range(SPACE.cardinality), 60)
    rng, verdicts = Random(0), {"noise": [], "bowl": []}
    for kind, trusted in verdicts.items():
        surrogate = Surrogate(SPACE, seed=0)
        for config in map(SPACE.config, rows):
            surrogate.observe(config, rng.gauss(0, 1) if kind == "noise" else loss(config))
            trusted.append(surrogate.is_trusted)
            assert not (surrogate.is_trusted and surrogate.is_set_aside)
        assert len(surrogate.suggest(3)) == 3
    assert verdicts["bowl"][20:] == [True] * 40
    assert not all(verdicts["noise"][20:])


def test_gain_per_second_prefers_what_is_cheap_and_unknown_costs_change_nothing():
    def score(cost_s, is_cost_aware: bool):
        surrogate = Surrogate(SPACE, seed=0, is_cost_aware=is_cost_aware)
        for config in SPACE.sample(Random(4), 30):
            surrogate.observe(config, loss(config), cost_s=cost_s(config))
        return surrogate.score([SPACE.config(i) for i in range(SPACE.cardinality)])

    def dear_layout(config) -> float:
        return 20.0 if config["layout"] == "nn" else 1.0

    plain = score(dear_layout, is_cost_aware=False)
    np.testing.assert_array_equal(score(lambda _: None, is_cost_aware=True), plain)
    change = score(dear_layout, is_cost_aware=True) - plain
    is_dear = np.array([SPACE.config(i)["layout"] == "nn" for i in range(SPACE.cardinality)])
    assert change[is_dear].max() < change[~is_dear].min() - 1.0


@pytest.mark.parametrize("cost_s", [0.0, -1.0, math.nan, math.inf])
def test_a_cost_that_cannot_be_is_refused(cost_s):
    with pytest.raises(UsageError, match="cost_s"):
        Surrogate(SPACE, seed=0).observe(SPACE.config(0), 1.0, cost_s=cost_s)


def test_restating_losses_is_as_if_they_had_been_observed():
    first, second = Surrogate(SPACE, seed=0), Surrogate(SPACE, seed=0)
    for i, config in enumerate(SPACE.sample(Random(4), 20)):
        first.observe(config, None if i % 5 == 0 else loss(config))
        second.observe(config, None if i % 5 == 0 else -float(i))
        second.suggest(1)
    losses = [None if i % 5 == 0 else loss(c) for i, c in enumerate(SPACE.sample(Random(4), 20))]
    second.restate(losses)
    assert first.suggest(4) == second.suggest(4)
    with pytest.raises(UsageError, match="match"):
        second.restate(losses[1:])


def test_of_many_trials_it_learns_from_the_best_and_a_sample_of_the_others(monkeypatch):
    monkeypatch.setattr("evotune.surrogate.model.MEMORY", 40)
    fitted: list[list[float]] = []
    refit = View.refit

    def watched(self, pool, seen):
        fitted.append(seen.loss.tolist())
        refit(self, pool, seen)

    monkeypatch.setattr(View, "refit", watched)
    surrogate, rng = Surrogate(SPACE, seed=0), Random(0)
    configs = SPACE.sample(rng, 150)
    losses = [None if rng.random() < 0.2 else loss(c) for c in configs]
    for config, value in zip(configs, losses, strict=True):
        surrogate.observe(config, value)
    (suggested,) = surrogate.suggest(1)
    assert suggested not in configs, "what is not learnt from is not forgotten"
    assert max(len(learnt) for learnt in fitted) == 40
    assert np.nanmin(fitted[-1]) == min(value for value in losses if value is not None)
    assert 0 < np.isnan(fitted[-1]).sum() < 20, "failures are learnt from as well"
    assert np.nanmax(fitted[-1]) > np.nanmedian([math.nan if v is None else v for v in losses])


def test_what_is_learnt_from_does_not_depend_on_when_questions_are_asked(monkeypatch):
    monkeypatch.setattr("evotune.surrogate.model.MEMORY", 30)
    asked, silent = Surrogate(SPACE, seed=0), Surrogate(SPACE, seed=0)
    for config in SPACE.sample(Random(0), 90):
        asked.observe(config, loss(config))
        silent.observe(config, loss(config))
        asked.suggest(1)
    assert asked.suggest(3) == silent.suggest(3)


def test_questions_leave_no_trace():
    asked, quiet = Surrogate(SPACE, seed=0), Surrogate(SPACE, seed=0)
    for config in search(Surrogate(SPACE, seed=0), 30):
        asked.observe(config, loss(config))
        asked.suggest(3, pending=asked.suggest(1))
        quiet.observe(config, loss(config))
    assert asked.suggest(5) == quiet.suggest(5)
    assert asked.best_score == quiet.best_score


@pytest.mark.parametrize(("value", "variance"), [(math.nan, 0.0), (math.inf, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_numbers_that_are_none_are_refused(value, variance):
    with pytest.raises(UsageError, match="finite"):
        Surrogate(SPACE, seed=0).observe(SPACE.config(0), value, variance=variance)


def test_a_space_too_large_to_enumerate_is_searched():
    def slow(config):
        return sum((math.log2(v) - 3) ** 2 for v in config.values())

    surrogate = Surrogate(HUGE, seed=0)
    for config in surrogate.start(8):
        surrogate.observe(config, slow(config))
    for _ in range(40):
        config = surrogate.suggest(1)[0]
        surrogate.observe(config, slow(config))
    found = surrogate.predict(surrogate.suggest(5))[0].min()
    chance = sorted(slow(c) for c in HUGE.sample(Random(0), 2000))
    assert found < chance[20]


SCRIPT = """
import json, math
from tests.surrogate.test_surrogate import SPACE, HUGE, search
from evotune.surrogate import Surrogate
from evotune.surrogate.view import View
tried = search(Surrogate(SPACE, seed=5), 25)
huge = Surrogate(HUGE, seed=5)
for config in huge.start(9):
    huge.observe(config, float(sum(config.values())))
print(json.dumps([tried, huge.suggest(3)]))
"""


def test_another_process_with_another_hash_seed_suggests_the_same():
    said = []
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True, timeout=120
        )
        said.append(json.loads(done.stdout))
    assert said[0] == said[1]


def test_importing_it_does_not_import_scipy_or_scikit_learn():
    code = "import sys, evotune.surrogate; sys.exit(any(m in sys.modules for m in ('scipy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
