"""Triton kernels compiled for GPUs that are not here. Compiles a dozen tiny kernels."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evotune import content
from evotune.errors import DeviceError, Rejected, UsageError
from evotune.gpu import check as check_module
from evotune.gpu.check import CheckRow, check, choose
from evotune.gpu.compiler import CrossCompiler
from evotune.gpu.target import load_target, violations
from evotune.kernel import LoadedKernel, load_kernel
from evotune.recipe import Limits
from evotune.space import ConfigSpace

needs_triton = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("triton", "torch")), reason="triton is not installed"
)
SCALE = Path(__file__).with_name("triton_scale.py")
LIMITS = Limits(
    shared_bytes_per_block=232448,
    threads_per_block=1024,
    registers_per_thread=255,
    registers_per_block=65536,
    tmem_columns=512,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compiler(cache: Path) -> Iterator[CrossCompiler]:
    kernel = load_kernel(SCALE)
    with CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=1, cache=cache) as compiler:
        yield compiler


def config(variant: str, block: int = 128, num_warps: int = 4) -> dict[str, int | str]:
    return {"BLOCK": block, "num_warps": num_warps, "variant": variant}


@needs_triton
def test_real_code_is_made_for_a_gpu_that_is_not_here(compiler: CrossCompiler) -> None:
    found = compiler.compile(config("right"), 90)
    assert found.facts["threads"] == 4 * 32
    assert 0 < found.facts["registers"] < 64
    assert found.facts["spill_bytes"] == 0
    assert found.facts["launches"] == 1
    assert found.facts["global_loads"] >= 1
    assert found.facts["cubin_bytes"] > 1000
    assert found.compile_s > 0


@needs_triton
def test_the_architecture_matters(compiler: CrossCompiler) -> None:
    hopper, blackwell = (compiler.compile(config("right"), c) for c in (90, 100))
    assert hopper.facts["cubin_bytes"] != blackwell.facts["cubin_bytes"]


@needs_triton
def test_several_kernels_of_a_launch_are_described_together(compiler: CrossCompiler) -> None:
    one, two = compiler.compile(config("right"), 90), compiler.compile(config("twice"), 90)
    assert two.facts["launches"] == 2
    assert two.facts["threads"] == 8 * 32
    assert two.facts["cubin_bytes"] > one.facts["cubin_bytes"]
    assert sorted(b["threads"] for b in two.blocks) == [4 * 32, 8 * 32]


@needs_triton
def test_a_kernel_that_triton_has_in_memory_is_described_again(compiler: CrossCompiler) -> None:
    first, second, blackwell = (
        compiler.compile(config(variant), capability)
        for variant, capability in (("jitted_once", 90), ("jitted_once_again", 90), ("jitted_once", 100))
    )
    assert first.facts == second.facts == compiler.compile(config("right"), 90).facts
    assert blackwell.facts == compiler.compile(config("right"), 100).facts


@needs_triton
@pytest.mark.parametrize(
    ("variant", "stage", "reason"),
    [
        ("build_raises", "build", "ValueError: no such tile"),
        ("no_launch", "build", "launched no Triton kernel"),
        ("launch_raises", "compile", r"shape \(1048576,\) of torch.float16 is not liked"),
        ("not_triton", "compile", "no_such_thing"),
        ("autotuned", "compile", "times itself"),
        ("dies", "crash", "SIGABRT"),
    ],
)
def test_a_failure_names_its_stage_and_reason(
    compiler: CrossCompiler, variant: str, stage: str, reason: str
) -> None:
    with pytest.raises(Rejected, match=reason) as caught:
        compiler.compile(config(variant), 90)
    assert caught.value.stage == stage


@needs_triton
def test_a_hanging_compilation_is_killed_and_the_next_one_runs(cache: Path) -> None:
    kernel = load_kernel(SCALE)
    with CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=1, cache=cache, timeout_s=1.0) as compiler:
        with pytest.raises(Rejected, match="timeout"):
            compiler.compile(config("hangs"), 90)
        with pytest.raises(Rejected, match="no such tile"):
            compiler.compile(config("build_raises", block=256), 90)


@needs_triton
def test_what_the_machine_did_wrong_is_not_kept(compiler: CrossCompiler, cache: Path) -> None:
    kept = set(cache.iterdir())
    for variant in ("full_disk", "dies"):
        with pytest.raises(Rejected):
            compiler.compile(config(variant, block=256), 90)
    assert set(cache.iterdir()) == kept


@needs_triton
def test_a_kept_result_needs_no_process(
    compiler: CrossCompiler, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, first = load_kernel(SCALE), compiler.compile(config("right"), 90)
    monkeypatch.setattr(CrossCompiler, "_ask", None)
    with CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=1, cache=cache) as other:
        assert other.compile(config("right"), 90) == first


@needs_triton
@pytest.mark.parametrize("change", ["source", "problem", "config", "capability", "switch"])
def test_a_result_is_kept_for_exactly_what_it_depends_on(
    cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    kernel = load_kernel(SCALE)
    problem = kernel.problem(None, "cuda")
    with CrossCompiler(kernel, problem, cache=cache) as compiler:
        path = compiler._path(config=config("right"), capability=90)
    if change == "source":
        kernel = LoadedKernel(kernel.path, kernel.source + "\n", kernel.definition)
    if change == "problem":
        problem = {**problem, "n": 4096}
    if change == "switch":
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    with CrossCompiler(kernel, problem, cache=cache) as compiler:
        other = compiler._path(
            config=config("right", num_warps=1 if change == "config" else 4),
            capability=100 if change == "capability" else 90,
        )
    assert path != other


@needs_triton
def test_a_damaged_cache_is_ignored(tmp_path: Path) -> None:
    kernel = load_kernel(SCALE)
    with CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=1, cache=tmp_path) as compiler:
        path = compiler._path(config=config("build_raises"), capability=90)
        assert path is not None
        path.write_text('{"stage": "comp')
        with pytest.raises(Rejected, match="no such tile"):
            compiler.compile(config("build_raises"), 90)
        assert json.loads(path.read_text())["stage"] == "build"


@needs_triton
def test_a_closed_compiler_does_nothing_more(tmp_path: Path) -> None:
    kernel = load_kernel(SCALE)
    compiler = CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=2)
    compiler.close()
    compiler.close()
    with pytest.raises(DeviceError, match="closed"):
        compiler.compile(config("right"), 90)


@needs_triton
def test_rows_come_default_first_for_each_target_and_again_from_the_cache(cache: Path) -> None:
    kernel = load_kernel(content.find("matmul", content.KERNELS))
    default = kernel.backend("cuda").space(kernel.problem("gpu_1024", "cuda")).default
    seen: list[CheckRow] = []
    rows = check(kernel, ["h100", "b200"], shape="gpu_1024", samples=1, cache=cache, on_row=seen.append)
    assert rows == seen
    assert [r.target for r in rows] == ["h100", "h100", "b200", "b200"]
    assert rows[0].config == rows[2].config == default
    assert rows[1].config == rows[3].config != default
    assert all(r.ok and 0 < float(r.facts["occupancy"]) <= 1 for r in rows)
    assert check(kernel, ["h100", "b200"], shape="gpu_1024", samples=1, cache=cache) == rows
    assert json.loads(json.dumps([r.to_json() for r in rows]))[0]["registers"] == rows[0].registers
    # Each architecture has tensor cores of its own kind, and only Blackwell has tensor memory.
    hopper, blackwell = rows[0], rows[2]
    assert hopper.facts["wgmma"]
    assert blackwell.facts["tcgen05_mma"]
    assert (hopper.facts["tcgen05_mma"], hopper.tmem_columns, blackwell.facts["wgmma"]) == (0, 0, 0)
    assert blackwell.tmem_columns


@pytest.mark.slow
@needs_triton
def test_spills_are_what_ptxas_says(tmp_path: Path) -> None:
    """The assembler's own report against what is read from the binary."""
    kernel = load_kernel(content.find("attention", content.KERNELS))
    problem = {"heads": 1, "seq": 512, "head_dim": 128, "causal": False, "dtype": "float16"}
    config = {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 4, "num_stages": 1, "LONGEST_FIRST": False}
    code = (
        "import json, sys; from pathlib import Path; from evotune.kernel import load_kernel\n"
        "from evotune.gpu.headless import describe, run_headless\n"
        "path, problem, config = json.loads(sys.argv[1])\n"
        "build = load_kernel(Path(path)).backend('cuda').build\n"
        "shape = ((1, 512, 128), 'float16')\n"
        "print(json.dumps(describe(run_headless(build, config, problem, [shape] * 4, 90))))"
    )
    python = [
        sys.executable,
        "-c",
        code,
        json.dumps([str(kernel.path), problem, config]),
    ]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DUMP_PTXAS_LOG": "1"}
    done = subprocess.run(python, env=environment, capture_output=True, text=True, check=True)
    log, facts = done.stdout, json.loads(done.stdout.splitlines()[-1])["facts"]
    found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert found
    assert facts["spill_bytes"] == int(found[1]) + int(found[2]) > 0
    assert facts["registers"] == int(re.search(r"Used (\d+) registers", log)[1])


def test_a_missing_triton_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evotune.gpu.compiler.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs triton and torch; .*pip install 'evotune\[gpu\]'"):
        check(load_kernel(SCALE), ["h100"])


def test_a_triton_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evotune.gpu.compiler.importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("evotune.gpu.compiler.importlib.metadata.version", lambda name: "3.5.1")
    with pytest.raises(UsageError, match=r"triton 3\.5\.1 is too old, 3\.6 or later"):
        check(load_kernel(SCALE), ["h100"])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "no target"),
        (["cpu"], "'cpu' is not a GPU"),
        (["cuda"], "takes the architecture of the device"),
        (["h1000"], "h1000"),
    ],
)
def test_a_target_that_cannot_be_compiled_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, targets: list[str], message: str
) -> None:
    monkeypatch.setattr(check_module, "detect", list)
    with pytest.raises(UsageError, match=message):
        check(load_kernel(SCALE), targets)


def test_a_kernel_without_a_cuda_backend_is_refused() -> None:
    kernel = load_kernel(Path(__file__).parents[1] / "cpu" / "saxpy.py")
    with pytest.raises(UsageError, match="no 'cuda' backend"):
        check(kernel, ["h100"])


def test_targets_are_what_their_recipes_say() -> None:
    assert load_target("b200").capability == 100
    assert load_target("h200").capability == 90


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, []),
        ({"shared_bytes": 232449}, ["a block needs 232449 bytes of shared memory, the limit is 232448"]),
        ({"threads": 2048, "registers": 32}, ["a block needs 2048 threads, the limit is 1024"]),
        ({"registers": 256, "threads": 32}, ["a block needs 256 registers of a thread, the limit is 255"]),
        # 1024 threads of 65 registers: 32 warps of 2304, allocated in steps of 256.
        ({"threads": 1024, "registers": 65}, ["a block needs 73728 registers, the limit is 65536"]),
        ({"tmem_columns": 640}, ["a block needs 640 columns of tensor memory, the limit is 512"]),
    ],
)
def test_only_what_the_hardware_does_not_have_is_refused(change: dict[str, int], wrong: list[str]) -> None:
    fits = {"threads": 1024, "registers": 64, "shared_bytes": 232448, "tmem_columns": 512}
    assert violations({**fits, **change}, LIMITS) == wrong


def test_sampled_configurations_are_distinct_and_the_same_for_the_same_seed() -> None:
    space = ConfigSpace.from_dict({"a": list(range(30)), "b": [1, 2]}, ["a != 3"], default={"a": 7, "b": 2})
    chosen = choose(space, 20, random.Random(1))
    assert chosen[0] == space.default
    assert len({space.key(c) for c in chosen}) == 21
    assert chosen == choose(space, 20, random.Random(1)) != choose(space, 20, random.Random(2))


def test_a_small_space_is_taken_whole() -> None:
    space = ConfigSpace.from_dict({"a": [1, 2, 3]}, ["a != 2"], default={"a": 3})
    assert choose(space, 20, random.Random(0)) == [{"a": 3}, {"a": 1}]
