"""What Tab offers, asked as a shell asks, and the examples of every help text."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer

from evotune import cli, content
from evotune.cli import completing
from evotune.compare.methods import WARM, names
from evotune.llm.choose import BUILT_IN
from evotune.settings import Run

from .test_house import HEAVY

ROOT = Path(__file__).parents[1]
ASK = """
import atexit, json, sys
atexit.register(lambda: sys.stderr.write(json.dumps(sorted(sys.modules))))
sys.argv = ["evotune"]
from evotune.cli import main
main()
"""


def offered(words: str, cwd: Path) -> tuple[list[str], set[str]]:
    """What bash is told for a line that ends in a word to be completed, and what that imported."""
    asked = {"_EVOTUNE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment = {**os.environ, **asked, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split(), set(json.loads(done.stderr))


@pytest.mark.parametrize(
    ("words", "wanted", "unwanted"),
    [
        ("evotune do", ["doctor"], "run"),
        ("evotune run kernels/att", ["kernels/attention.py"], "kernels/matmul.py"),
        ("evotune run my", ["my_kernel.py", "my_folder/"], "mine.txt"),
        ("evotune run kernels/matmul.py --target h", ["h100", "h200"], "cpu"),
        ("evotune run kernels/matmul.py --search p", ["pattern"], "random"),
        ("evotune run kernels/matmul.py --provider o", ["openai"], "mock"),
        ("evotune compare recordings/conv_A1", ["recordings/conv_A100"], "recordings/conv_A4000"),
        ("evotune compare synthetic --method m", ["mfbo", "mfbo-pattern"], "random"),
        ("evotune check kernels/matmul.py --target ", ["b200"], "cpu"),
    ],
)
def test_a_shell_is_offered_names_without_anything_heavy(tmp_path, words, wanted, unwanted) -> None:
    (tmp_path / "my_kernel.py").touch()
    (tmp_path / "mine.txt").touch()
    (tmp_path / "my_folder").mkdir()
    found, modules = offered(words, tmp_path)
    assert set(wanted) <= set(found)
    assert unwanted not in found
    # Typer itself imports pydantic where it is installed.
    assert (HEAVY - {"pydantic"}).isdisjoint(modules)


def test_the_names_that_are_offered_are_those_that_are_taken() -> None:
    assert get_args(Run.model_fields["search"].annotation) == completing.SEARCHES
    assert set(completing.METHODS) == {*names(), WARM}
    assert tuple(re.sub("[A-Z]+$", "", name) for name in BUILT_IN) == completing.PROVIDERS


def test_a_folder_that_cannot_be_read_offers_nothing() -> None:
    assert completing.kernels("/nowhere/at/all/") == []


COMMANDS = {
    info.name or info.callback.__name__: info.callback.__doc__ or "" for info in cli.app.registered_commands
}


def examples(command: str) -> list[str]:
    return re.findall(rf"^ +(evotune {command}(?: .*)?)$", COMMANDS[command], re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_has_examples_that_the_command_understands(command, tmp_path, monkeypatch) -> None:
    found = examples(command)
    assert found
    group = typer.main.get_command(cli.app)
    for line in found:
        _, name, *arguments = shlex.split(line)
        context = group.commands[name].make_context(name, arguments)  # raises for what it does not know
        given = context.params.get("kernel") or context.params.get("spaces") or []
        for subject in [given] if isinstance(given, str) else given:
            assert subject == "synthetic" or content.find(subject, content.KERNELS, content.RECORDINGS)
