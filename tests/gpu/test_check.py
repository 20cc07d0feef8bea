"""Triton kernels compiled for GPUs that are not here. Compiles a dozen tiny kernels."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evotune import content
from evotune.errors import DeviceError, Rejected, UsageError
from evotune.gpu import check as check_module
from evotune.gpu.check import CheckRow, check, choose
from evotune.gpu.compiler import CrossCompiler
from evotune.gpu.detect import Gpu
from evotune.gpu.target import Target, load_target
from evotune.kernel import LoadedKernel, load_kernel
from evotune.space import ConfigSpace

needs_triton = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("triton", "torch")), reason="triton is not installed"
)
SCALE = Path(__file__).with_name("triton_scale.py")
H100, B200 = Target("h100", 90, 132), Target("b200", 100, 148)


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
    found = compiler.compile(config("right"), H100)
    assert found.facts["threads"] == 4 * 32
    assert 0 < found.facts["registers"] < 64
    assert found.facts["spill_bytes"] == 0
    assert found.facts["launches"] == 1
    assert found.facts["global_loads"] >= 1
    assert found.facts["cubin_bytes"] > 1000
    assert found.compile_s > 0


@needs_triton
def test_the_architecture_matters(compiler: CrossCompiler) -> None:
    hopper, blackwell = (compiler.compile(config("right"), target) for target in (H100, B200))
    assert hopper.facts["cubin_bytes"] != blackwell.facts["cubin_bytes"]


@needs_triton
def test_shapes_of_arguments_are_found_once_for_all_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    ask = CrossCompiler._ask
    monkeypatch.setattr(CrossCompiler, "_ask", lambda self, r, s: asked.append(r) or ask(self, r, s))
    kernel = load_kernel(SCALE)
    with CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=1) as compiler:
        for target in (H100, B200):
            with pytest.raises(Rejected, match=f"capability {target.capability}"):
                compiler.compile(config("told"), target)
    assert ["config" in request for request in asked] == [False, True, True]


@needs_triton
def test_several_kernels_of_a_launch_are_described_together(compiler: CrossCompiler) -> None:
    one, two = compiler.compile(config("right"), H100), compiler.compile(config("twice"), H100)
    assert two.facts["launches"] == 2
    assert two.facts["threads"] == 8 * 32
    assert two.facts["cubin_bytes"] > one.facts["cubin_bytes"]
    assert sorted(b["threads"] for b in two.blocks) == [4 * 32, 8 * 32]


@needs_triton
def test_a_kernel_that_triton_has_in_memory_is_described_again(compiler: CrossCompiler) -> None:
    first, second, blackwell = (
        compiler.compile(config(variant), target)
        for variant, target in (("jitted_once", H100), ("jitted_once_again", H100), ("jitted_once", B200))
    )
    assert first.facts == second.facts == compiler.compile(config("right"), H100).facts
    assert blackwell.facts == compiler.compile(config("right"), B200).facts


@needs_triton
@pytest.mark.parametrize(
    ("variant", "stage", "reason"),
    [
        ("build_raises", "build", "ValueError: no such tile"),
        ("told", "build", "ValueError: capability 90, 132 multiprocessors, n 1048576"),
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
        compiler.compile(config(variant), H100)
    assert caught.value.stage == stage


@needs_triton
def test_a_hanging_compilation_is_killed_and_the_next_one_runs_and_no_file_is_left(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    kernel = load_kernel(SCALE)
    with CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=1, cache=cache, timeout_s=1.0) as compiler:
        with pytest.raises(Rejected, match="timeout"):
            compiler.compile(config("hangs"), H100)
        with pytest.raises(Rejected, match="no such tile"):
            compiler.compile(config("build_raises", block=256), H100)
    assert not list(tmp_path.iterdir())


@needs_triton
def test_what_the_machine_did_wrong_is_not_kept(compiler: CrossCompiler, cache: Path) -> None:
    kept = set(cache.iterdir())
    for variant in ("full_disk", "dies"):
        with pytest.raises(Rejected):
            compiler.compile(config(variant, block=256), H100)
    assert set(cache.iterdir()) == kept


@needs_triton
def test_a_kept_result_needs_no_process(
    compiler: CrossCompiler, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, first = load_kernel(SCALE), compiler.compile(config("right"), H100)
    monkeypatch.setattr(CrossCompiler, "_ask", None)
    with CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=1, cache=cache) as other:
        assert other.compile(config("right"), H100) == first


@needs_triton
@pytest.mark.parametrize("change", ["source", "problem", "config", "device", "switch"])
def test_a_result_is_kept_for_exactly_what_it_depends_on(
    cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    kernel = load_kernel(SCALE)
    problem = kernel.problem(None, "cuda")
    with CrossCompiler(kernel, problem, cache=cache) as compiler:
        path = compiler._path(config=config("right"), device=H100.facts)
    if change == "source":
        kernel = LoadedKernel(kernel.path, kernel.source + "\n", kernel.definition)
    if change == "problem":
        problem = {**problem, "n": 4096}
    if change == "switch":
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    with CrossCompiler(kernel, problem, cache=cache) as compiler:
        other = compiler._path(
            config=config("right", num_warps=1 if change == "config" else 4),
            device=(B200 if change == "device" else H100).facts,
        )
    assert path != other


@needs_triton
def test_a_damaged_cache_is_ignored(tmp_path: Path) -> None:
    kernel = load_kernel(SCALE)
    with CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=1, cache=tmp_path) as compiler:
        path = compiler._path(config=config("build_raises"), device=dict(H100.facts))
        assert path is not None
        path.write_text('{"stage": "comp')
        with pytest.raises(Rejected, match="no such tile"):
            compiler.compile(config("build_raises"), H100)
        assert json.loads(path.read_text())["stage"] == "build"


@needs_triton
def test_a_closed_compiler_does_nothing_more(tmp_path: Path) -> None:
    kernel = load_kernel(SCALE)
    compiler = CrossCompiler(kernel, kernel.problem(None, "cuda"), jobs=2)
    compiler.close()
    compiler.close()
    with pytest.raises(DeviceError, match="closed"):
        compiler.compile(config("right"), H100)


@needs_triton
def test_rows_come_default_first_for_each_target_and_again_from_the_cache(cache: Path) -> None:
    kernel = load_kernel(content.find("matmul", content.KERNELS))
    problem = kernel.problem("gpu_1024", "cuda")
    hopper, blackwell = (kernel.backend("cuda").space({**problem, **t.facts}) for t in (H100, B200))
    seen: list[CheckRow] = []
    rows = check(kernel, ["h100", "b200"], shape="gpu_1024", samples=1, cache=cache, on_row=seen.append)
    assert rows == seen
    assert [r.target for r in rows] == ["h100", "h100", "b200", "b200"]
    assert [rows[0].config, rows[2].config] == [hopper.default, blackwell.default]
    # Each target has a space of its own, and its sample is from there.
    assert hopper.names != blackwell.names
    assert not hopper.violations(rows[1].config)
    assert not blackwell.violations(rows[3].config)
    assert all(r.ok and 0 < float(r.facts["occupancy"]) <= 1 for r in rows)
    assert check(kernel, ["h100", "b200"], shape="gpu_1024", samples=1, cache=cache) == rows
    assert json.loads(json.dumps([r.to_json() for r in rows]))[0]["registers"] == rows[0].registers


@needs_triton
@pytest.mark.parametrize("descriptors", [False, True])
def test_a_matrix_product_is_made_by_each_architecture_s_own_units(cache: Path, descriptors: bool) -> None:
    kernel = load_kernel(content.find("matmul", content.KERNELS))
    problem = kernel.problem("gpu_1024", "cuda")
    chosen = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2, "PERSISTENT": 0}
    chosen |= {"DESCRIPTORS": descriptors}
    facts: dict[str, dict[str, float | str]] = {}
    with CrossCompiler(kernel, problem, jobs=1, cache=cache) as compiler:
        for target in (H100, B200):
            space = kernel.backend("cuda").space({**problem, **target.facts})
            compiled = compiler.compile({**space.default, **chosen}, target)
            facts[target.name] = target.described(compiled.facts, compiled.blocks)
    hopper, blackwell = facts["h100"], facts["b200"]
    assert hopper["wgmma"]
    assert not hopper["tcgen05_mma"]
    assert blackwell["tcgen05_mma"]
    assert not blackwell["wgmma"]
    assert not hopper["mma_sync"]
    assert not blackwell["mma_sync"]
    # Its accumulator is 64 columns of tensor memory, which no other architecture has.
    assert (hopper["tmem_columns"], blackwell["tmem_columns"]) == (0, 64)
    for found in (hopper, blackwell):
        assert bool(found["tma_copies"]) == descriptors
        assert bool(found["async_copies"]) != descriptors
        assert float(found["cubin_bytes"]) > 1000
        assert 0 < float(found["occupancy"]) < 1
        assert float(found["blocks_per_sm"]) >= 1
        assert found["limited_by"] in ("registers", "shared memory")


@pytest.mark.slow
@needs_triton
def test_spills_are_what_ptxas_says(tmp_path: Path) -> None:
    """The assembler's own report against what is read from the binary."""
    kernel = load_kernel(content.find("attention", content.KERNELS))
    problem = {**kernel.problem(None, "cuda"), "heads": 1, "seq": 512, "head_dim": 128, "dtype": "float16"}
    space = kernel.backend("cuda").space({**problem, **H100.facts})
    # Scores and sums are 128 KiB, as much as all registers of four warps.
    config = {**space.default, "BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 4, "num_stages": 1}
    code = (
        "import json, sys; from pathlib import Path; from evotune.kernel import load_kernel\n"
        "from evotune.gpu.headless import argument_shapes, describe, run_headless\n"
        "path, problem, facts, config = json.loads(sys.argv[1])\n"
        "kernel = load_kernel(Path(path))\n"
        "shapes, build = argument_shapes(kernel, problem), kernel.backend('cuda').build\n"
        "print(json.dumps(describe(run_headless(build, config, {**problem, **facts}, shapes, 90))))"
    )
    python = [
        sys.executable,
        "-c",
        code,
        json.dumps([str(kernel.path), problem, dict(H100.facts), config]),
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
        (["cuda"], "takes its capability and multiprocessors from the device"),
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
    assert load_target("b200") == B200
    assert load_target("h200") == Target("h200", 90, 132)


def test_a_gpu_that_is_here_knows_better_than_its_recipe() -> None:
    assert load_target("h100", Gpu(0, "GPU-1", "NVIDIA H100 PCIe", 90, multiprocessors=114)).multiprocessors == 114
    assert load_target("cuda", Gpu(0, "GPU-2", "NVIDIA A100", 80, multiprocessors=108)) == Target("cuda", 80, 108)
    with pytest.raises(UsageError, match="'cuda' takes its multiprocessors from the device"):
        load_target("cuda", Gpu(0, "GPU-2", "NVIDIA A100", 80))


def test_a_check_of_a_named_target_does_not_depend_on_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Gpu(0, "GPU-1", "NVIDIA H100 PCIe", 90, multiprocessors=114)
    monkeypatch.setattr(check_module, "detect", lambda: [here])
    assert check_module._target("h100").multiprocessors == 132
    assert check_module._target("cuda").multiprocessors == 114


def test_a_reader_is_told_the_limits_of_a_target() -> None:
    assert (B200.card["tmem_columns"], B200.card["multiprocessors"]) == (512, 148)
    assert H100.card["shared_bytes_per_block"] == 232448  # 227 KiB
    assert "tmem_columns" not in H100.card


def test_sampled_configurations_are_distinct_and_the_same_for_the_same_seed() -> None:
    space = ConfigSpace.from_dict({"a": list(range(30)), "b": [1, 2]}, ["a != 3"], default={"a": 7, "b": 2})
    chosen = choose(space, 20, random.Random(1))
    assert chosen[0] == space.default
    assert len({space.key(c) for c in chosen}) == 21
    assert chosen == choose(space, 20, random.Random(1)) != choose(space, 20, random.Random(2))


def test_a_small_space_is_taken_whole() -> None:
    space = ConfigSpace.from_dict({"a": [1, 2, 3]}, ["a != 2"], default={"a": 3})
    assert choose(space, 20, random.Random(0)) == [{"a": 3}, {"a": 1}]
