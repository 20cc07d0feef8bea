"""What is exported can be used: snippets run, JSON fits its schema, functions answer."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from evotune import __version__, history
from evotune.cli import main
from evotune.errors import UsageError
from evotune.export import FORMATS, export, find, fitting
from evotune.export.helion import joined
from tests.export.journals import H100, MATMUL, PROBLEM, write, write_shapes
from tests.test_tuner import run as tune

ROOT = Path(__file__).parents[2]
BEST = {**MATMUL, "BLOCK_M": 128, "num_warps": 8}
HELION = {
    "block_sizes_0": 64,
    "block_sizes_1": 32,
    "loop_orders_0_0": 1,
    "loop_orders_1_0": 2,
    "loop_orders_1_1": 0,
    "range_unroll_factors_0": 0,
    "range_flattens_0": "None",
    "indexing_0": "pointer",
    "indexing_1": "tensor_descriptor",
    "num_warps": 8,
    "num_stages": 3,
    "pid_type": "flat",
    "maxnreg": "None",
}


@dataclass
class TritonConfig:
    """Where Triton is not installed: its signature, and what it makes of it (3.9)."""

    kwargs: dict
    num_warps: int = 4
    num_stages: int = 3
    num_ctas: int = 1
    maxnreg: int | None = None
    pre_hook: object = field(default=None)
    ir_override: str | None = None


def triton():
    if importlib.util.find_spec("triton") is None:
        return SimpleNamespace(Config=TritonConfig)
    import triton

    return triton


def exported(path, form, *runs):
    return export(find([history.load(path, r) for r in runs or (None,)]), form)


def comments(text):
    return [line.strip() for line in text.splitlines() if line.strip().startswith("#")]


# -- what fits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "described", "fit"),
    [
        (MATMUL, {}, ["triton", "json", "t4", "lookup"]),
        ({"BLOCK": 64, "num_warps": 4}, {"target": "cpu"}, ["json", "t4", "lookup"]),
        ({"VEC_WIDTH": 8}, {"target": "cpu"}, ["json", "t4", "lookup"]),
        ({"block_size_x": 32}, {"target": "replay"}, ["json", "t4", "lookup"]),
        (HELION, {}, ["helion", "json", "t4", "lookup"]),
    ],
)
def test_a_configuration_is_exported_only_where_its_parameters_exist(tmp_path, config, described, fit):
    write(tmp_path / "j.db", [config], **described)
    found = find([history.load(tmp_path / "j.db")])
    assert fitting(found) == fit
    for name in set(FORMATS) - set(fit):
        with pytest.raises(UsageError, match=rf"cannot be exported as {name}: .*what fits: {', '.join(fit)}"):
            export(found, name)
    for name in fit:
        assert export(found, name).text.endswith("\n")


@pytest.mark.parametrize("name", [*FORMATS])
def test_nothing_valid_gives_nothing(tmp_path, name):
    write(tmp_path / "j.db", [MATMUL], fails={0})
    assert exported(tmp_path / "j.db", name) is None
    assert fitting(find([history.load(tmp_path / "j.db")])) == []


def test_runs_that_have_too_little_in_common_are_not_exported_together(tmp_path):
    path = tmp_path / "j.db"
    first = write(path, [MATMUL])
    for described in ({"kernel": "softmax"}, {"device": "NVIDIA B200"}, {"target": "b200"}):
        other = write(path, [MATMUL], **described)
        with pytest.raises(UsageError, match=f"{other} has {next(iter(described))}.* as run {first} has"):
            exported(path, "json", first, other)


# -- code ---------------------------------------------------------------------------------------


def test_a_triton_config_is_what_triton_makes_of_it(tmp_path):
    write(tmp_path / "j.db", [MATMUL, BEST])
    text = exported(tmp_path / "j.db", "triton").text
    config = eval(text, {"triton": triton()})
    assert config.kwargs == {"BLOCK_M": 128, "BLOCK_N": 64, "PRECISION": "ieee"}
    assert (config.num_warps, config.num_stages, config.num_ctas, config.maxnreg) == (8, 3, 1, None)
    said = " ".join(comments(text))
    for part in ("matmul", "m=4096", "H100 80GB", "1 ms", "2.000x", "measured", __version__, "triton 3.9.0"):
        assert part in said
    assert history.load(tmp_path / "j.db").summary.run_id in said


def test_all_of_tritons_options_are_arguments(tmp_path):
    write(tmp_path / "j.db", [{**MATMUL, "num_ctas": 2, "maxnreg": 128}])
    config = eval(exported(tmp_path / "j.db", "triton").text, {"triton": triton()})
    assert (config.num_ctas, config.maxnreg) == (2, 128)


def test_configurations_of_several_runs_are_a_list(tmp_path):
    path = tmp_path / "j.db"
    ids = [write(path, [MATMUL, BEST], problem={**PROBLEM, "m": m}) for m in (1024, 4096)]
    text = exported(path, "triton", *ids).text
    assert [c.num_warps for c in eval(text, {"triton": triton()})] == [8, 8]
    assert "m=1024" in text
    assert "m=4096" in text


@pytest.mark.torch
def test_the_real_triton_takes_the_config(tmp_path):
    module = pytest.importorskip("triton")
    write(tmp_path / "j.db", [MATMUL, BEST])
    assert isinstance(eval(exported(tmp_path / "j.db", "triton").text, {"triton": module}), module.Config)


def test_helions_lists_are_put_together(tmp_path):
    assert joined(HELION) == {
        "block_sizes": [64, 32],
        "loop_orders": [[1, 0], [2, 0, 1]],
        "range_unroll_factors": [0],
        "range_flattens": [None],
        "indexing": ["pointer", "tensor_descriptor"],
        "num_warps": 8,
        "num_stages": 3,
        "pid_type": "flat",
        "maxnreg": None,
    }
    with pytest.raises(UsageError, match="lacks block_sizes_0"):
        joined({"block_sizes_1": 32, "pid_type": "flat"})


def test_a_helion_decorator_has_the_configuration(tmp_path):
    seen = []
    helion = SimpleNamespace(
        Config=lambda **given: given, kernel=lambda config: seen.append(config) or (lambda f: f)
    )
    write(tmp_path / "j.db", [HELION])
    text = exported(tmp_path / "j.db", "helion").text
    exec(f"{text}def add(x, y): return x + y\n", {"helion": helion})
    assert seen == [joined(HELION)]


def test_a_function_chooses_the_nearest_shape_by_the_log_of_sizes(tmp_path):
    path = tmp_path / "j.db"
    ids = [
        write(path, [{**MATMUL, "BLOCK_M": block}], problem={**PROBLEM, "m": m, "dtype": dtype})
        for m, dtype, block in ((1, "float16", 16), (100, "float16", 64), (10_000, "float16", 128), (1, "int8", 32))
    ]
    made = exported(path, "dispatch", *ids)
    for m, dtype, block in [
        (1, "float16", 16),
        (9, "float16", 16),
        (20, "float16", 64),
        (990, "float16", 64),
        (1100, "float16", 128),
        (10**9, "float16", 128),
        (10**9, "int8", 32),
    ]:
        problem = {**PROBLEM, "m": m, "dtype": dtype}
        assert _answer(made.text, problem)["BLOCK_M"] == block, problem
    (tmp_path / "exported_config.py").write_text(made.text, encoding="utf-8")
    code = f"import exported_config as e, json; print(json.dumps(e.get_kernel_config({PROBLEM!r})))"
    # Without what is installed: the file needs the standard library alone.
    command = [sys.executable, "-S", "-E", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["BLOCK_M"] == 128


@pytest.mark.parametrize("form", ["dispatch", "json", "t4", "lookup"])
def test_a_problem_on_a_gpu_is_exported_without_what_the_device_is(tmp_path, form):
    told = {**PROBLEM, "capability": 90, "multiprocessors": 132}
    path = tmp_path / "j.db"
    ids = [write(path, [MATMUL, BEST], problem={**told, "m": m}) for m in (1, 4096)]
    runs = [history.load(path, run) for run in (ids if form in ("dispatch", "lookup") else ids[1:])]
    text = export(FORMATS[form].find(runs), form).text
    assert "capability" not in text
    assert "multiprocessors" not in text
    if form == "dispatch":
        assert _answer(text, PROBLEM) == BEST


def _answer(text, problem):
    names = {}
    exec(text, names)
    return names["get_kernel_config"](problem)


def test_of_two_runs_of_a_shape_the_faster_one_is_taken_and_that_is_said(tmp_path):
    path = tmp_path / "j.db"
    slow, fast = write(path, [MATMUL]), write(path, [MATMUL, BEST])
    other = write(path, [MATMUL], problem={**PROBLEM, "m": 1})
    made = exported(path, "dispatch", slow, fast, other)
    assert _answer(made.text, PROBLEM) == BEST
    assert made.notes == (f"run {slow} is left out: another one is faster at the same problem",)


def test_the_program_of_a_run_over_shapes_is_the_function(tmp_path):
    write_shapes(tmp_path / "j.db")
    found = find([history.load(tmp_path / "j.db")])
    assert fitting(found) == ["json", "t4", "dispatch", "lookup"]
    text = export(found, "dispatch").text
    assert _answer(text, {"n": 64}) == {"tile": 16}
    assert _answer(text, {"n": 999}) == {"tile": 64}
    said = comments(text)
    assert said[0].startswith("# small: toy (n=64) on CPU")
    assert said[3].startswith("# large: toy (n=512) on CPU")


def test_text_of_a_journal_cannot_leave_its_comment(tmp_path):
    write(tmp_path / "j.db", [MATMUL], device="evil\n__import__('os')._exit(3)  # é", versions={"x\r\n1/0": "2"})
    text = exported(tmp_path / "j.db", "triton").text
    assert eval(text, {"triton": triton()}).num_warps == 4
    assert text.isascii()
    assert len(text.splitlines()) == 4


# -- JSON ---------------------------------------------------------------------------------------


def test_json_has_the_configuration_and_where_it_comes_from(tmp_path):
    run_id = write(tmp_path / "j.db", [MATMUL, BEST], provenance="replayed")
    out = json.loads(exported(tmp_path / "j.db", "json").text)
    assert out["evotune"] == __version__
    assert (out["kernel"], out["target"], out["device"]) == ("matmul", "h100", H100["device"])
    assert out["provenance"] == "replayed"
    (config,) = out["configs"]
    assert config["config"] == BEST
    assert config["problem"] == PROBLEM
    assert (config["run_id"], config["latency_ms"], config["speedup"]) == (run_id, 1.0, 2.0)


def test_the_best_so_far_of_an_unfinished_run_is_exported_and_called_that(tmp_path):
    write(tmp_path / "j.db", [MATMUL, BEST], result=False)
    text = exported(tmp_path / "j.db", "triton").text
    assert eval(text, {"triton": triton()}).num_warps == 8
    assert "best so far: its process ended without a result" in text
    assert json.loads(exported(tmp_path / "j.db", "json").text)["configs"][0]["speedup"] is None


def test_a_replayed_recording_says_that_nothing_was_timed(tmp_path):
    write(tmp_path / "j.db", [MATMUL], provenance="replayed", target="replay")
    assert "replayed from a recording: nothing was timed in this run" in exported(tmp_path / "j.db", "triton").text


def _t4(tmp_path):
    # A run by the real tuner, with failures.
    from tests.toy import ToyEvaluator

    tune(tmp_path / "j.db", 30, ToyEvaluator(fails=lambda c: c["layout"] == "nn"))
    return history.load(tmp_path / "j.db"), json.loads(exported(tmp_path / "j.db", "t4").text)


def test_t4_has_every_trial(tmp_path):
    run, out = _t4(tmp_path)
    assert len(out["results"]) == 30
    for row, trial in zip(out["results"], run.trials, strict=True):
        assert row["configuration"] == trial.config
        assert (row["invalidity"], row["correctness"]) == (("compile", 0) if trial.failure else ("correct", 1))
        measured = {m["name"]: m["value"] for m in row["measurements"]}
        assert measured.get("time") == trial.latency_ms
        assert row["times"]["runtimes"] == list(trial.best.samples_ms if trial.best else ())
    assert {row["invalidity"] for row in out["results"]} == {"correct", "compile"}


def _valid(instance, schema):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(instance, schema, cls=jsonschema.Draft202012Validator)


def test_t4_fits_the_schema(tmp_path):
    schema = json.loads((Path(__file__).parent / "t4_schema.json").read_text(encoding="utf-8"))
    _, out = _t4(tmp_path)
    _valid(out, schema)
    write_shapes(tmp_path / "shapes.db")
    shapes = json.loads(exported(tmp_path / "shapes.db", "t4").text)
    _valid(shapes, schema)
    assert [r["configuration"] for r in shapes["results"]] == [{"tile": 16}, {"tile": 64}]
    import jsonschema

    del out["results"][0]["invalidity"]
    with pytest.raises(jsonschema.ValidationError):
        _valid(out, schema)


def test_t4_fits_kernel_tuners_copy_of_the_schema(tmp_path):
    spec = importlib.util.find_spec("kernel_tuner")
    if spec is None or spec.origin is None:
        pytest.skip("kernel_tuner is not installed")
    schema = Path(spec.origin).parent / "schema" / "T4" / "1.0.0" / "results-schema.json"
    _, out = _t4(tmp_path)
    _valid(out, json.loads(schema.read_text(encoding="utf-8")))


# -- vLLM ---------------------------------------------------------------------------------------

MOE = {"tokens": 512, "experts": 64, "n": 1024, "k": 2048, "dtype": "bfloat16"}
BLOCKS = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128, "GROUP_M": 1, "num_warps": 4, "num_stages": 3}
PLAIN = {**BLOCKS, "PERSISTENT": 0, "DESCRIPTORS": False, "maxnreg": 0}


def test_vllm_gets_the_fastest_that_its_kernel_can_do(tmp_path):
    path = tmp_path / "j.db"
    moe = {"kernel": "grouped_gemm"}
    by_tma = {**PLAIN, "BLOCK_M": 256, "DESCRIPTORS": True}
    decode = write(path, [PLAIN, {**PLAIN, "BLOCK_M": 32}, by_tma], problem=MOE, **moe)
    prefill = write(path, [PLAIN, {**PLAIN, "BLOCK_M": 128}], problem={**MOE, "tokens": 32768}, **moe)
    made = exported(path, "vllm", decode, prefill)
    assert made.file_name == "E=64,N=1024,device_name=NVIDIA_H100_80GB_HBM3.json"
    wanted = {
        "BLOCK_SIZE_M": 32,
        "BLOCK_SIZE_N": 64,
        "BLOCK_SIZE_K": 128,
        "GROUP_SIZE_M": 1,
        "num_warps": 4,
        "num_stages": 3,
    }
    assert json.loads(made.text) == {"512": wanted, "32768": {**wanted, "BLOCK_SIZE_M": 128}}
    assert any("divide it by the experts of a token" in note for note in made.notes)
    assert "512 rows: 1.005 ms, the fastest of what vLLM's kernel can do" in made.notes


def test_vllm_has_one_name_for_the_family_of_h200(tmp_path):
    write(tmp_path / "j.db", [PLAIN], problem=MOE, device="NVIDIA H200 NVL")
    assert exported(tmp_path / "j.db", "vllm").file_name == "E=64,N=1024,device_name=NVIDIA_H200.json"


def test_vllm_is_refused_what_its_kernel_cannot_do(tmp_path):
    path = tmp_path / "j.db"
    write(path, [{**PLAIN, "DESCRIPTORS": True}], problem=MOE)
    with pytest.raises(
        UsageError, match=r"nothing was measured that its kernel can do \(PERSISTENT=0, DESCRIPTORS=F"
    ):
        exported(path, "vllm")
    write(path, [PLAIN], problem={**MOE, "dtype": "float32"})
    with pytest.raises(UsageError, match="it is of float32"):
        exported(path, "vllm")
    ids = [write(path, [PLAIN], problem={**MOE, "n": n}) for n in (512, 1024)]
    with pytest.raises(UsageError, match="experts, n, k and dtype must be the same"):
        exported(path, "vllm", *ids)


def test_the_shipped_grouped_gemm_has_the_parameters_that_vllm_is_given():
    from evotune.export.vllm import FIELDS, ITS_WAY, SIZES
    from evotune.kernel import load_kernel

    kernel = load_kernel(ROOT / "kernels" / "grouped_gemm.py")
    for problem in kernel.definition.shapes.values():
        if problem["dtype"] == "float32":  # refused
            continue
        space = kernel.backend("cuda").space({**problem, "capability": 90, "multiprocessors": 132})
        assert set(space.names) <= {*FIELDS, *ITS_WAY}
        assert set(FIELDS) <= set(space.names)
        assert set(SIZES) <= set(problem)
        assert all(space.parameters[n].index(v) is not None for n, v in ITS_WAY.items() if n in space.names)


# -- the command --------------------------------------------------------------------------------


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evotune", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_the_command_prints_or_writes_the_same_text(tmp_path, monkeypatch, capsys):
    path = tmp_path / "j.db"
    write(path, [MATMUL, BEST])
    code, out, err = command(monkeypatch, capsys, "--format", "triton", "--journal", path)
    assert (code, err) == (0, "")
    file = tmp_path / "config.py"
    code, said, err = command(monkeypatch, capsys, "--format", "triton", "--journal", path, "--out", file)
    assert (code, said, err) == (0, "", f"written to {file}\n")
    assert file.read_text(encoding="utf-8") == out
    code, said, _ = command(monkeypatch, capsys, "--format", "triton", "--journal", path, "--out", tmp_path)
    assert (tmp_path / "triton_config.py").read_text(encoding="utf-8") == out


def test_exit_codes_tell_wrong_use_from_nothing_found(tmp_path, monkeypatch, capsys):
    path = tmp_path / "j.db"
    write(path, [MATMUL], fails={0})
    code, out, err = command(monkeypatch, capsys, "--format", "triton", "--journal", path)
    assert (code, out) == (1, "")
    assert "no valid configuration to export; why: evotune show r-" in err
    for arguments, message in [
        (("--format", "tritn"), "no format 'tritn' (did you mean 'triton'?); there are triton, helion, json"),
        (("r-none", "--format", "json"), "has no run 'r-none'"),
        (("--format", "json", "--out", tmp_path / "none" / "x.json"), "there is no folder"),
    ]:
        code, out, err = command(monkeypatch, capsys, *arguments, "--journal", path)
        assert (code, out) == (2, "")
        assert message in err
    write(path, [{"VEC": 8}], target="cpu")
    code, _, err = command(monkeypatch, capsys, "--format", "helion", "--journal", path)
    assert code == 2
    assert "what fits: json, t4" in err
