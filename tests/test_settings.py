"""Settings and recipes: what wins over what, and what is said of a mistake."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from evotune import content, recipe, settings
from evotune.errors import UsageError
from evotune.kernel import load_kernel
from evotune.schema import Section, key_paths, problems
from evotune.settings import Measure, Settings, load

CONFIG = Path(__file__).parents[1] / "config.yaml"
TARGETS = [Path(entry).stem for entry in content.shipped(content.EVALUATORS)]


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def _message(path: Path | None, flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, flags or {}, environ or {})
    return str(caught.value)


def test_config_yaml_holds_exactly_the_defaults() -> None:
    assert load(CONFIG, {}, {}) == load(None, {}, {}) == Settings()


def test_config_yaml_mentions_every_key_with_a_reason() -> None:
    lines = CONFIG.read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = yaml.safe_load("\n".join(lines))
    written = {(section, key) for section, values in found.items() for key in values}
    assert written == set(key_paths(Settings))
    without_reason = [line for line in lines if re.match(r"  \w+:", line) and not re.search(r" # \w", line)]
    assert without_reason == []


def test_the_checkout_reads_its_own_config_yaml() -> None:
    assert settings.default_path() == CONFIG


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(write) -> None:
    path = write("run: {seed: 1, max_evaluations: 11, shape: file}")
    environ = {"EVOTUNE_RUN_SEED": "2", "EVOTUNE_RUN_MAX_EVALUATIONS": "22"}
    found = load(path, {"run.seed": 3}, environ).run
    assert (found.seed, found.max_evaluations, found.shape, found.target) == (3, 22, "file", "auto")


def test_a_flag_that_was_not_given_changes_nothing(write) -> None:
    assert load(write("run: {seed: 1}"), {"run.seed": None}, {}).run.seed == 1


def test_a_flag_of_false_counts_as_given(write) -> None:
    assert load(write("search: {screen: true}"), {"search.screen": False}, {}).search.screen is False


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("EVOTUNE_RUN_SHAPE", "64", "run.shape", "64"),
        ("EVOTUNE_RUN_MAX_SECONDS", "1e3", "run.max_seconds", 1000.0),
        ("EVOTUNE_SEARCH_SCREEN", "false", "search.screen", False),
        ("EVOTUNE_LLM_MODEL", "", "llm.model", None),
    ],
)
def test_text_of_the_environment_takes_the_type_of_its_key(name: str, text: str, key: str, value: object) -> None:
    section, _, leaf = key.partition(".")
    found = getattr(getattr(load(None, {}, {name: text}), section), leaf)
    assert found == value
    assert type(found) is type(value)


def test_environment_variables_of_others_are_ignored() -> None:
    assert load(None, {}, {"EVOTUNE": "off", "_EVOTUNE_COMPLETE": "x", "RUN_SEED": "7"}) == Settings()


@pytest.mark.parametrize(
    ("name", "meant"), [("EVOTUNE_RNU_SEED", "EVOTUNE_RUN_SEED"), ("EVOTUNE_SHAPE", "EVOTUNE_RUN_SHAPE")]
)
def test_a_misspelt_section_in_the_environment_names_the_nearest_variable(name: str, meant: str) -> None:
    assert _message(None, environ={name: "7"}) == f"{name} is not known (did you mean {meant!r}?)"


def test_a_section_without_keys_is_the_default(write) -> None:
    assert load(write("llm:\n  # model: x\n"), {}, {}) == Settings()


def test_an_empty_file_is_the_default(write) -> None:
    assert load(write("# nothing\n"), {}, {}) == Settings()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("run: {sede: 1}", "run.sede is not known (did you mean 'run.seed'?)"),
        ("seed: 1", "seed is not known (did you mean 'run.seed'?)"),
        ("lllm: {model: x}", "lllm is not known (did you mean 'llm'?)"),
        ("run: {seed: '7'}", "run.seed is '7'; it should be a valid integer (this is text"),
        ("run: {seed: true}", "run.seed is True; it should be a valid integer"),
        ("run: {max_seconds: 1e3}", "run.max_seconds is '1e3'; it should be a valid number (this is text"),
        ("run: {max_seconds: .nan}", "run.max_seconds is nan"),
        ("run: {search: randon}", "run.search is 'randon'; it should be 'evotune', "),
        ("run: {max_evaluations: 0}", "run.max_evaluations is 0; it should be greater than or equal to 1"),
        ("run: 5", "run is 5; it should be keys with values"),
        ("run: {seed: 1, seed: 2}", "seed is given twice"),
        ("[1, 2]", "holds a list; it should hold keys with values"),
        ("run: {", "is not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_what_was_wanted(write, text: str, wanted: str) -> None:
    path = write(text)
    message = _message(path)
    assert wanted in message
    assert str(path) in message


def test_a_value_of_none_of_several_types_is_one_mistake() -> None:
    class Toy(Section):
        gpus: int | Literal["all"]

    with pytest.raises(ValidationError) as caught:
        Toy.model_validate({"gpus": "some"}, strict=True)
    found = problems(caught.value, Toy, {"gpus": "some"}, ".".join)
    assert found == ["gpus is 'some'; it should be a valid integer, or 'all'"]


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    assert "No such file" in _message(tmp_path / "none.yaml")


def test_all_mistakes_of_all_sources_are_in_one_message(write) -> None:
    path = write("run: {sede: 1, max_evaluations: x}\nmeasure: {low_reps: 0}")
    message = _message(path, {"run.seed": -1}, {"EVOTUNE_LLM_TEMPRATURE": "1", "EVOTUNE_LLM_MAX_USD": "much"})
    assert len(message.splitlines()) == 6
    for part in ("run.sede", "run.max_evaluations", "measure.low_reps", "--seed is -1", "EVOTUNE_LLM_MAX_USD"):
        assert part in message
    assert "EVOTUNE_LLM_TEMPRATURE is not known (did you mean 'EVOTUNE_LLM_TEMPERATURE'?)" in message


def test_shares_of_parents_are_one_at_most_together_wherever_each_is_set(write) -> None:
    message = _message(write("islands: {exploration_ratio: 0.5}"))
    for part in ("exploration_ratio is 0.5", "exploitation_ratio is 0.9", "1.4", "exploitation_ratio to 0.5"):
        assert part in message
    _message(write("islands: {exploitation_ratio: 0.6}"), environ={"EVOTUNE_ISLANDS_EXPLORATION_RATIO": "0.5"})
    both = load(
        write("islands: {exploitation_ratio: 0.666667}"), {}, {"EVOTUNE_ISLANDS_EXPLORATION_RATIO": "0.333333"}
    )
    assert (both.islands.exploration_ratio, both.islands.exploitation_ratio) == (0.333333, 0.666667)
    assert load(write("islands: {exploration_ratio: 0.5, exploitation_ratio: 0.2}"), {}, {}).islands.count == 2


def test_a_flag_is_named_as_the_command_line_has_it() -> None:
    assert _message(None, {"llm.on_error": "ignore"}).startswith("--on-llm-error is 'ignore'; it should be 'fail'")


def test_settings_do_not_change_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(None, {}, {}).run.seed = 1


@pytest.mark.parametrize("target", TARGETS)
def test_every_shipped_recipe_loads(target: str) -> None:
    found = recipe.load(target)
    climbed = found.climbed(Measure())
    assert [f.rank for f in climbed] == sorted({f.rank for f in climbed})
    assert found.final(Measure()).rank >= climbed[-1].rank
    assert all(f.limit_s > 0 for f in climbed)


def test_a_ladder_takes_its_repetitions_from_the_settings() -> None:
    changed = Measure(low_reps=7, ultra_reps=70)
    assert [f.reps for f in recipe.load("cpu").climbed(changed)] == [7, 15, 50]
    assert recipe.load("cpu").final(changed).reps == 70
    assert recipe.load("replay").final(Measure()).limit_s == math.inf


def test_a_device_card_tells_what_is_known_and_nothing_else() -> None:
    card = recipe.load("b200").card("float16")
    assert (card["multiprocessors"], card["l2_bytes"]) == (148, 126 << 20)
    assert card["peak_flops_per_s"] == 2.25e15
    assert "peak_flops_per_s" not in recipe.load("h100").card("int4")
    assert recipe.load("cpu").card("float32") == {}


@pytest.mark.parametrize(("newer", "older"), [("b200", "h200"), ("h200", "h100")])
def test_a_newer_gpu_is_at_no_peak_slower(newer: str, older: str) -> None:
    new, old = recipe.load(newer).peaks, recipe.load(older).peaks
    assert new is not None
    assert old is not None
    assert new.bytes_per_s > old.bytes_per_s
    for dtype in ("float8_e4m3fn", "int8", "float16", "bfloat16", "float32"):
        assert new.flops_per_s[dtype] >= old.flops_per_s[dtype]


@pytest.mark.parametrize("target", ["h100", "h200", "b200"])
def test_peaks_are_by_names_of_dtypes_and_there_is_one_for_each_shipped_shape(target: str) -> None:
    peaks = recipe.load(target).peaks
    assert peaks is not None
    for name in peaks.flops_per_s:
        assert ml_dtypes.finfo(name).bits if name.startswith(("float", "bfloat")) else np.dtype(name)
    for path in content.shipped(content.KERNELS):
        shapes = load_kernel(content.find(path, content.KERNELS)).definition.shapes
        wanted = {str(problem["dtype"]) for name, problem in shapes.items() if name.startswith("gpu")}
        assert wanted <= set(peaks.flops_per_s), path


def test_a_users_recipe_is_taken_by_its_path(write) -> None:
    text = "backend: cpu\nladder: [{fidelity: low}]\nfinals: {fidelity: high}\n"
    assert recipe.load(str(write(text))).backend == "cpu"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("backend: cpu\nladder: []\nfinals: {fidelity: high}", "ladder is []"),
        ("backend: cpu\nladder: [{fidelity: lo}]\nfinals: {fidelity: high}", "ladder.0.fidelity is 'lo'"),
        ("backend: cpu\nladder: [{fidelity: low}]", "finals is missing"),
        ("backend: cpu\nladder: [{fidelity: high}, {fidelity: low}]\nfinals: {fidelity: high}", "must rise"),
        ("backend: cpu\nladder: [{fidelity: high}]\nfinals: {fidelity: low}", "must rise"),
        ("backend: cpu\narc: x\nladder: [{fidelity: low}]\nfinals: {fidelity: high}", "did you mean 'arch'?"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(write, text: str, wanted: str) -> None:
    path = write(text)
    with pytest.raises(UsageError) as caught:
        recipe.load(str(path))
    assert wanted in str(caught.value)
    assert str(path) in str(caught.value)
