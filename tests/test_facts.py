"""What a run keeps of its subject can be read again, and holds no secret."""

import json

from evotune.facts import GIVEN, ROOFLINE, SPACE, keep, space_from_json, space_to_json
from evotune.journal import Journal
from evotune.llm import Roofline
from evotune.settings import load
from evotune.space import ConfigSpace, Parameter


def test_a_space_comes_back_as_it_was():
    parameters = {
        "tile": Parameter((16, 32, 64), ordered=True),
        "order": Parameter((2, 1, 3), ordered=False),
        "fast": Parameter((False, True), ordered=False),
        "layout": Parameter(("nn", "nt"), ordered=False),
        "scale": Parameter((1.0, 0.5), ordered=True),
    }
    default = {"tile": 32, "order": 1, "fast": True, "layout": "nt", "scale": 0.5}
    space = ConfigSpace(parameters, ["tile * order <= limit"], constants={"limit": 100}, default=default)
    again = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert again.parameters == space.parameters
    assert again.keys.tolist() == space.keys.tolist()
    assert again.constants == space.constants
    assert dict(again.default) == default
    assert type(again.from_key((0, 0, 0, 0, 0))["scale"]) is float


def test_the_users_choices_are_kept_and_no_secret_is(tmp_path):
    flags = {
        "run.shape": "long",
        "run.max_evaluations": 7,
        "llm.provider": "openai",
        "llm.key_file": "/secret/place",
        "llm.base_url": "http://user:password@localhost:8000/v1?key=secret",
    }
    space, work = ConfigSpace.from_dict({"tile": [1, 2]}), Roofline(2.0, 1.0, 4.0, None)
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("toy", "cafe", {})
        keep(run, "kernels/toy.py", load(None, flags, {}), space, work)
        given, kept_work = (json.loads(run.notes(kind)[0]) for kind in (GIVEN, ROOFLINE))
        everything = "".join(run.notes(GIVEN) + run.notes(SPACE) + run.notes(ROOFLINE))
    assert given == {
        "kernel": "kernels/toy.py",
        "run": {"shape": "long", "max_evaluations": 7},
        "llm": {"provider": "openai", "base_url": "http://localhost:8000/v1"},
    }
    assert Roofline(**kept_work) == work
    assert "secret" not in everything
    assert "password" not in everything
