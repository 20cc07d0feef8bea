from dataclasses import replace
from pathlib import Path

import pytest

from evotune import subject
from evotune.budget import Budget
from evotune.engine import AHEAD
from evotune.errors import DeviceError, UsageError
from evotune.gpu.detect import Gpu
from evotune.kernel import load_kernel
from evotune.settings import load
from evotune.subject import choose_target, find_subject

KERNEL = load_kernel(Path(__file__).parents[1] / "kernels" / "matmul.py")
H100 = Gpu(0, "GPU-1", "NVIDIA H100 80GB HBM3", 90, 80 << 30, 132)
GH200 = Gpu(0, "GPU-2", "NVIDIA GH200 480GB", 90, 96 << 30, 132)
B200 = Gpu(1, "GPU-3", "NVIDIA B200", 100, 180 << 30, 148)
OTHERS = [replace(H100, index=i, uuid=f"GPU-{i}0") for i in (2, 3)]
SLICE = Gpu(0, "MIG-1", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", 90, 10 << 30, 16)


@pytest.fixture
def here(monkeypatch):
    """Pretend that these GPUs are here, and that torch and triton are installed."""

    def pretend(*gpus, packages=True):
        monkeypatch.setattr(subject, "detect", lambda: list(gpus))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(subject, "find_spec", lambda name: object() if packages else None)

    return pretend


def test_without_a_gpu_the_cpu_is_tuned_and_the_reason_is_said(here):
    here()
    chosen = choose_target("auto", KERNEL)
    assert chosen.name == "cpu"
    assert "no GPU found" in chosen.why


@pytest.mark.parametrize(("gpu", "target"), [(H100, "h100"), (B200, "b200"), (GH200, "cuda")])
def test_auto_takes_the_gpu_that_is_here_by_a_whole_word_of_its_name(here, gpu, target):
    here(gpu)
    assert choose_target("auto", KERNEL) == subject.Chosen(target, f"{gpu.name} (GPU {gpu.index}) is here", (gpu,))


def test_a_gpu_without_its_packages_leaves_the_cpu_and_says_what_to_install(here):
    here(H100, packages=False)
    chosen = choose_target("auto", KERNEL)
    assert chosen.name == "cpu"
    assert "pip install 'evotune[gpu]'" in chosen.why


def test_a_named_target_takes_the_matching_gpu_of_several(here):
    here(H100, B200)
    assert choose_target("b200", KERNEL).gpus == (B200,)
    assert choose_target("cuda", KERNEL).gpus == (H100,)


def test_a_slice_of_a_gpu_is_not_that_gpu(here):
    here(SLICE)
    assert choose_target("auto", KERNEL).name == "cuda"
    with pytest.raises(DeviceError, match="target h100 was asked for"):
        choose_target("h100", KERNEL)


@pytest.mark.parametrize(("count", "indices"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 3]), ("all", [0, 2, 3])])
def test_as_many_gpus_are_taken_as_were_asked_for_and_named(here, count, indices):
    here(H100, *OTHERS)
    chosen = choose_target("auto", KERNEL, count)
    assert [g.index for g in chosen.gpus] == indices
    assert f"(GPU {', '.join(map(str, indices))})" in chosen.why
    assert choose_target("h100", KERNEL, count).gpus == chosen.gpus


def test_gpus_of_one_model_measure_together_and_no_others(here):
    here(H100, B200, *OTHERS)
    assert choose_target("cuda", KERNEL, 2).gpus == (H100, OTHERS[0])
    assert choose_target("h100", KERNEL, "all").gpus == (H100, *OTHERS)
    with pytest.raises(UsageError, match=r"--gpus all finds NVIDIA B200, NVIDIA H100 80GB HBM3, .*--target"):
        choose_target("cuda", KERNEL, "all")
    with pytest.raises(DeviceError, match=r"--gpus 2 was asked for and NVIDIA B200 \(GPU 1\) is here"):
        choose_target("b200", KERNEL, 2)


def test_only_visible_gpus_are_taken_in_the_order_that_the_user_gives(here, monkeypatch):
    here(H100, B200, *OTHERS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1")
    assert choose_target("auto", KERNEL, "all").gpus == (OTHERS[1], H100)
    with pytest.raises(DeviceError, match=r"here \(CUDA_VISIBLE_DEVICES=3,GPU-1\)"):
        choose_target("auto", KERNEL, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU \(CUDA_VISIBLE_DEVICES=\) is here"):
        choose_target("h100", KERNEL)


@pytest.mark.parametrize(("target", "gpus"), [("cpu", [H100]), ("auto", [])])
def test_several_gpus_without_a_gpu_to_measure_on_are_refused(here, target, gpus):
    here(*gpus)
    with pytest.raises(UsageError, match=r"--gpus all is for targets that are GPUs; target cpu is none"):
        choose_target(target, KERNEL, "all")
    with pytest.raises(UsageError, match="no GPU runs; leave --gpus 2 out"):
        find_subject("recordings/conv_A100", load(None, {"run.gpus": 2}, {}))


def test_a_backend_is_told_what_is_known_of_its_device(here):
    here(replace(H100, multiprocessors=114), *(replace(g, multiprocessors=114) for g in OTHERS))
    found = find_subject("kernels/matmul.py", load(None, {"run.target": "h100", "run.gpus": "all"}, {}))
    assert (found.story.problem["capability"], found.story.problem["multiprocessors"]) == (90, 114)
    assert found.story.problem["m"] == 4096
    assert found.story.device["shared_bytes_per_block"] == 232448
    assert found.devices == 3
    assert found.space.constants["multiprocessors"] == 114
    here()
    assert "capability" not in find_subject("kernels/matmul.py", load(None, {}, {})).story.problem


@pytest.mark.parametrize("gpus", [(), (H100,), (GH200,)])
def test_a_named_target_that_is_not_here_is_a_device_error_naming_check(here, gpus):
    here(*gpus)
    with pytest.raises(DeviceError, match=r"evotune check .*--target h200") as caught:
        choose_target("h200", KERNEL)
    assert (gpus[0].name if gpus else "no NVIDIA GPU") in str(caught.value)


def test_the_multi_fidelity_search_brings_its_own_repetitions(here):
    here()
    for flags, reps in (({}, 500), ({"run.search": "mfbo", "mfbo.preset": "study"}, 50)):
        assert find_subject("kernels/matmul.py", load(None, flags, {})).finals.reps == reps
    mine = load(None, {"run.search": "mfbo", "mfbo.fidelity_ultra": 70, "measure.ultra_reps": 9}, {})
    assert find_subject("kernels/matmul.py", mine).finals.reps == 70


def test_a_recording_has_one_shape():
    with pytest.raises(UsageError, match="recording of one shape; leave --shape small out"):
        find_subject("recordings/conv_A100", load(None, {"run.shape": "small"}, {}))


def test_a_recording_is_only_replayed():
    with pytest.raises(UsageError, match="replay"):
        choose_target("replay", KERNEL)
    with pytest.raises(UsageError, match="recording"):
        find_subject("recordings/gemm_3090", load(None, {"run.target": "cpu"}, {}))


def test_a_kernel_that_does_not_fit_its_shape_is_refused_before_anything_is_built():
    with pytest.raises(UsageError, match=r"dtype == .float32."):
        find_subject("kernels/matmul.py", load(None, {"run.target": "cpu", "run.shape": "gpu"}, {}))


@pytest.mark.parametrize("dtype", ["float32", "int8"])  # of one with a peak, and of one without
def test_a_kernel_that_only_moves_bytes_is_bounded_by_the_bandwidth(tmp_path, dtype):
    kernel, recipe = tmp_path / "copy.py", tmp_path / "mine.yaml"
    text = (Path(__file__).parent / "cpu" / "saxpy.py").read_text()
    kernel.write_text(f"{text}\nflops = lambda problem: 0\nshapes['default'] = {{'n': 1000, 'dtype': '{dtype}'}}\n")
    peaks = "{bytes_per_s: 1.2e+9, flops_per_s: {float32: 1.0e+9}}"
    recipe.write_text(f"backend: cpu\nladder: [{{fidelity: low}}]\nfinals: {{fidelity: high}}\npeaks: {peaks}\n")
    settings = load(None, {"run.target": str(recipe), "run.roofline_share": 0.5}, {})
    roofline = find_subject(str(kernel), settings, load=load_kernel).roofline
    assert roofline.bound_ms == pytest.approx(1e3 * 12 * 1000 / 1.2e9)
    assert Budget.of(settings.run, roofline.bound_ms, "mine").roofline_ms == pytest.approx(0.02)


class NotNeeded:
    """An evaluator of an engine without jobs."""


def test_a_machine_with_many_cores_does_not_begin_the_whole_budget_before_anything_is_known(monkeypatch):
    monkeypatch.setattr(subject, "usable_cores", lambda: 128)
    for evaluations, slots in ((60, 1 + AHEAD), (20, 2)):
        settings = load(None, {"run.target": "cpu", "run.max_evaluations": evaluations}, {})
        engine = find_subject("vector_add", settings, load=load_kernel).open_engine(NotNeeded())
        engine.cancel()
        assert engine.slots == slots
