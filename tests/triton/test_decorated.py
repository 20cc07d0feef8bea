"""``evotune check module.py:kernel`` and ``evotune run module.py:kernel``, for kernels as users have them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evotune import content, decorated
from evotune.errors import UsageError
from evotune.kernel import LoadedKernel, load_kernel, split_name

needs_triton = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("triton", "torch")), reason="triton is not installed"
)
MODULE = Path(__file__).with_name("user_module.py")
TESTS = Path(__file__).parents[1]


def load(name: str) -> LoadedKernel:
    return load_kernel(Path(f"{MODULE}:{name}"))


def evotune(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "evotune", *arguments]
    return subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.py:add", (Path("a.py"), "add")),
        ("/x/a.py:add", (Path("/x/a.py"), "add")),
        ("a.py", (Path("a.py"), None)),
        ("a:b", (Path("a:b"), None)),
        ("a:b.py", (Path("a:b.py"), None)),
        ("a.py:", (Path("a.py"), None)),
    ],
)
def test_a_colon_parts_a_file_from_a_kernel_in_it(given: str, expected: Any) -> None:
    file, name = split_name(Path(given))
    assert (file, name or None) == expected


def test_the_file_is_found_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MODULE.parent)
    assert content.find("user_module.py:add", content.KERNELS) == Path("user_module.py:add")
    assert content.find(f"{MODULE}:add", content.KERNELS) == Path(f"{MODULE}:add")
    with pytest.raises(UsageError, match=r"nothing found at 'no_module\.py'"):
        content.find("no_module.py:add", content.KERNELS)


@needs_triton
def test_the_space_is_every_combination_of_the_values_in_the_decorator() -> None:
    kernel = load("add")
    space = kernel.backend("cuda").space(kernel.problem(None, "cuda"))
    assert {n: p.values for n, p in space.parameters.items()} == {"BLOCK": (128, 512, 1024), "num_warps": (4, 8)}
    assert space.default == {"BLOCK": 128, "num_warps": 4}
    assert kernel.name == "add"
    assert kernel.problem("small", "cuda") == {"n": 1000, "dtype": "float16"}
    assert kernel.definition.bytes_moved(kernel.problem("small", "cuda")) == 6000


@needs_triton
def test_inputs_are_the_arrays_that_are_read_and_new_with_each_generator() -> None:
    kernel = load("add")
    problem = kernel.problem("small", "cuda")
    x, y = kernel.definition.inputs(problem, np.random.default_rng(1))
    other = kernel.definition.inputs(problem, np.random.default_rng(2))
    assert (x.shape, y.dtype.name) == ((1000,), "float16")
    assert not np.array_equal(x, other[0])


@needs_triton
def test_where_nothing_can_run_the_reference_agrees_with_nothing() -> None:
    kernel = load("add")
    problem = kernel.problem("small", "cuda")
    (expected,) = kernel.results(problem, *kernel.definition.inputs(problem, np.random.default_rng(1)))
    assert (expected.shape, expected.dtype.name) == ((1000,), "float16")
    assert np.isnan(expected).all()


@needs_triton
def test_a_reference_that_forgets_an_output_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Any = load("split")
    monkeypatch.setattr(decorated, "_device", lambda: "cpu")
    monkeypatch.setitem(kernel.definition.given, "reference", lambda x, n: x)
    with pytest.raises(UsageError, match=r"split_reference\(\) gives 1 of the outputs \('fraction', 'whole'\)"):
        kernel.results({}, *kernel.definition.inputs({}, np.random.default_rng(0)))


@needs_triton
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ad", r"has no 'ad' \(did you mean 'add'\?\); its Triton kernels are \['add', 'total'"),
        ("not_a_kernel", "is a function, not a Triton kernel"),
        ("bare", r'not decorated with triton.autotune.*bare_space = \{"BLOCK"'),
        ("silent", r'lacks \[\'silent_inputs\', \'silent_output\', \'silent_grid\'\](.|\n)*"n": x.size'),
        ("in_place", r"in_place changes \['x'\].*@evotune.triton.autotune tunes it"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(name)


@needs_triton
def test_a_file_without_a_name_says_which_kernels_it_has() -> None:
    with pytest.raises(UsageError, match=r"one of its Triton kernels \['add',.*user_module.py:add$"):
        load_kernel(MODULE)


@needs_triton
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[1]", "returned a list; return a dict"),
        ("{'xs': np.zeros(2), 'out': np.zeros(2)}", r"'xs' \(did you mean 'x'\?\); double takes"),
        ("{'x': np.zeros(2), 'out': np.zeros(2), 'BLOCK': 4}", r"returned \['BLOCK'\], which the configurations"),
        ("{'x': np.zeros(2), 'n': 2}", "None for 'out', an output; it must be an array"),
    ],
)
def test_arguments_that_do_not_fit_are_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, returned: str, message: str
) -> None:
    path = tmp_path / "edited.py"
    path.write_text(f"{MODULE.read_text()}\n\ndef double_inputs(problem, rng):\n    return {returned}\n")
    kernel = load_kernel(Path(f"{path}:double"))
    with pytest.raises(UsageError, match=message):
        kernel.definition.inputs({}, np.random.default_rng(0))


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(("name", "rows"), [("add", 2), ("total", 2)])
def test_check_compiles_it_for_a_gpu_that_is_not_here(tmp_path: Path, name: str, rows: int) -> None:
    done = evotune("check", f"{MODULE}:{name}", "--target", "h100", "--samples", "1", "--json", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rows"]
    assert len(found) == rows
    assert all(row["ok"] and row["registers"] for row in found), found


@pytest.mark.slow
@needs_triton
def test_run_without_a_gpu_ends_with_3_and_names_check(tmp_path: Path) -> None:
    for target in ("auto", "h100"):
        done = evotune("run", f"{MODULE}:add", "--target", target, cache=tmp_path)
        assert done.returncode == 3, done.stderr
        assert f"evotune check {MODULE}:add --target h100" in done.stderr


MEASURE = """
import json, sys, tempfile
from cpu_device import CpuDevice
from evotune.gpu.worker import open_on
found = {}
for name, problem, configs in json.loads(sys.argv[2]):
    setup = {"kernel": f"{sys.argv[1]}:{name}", "problem": problem, "device": {}, "seed": 0, "uuid": "GPU-1"}
    with tempfile.TemporaryDirectory() as folder:
        measure = open_on(CpuDevice(), {**setup, "results": folder})
    found[name] = [measure({"runs": [c], "reps": 2, "limit_s": 5.0})["runs"][0] for c in configs]
json.dump(found, sys.stdout)
"""


@pytest.mark.slow
@needs_triton
def test_the_measuring_worker_checks_it_against_the_default_or_the_reference() -> None:
    """In Triton's interpreter, with the CPU in the place of the GPU."""
    acc = "triton.language.float32"
    asked = [
        ("add", {"n": 300, "dtype": "float32"}, [{"BLOCK": 128, "num_warps": 4}, {"BLOCK": 512, "num_warps": 8}]),
        ("total", {}, [{"ACC": acc, "maxnreg": 64}]),
        ("double", {}, [{"BLOCK": 128, "num_warps": 1}]),
        ("double_wrong", {}, [{"BLOCK": 64, "num_warps": 1}, {"BLOCK": 128, "num_warps": 1}]),
        ("split", {}, [{"BLOCK": 64, "num_warps": 1}, {"BLOCK": 128, "num_warps": 1}]),
    ]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS / "gpu"), str(TESTS.parent)]),
    }
    command = [sys.executable, "-c", MEASURE, str(MODULE), json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(len(run.get("samples_ms", [])) == 2 for name in ("add", "total", "double") for run in found[name]), (
        found
    )
    for name in ("double_wrong", "split"):
        right, wrong = found[name]
        assert "samples_ms" in right
        assert wrong["stage"] == "incorrect"
    assert wrong["reason"].startswith("output 1: 1 of 300 values are wrong")
