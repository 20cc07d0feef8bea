from pathlib import Path

import pytest

from evotune import subject
from evotune.errors import DeviceError, UsageError
from evotune.gpu.detect import Gpu
from evotune.kernel import load_kernel
from evotune.settings import load
from evotune.subject import choose_target, find_subject

KERNEL = load_kernel(Path(__file__).parents[1] / "kernels" / "matmul.py")
H100 = Gpu(0, "GPU-1", "NVIDIA H100 80GB HBM3", 90, 80 << 30)
GH200 = Gpu(0, "GPU-2", "NVIDIA GH200 480GB", 90, 96 << 30)
B200 = Gpu(1, "GPU-3", "NVIDIA B200", 100, 180 << 30)


@pytest.fixture
def here(monkeypatch):
    """Pretend that these GPUs are here, and that torch and triton are installed."""

    def pretend(*gpus, packages=True):
        monkeypatch.setattr(subject, "detect", lambda: list(gpus))
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
    assert choose_target("auto", KERNEL) == subject.Chosen(target, f"{gpu.name} is here", gpu)


def test_a_gpu_without_its_packages_leaves_the_cpu_and_says_what_to_install(here):
    here(H100, packages=False)
    chosen = choose_target("auto", KERNEL)
    assert chosen.name == "cpu"
    assert "pip install 'evotune[gpu]'" in chosen.why


def test_a_named_target_takes_the_matching_gpu_of_several(here):
    here(H100, B200)
    assert choose_target("b200", KERNEL).gpu == B200
    assert choose_target("cuda", KERNEL).gpu == H100


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
