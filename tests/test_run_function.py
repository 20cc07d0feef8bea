"""``evotune.run``: the command as a function."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import evotune
from evotune import history
from evotune.cli.run import run as command
from evotune.errors import UsageError
from evotune.run_function import Options
from evotune.shapes import ShapesResult

SPACE = "recordings/conv_A100"
# Of the command, what is about its output, or makes several runs; `out` is `ShapesResult.program`.
OUTPUT = {"out", "dry_run", "as_json", "verbose", "quiet", "progress", "per_model"}


class Heard:
    def __init__(self) -> None:
        self.trials: list = []
        self.notes: list[str] = []

    def on_trial(self, trial, tuner, *, is_best: bool) -> None:
        self.trials.append(trial)

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def test_a_recording_is_replayed_quietly_and_the_same_call_resumes(tmp_path: Path, capfd) -> None:
    heard = Heard()
    given = {"provider": "none", "seed": 3, "journal": tmp_path / "j.db"}
    result = evotune.run(SPACE, max_evaluations=12, observer=heard, **given)
    assert isinstance(result, evotune.Result)
    assert (result.evaluations, result.stopped, len(heard.trials)) == (12, "evaluations", 12)
    assert result.speedup >= 1.0
    assert evotune.run(SPACE, max_evaluations=12, **given) == result
    assert evotune.run(SPACE, max_evaluations=12, fresh=True, **given).run_id != result.run_id
    assert len(history.runs(tmp_path / "j.db")) == 2
    assert capfd.readouterr() == ("", "")


def test_its_options_are_those_of_the_command() -> None:
    function = set(inspect.signature(evotune.run).parameters) - {"options", "observer"}
    assert function | set(Options.__annotations__) == set(inspect.signature(command).parameters) - OUTPUT


@pytest.mark.parametrize("name", Options.__annotations__)
def test_every_option_is_a_setting(name: str) -> None:
    with pytest.raises(UsageError, match=rf"(?m)^{name} is \['wrong'\]"):
        evotune.run(SPACE, **{name: ["wrong"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1; it should be"),
        ({"max_evals": 3}, "option 'max_evals' is not known (did you mean 'max_evaluations'?)"),
        ({"shape": "small"}, "is a recording of one shape; leave shape small out"),
        ({"ray_address": "auto"}, "ray_address is where trials run with engine ray; give that too"),
        ({"shapes": "a,b", "track": "mlflow"}, "track is for runs of one shape"),
        ({"provider": "openai"}, "or give provider mock or none, or on_llm_error fallback"),
        ({"journal": Path(__file__).parent}, "name a file with journal=PATH, such as"),
    ],
)
def test_what_cannot_be_used_is_named_as_it_was_written(options: dict, message: str, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UsageError) as caught:
        evotune.run(SPACE, **options)
    assert message in str(caught.value)
    assert "--" not in str(caught.value)


def test_the_other_functions_name_their_arguments_too() -> None:
    def one(config: dict) -> float:
        return 1.0

    with pytest.raises(UsageError, match=r"^seed is -1"):
        evotune.tune(one, {"a": [1]}, seed=-1)
    with pytest.raises(UsageError, match=r"^on_llm_error is 'shrug'"):
        evotune.OpenEvolveTuner({"a": [1]}, one, on_llm_error="shrug")


def test_commands_that_a_message_names_stay_commands() -> None:
    said = "no cuda here; evotune check k.py --target h100 --journal J, or --target cpu; wait, or give --fresh"
    with pytest.raises(UsageError) as caught, evotune.errors.spelt_for_python():
        raise UsageError(said)
    assert str(caught.value) == (
        "no cuda here; evotune check k.py --target h100 --journal J, or target cpu; wait, or give fresh=True"
    )


def test_ctrl_c_is_not_swallowed(tmp_path: Path) -> None:
    class Stops(Heard):
        def on_trial(self, trial, tuner, *, is_best: bool) -> None:
            super().on_trial(trial, tuner, is_best=is_best)
            if len(self.trials) == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evotune.run(SPACE, max_evaluations=9, provider="none", journal=tmp_path / "j.db", observer=Stops())
    assert history.load(tmp_path / "j.db").summary.state == "interrupted"


def test_several_shapes_give_one_program(monkeypatch) -> None:
    given = {}

    def tune_shapes(name, subjects, settings, **rest):
        given.update(rest, name=name, subjects=subjects, shapes=settings.run.shapes)
        return ShapesResult.__new__(ShapesResult)

    monkeypatch.setattr(ShapesResult, "stopped", "evaluations", raising=False)
    monkeypatch.setattr("evotune.run_function.find_shapes", lambda name, settings: {"found": name})
    monkeypatch.setattr("evotune.run_function.tune_shapes", tune_shapes)
    assert isinstance(evotune.run("matmul.py", shapes="small,large", fresh=True), ShapesResult)
    assert (given["name"], given["shapes"], given["fresh"]) == ("matmul.py", "small,large", True)
    assert given["subjects"] == {"found": "matmul.py"}
