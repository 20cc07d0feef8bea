"""What `evotune list` says of what is shipped and of a kernel."""

import json
import sys
from pathlib import Path

import pytest

from evotune import content
from evotune.cli import main
from evotune.kernel import load_kernel

VECTOR_ADD = Path(__file__).parents[1] / "kernels" / "vector_add.py"


def listed(monkeypatch, capsys, *arguments, code=0):
    monkeypatch.setattr(sys, "argv", ["evotune", "list", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert ended.value.code == code, captured.err
    return captured.out if code == 0 else captured.err


def test_everything_that_is_shipped_is_listed(monkeypatch, capsys):
    found = json.loads(listed(monkeypatch, capsys, "--json"))
    assert found["kernels"] == content.shipped(content.KERNELS)
    assert found["recordings"] == content.shipped(content.RECORDINGS)
    assert {"cpu", "h100", "b200"} <= set(found["targets"])
    text = listed(monkeypatch, capsys)
    assert all(f"  {entry}\n" in text for entries in found.values() for entry in entries)


def test_a_kernel_is_listed_as_a_run_would_search_it_though_it_prints(tmp_path, monkeypatch, capsys):
    kernel = tmp_path / "k.py"
    kernel.write_text(VECTOR_ADD.read_text() + "\nprint('hello')\n")
    found = json.loads(listed(monkeypatch, capsys, kernel, "--shape", "gpu_bf16", "--json"))
    loaded = load_kernel(VECTOR_ADD)
    assert found["shapes"] == {name: dict(problem) for name, problem in loaded.definition.shapes.items()}
    cpu, cuda = found["choices"]
    assert (cpu["backend"], cpu["configurations"], cpu["default"]) == ("cpu", 0, None)
    assert cpu["reason"].startswith("no legal configuration")
    problem = {**found["shapes"]["gpu_bf16"], "capability": 90, "multiprocessors": 132}
    space = loaded.backend("cuda").space(problem)
    assert (cuda["target"], cuda["configurations"], cuda["default"]) == ("h100", space.cardinality, space.default)
    assert {n: tuple(p["values"]) for n, p in cuda["parameters"].items()} == {
        n: p.values for n, p in space.parameters.items()
    }


def test_the_default_is_marked_among_the_values(monkeypatch, capsys):
    text = listed(monkeypatch, capsys, VECTOR_ADD, "--target", "b200")
    assert "backend cuda, shape gpu, on b200\n  BLOCK            256 512 [1024] 2048" in text
    assert "  LOAD_CACHE       [''] .cg\n" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "small"], "name one too"),
        ([VECTOR_ADD, "--shape", "smal"], "did you mean 'small'"),
        ([VECTOR_ADD, "--target", "cpu"], "is not a GPU"),
    ],
)
def test_what_cannot_be_listed_is_told_of(monkeypatch, capsys, arguments, said):
    assert said in listed(monkeypatch, capsys, *arguments, code=2)
