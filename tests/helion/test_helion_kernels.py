"""The shipped Helion kernels: with Helion's space for each GPU, right in the interpreter, and compiled."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_jobs import do

from evotune.errors import UsageError
from evotune.kernel import load_kernel
from evotune.process import Reply, Worker

ROOT = Path(__file__).parents[2]
MATMUL = {"m": 1024, "n": 1024, "k": 1024, "dtype": "float16"}
RMS_NORM = {"rows": 64, "cols": 512, "dtype": "float16"}
ATTENTION = {"heads": 2, "seq": 128, "head_dim": 64, "causal": True, "dtype": "float16"}
H100 = {"capability": 90, "multiprocessors": 132}
B200 = {"capability": 100, "multiprocessors": 148}
FEW = {"multiprocessors": 3}  # fewer than tiles, lest no persistent kernel loop
# Sizes that no tile divides.
INTERPRETED = [
    ("helion_matmul", {"m": 37, "n": 29, "k": 45, "dtype": "float32", **FEW}),
    ("helion_rms_norm", {"rows": 5, "cols": 300, "dtype": "bfloat16", **FEW}),
    ("helion_attention", {"heads": 2, "seq": 45, "head_dim": 16, "causal": False, "dtype": "float32", **FEW}),
    ("helion_attention", {"heads": 2, "seq": 45, "head_dim": 16, "causal": True, "dtype": "float16", **FEW}),
]
SAMPLES = 3

needs_helion = pytest.mark.skipif(
    importlib.util.find_spec("helion") is None, reason="needs helion; pip install helion"
)


@pytest.fixture(scope="module")
def interpreted():
    return do("interpret", INTERPRETED, SAMPLES)


@pytest.fixture(scope="module")
def compiled():
    jobs = [("helion_matmul", {**MATMUL, **B200}), ("helion_rms_norm", {**RMS_NORM, **H100})]
    return do("compile", [*jobs, ("helion_attention", {**ATTENTION, **H100})], 1)


@needs_helion
@pytest.mark.slow
@pytest.mark.parametrize(("name", "problem"), INTERPRETED)
def test_a_helion_kernel_agrees_with_its_reference_in_the_interpreter(interpreted, name, problem):
    rows = [row for row in interpreted if row["problem"] == problem]
    assert len(rows) == 1 + SAMPLES
    assert [row for row in rows if row["wrong"]] == []


@needs_helion
@pytest.mark.slow
def test_what_was_interpreted_has_persistent_kernels_and_others(interpreted):
    kinds = {row["config"]["pid_type"] for row in interpreted}
    assert {"flat", "xyz"} & kinds
    assert {"persistent_blocked", "persistent_interleaved"} & kinds


@needs_helion
@pytest.mark.slow
@pytest.mark.parametrize("name", ["helion_matmul", "helion_rms_norm", "helion_attention"])
def test_a_default_compiles_without_a_gpu_and_a_sample_does_or_has_a_reason(compiled, name):
    default, sample = (row for row in compiled if row["kernel"] == name)
    assert default["blocks"][0]["registers"] > 0
    assert default["facts"]["launches"] == 1
    assert ("blocks" in sample) != bool(sample.get("reason"))


@needs_helion
@pytest.mark.slow
def test_a_matrix_product_for_a_b200_is_compiled_to_its_own_instructions(compiled):
    facts = next(row["facts"] for row in compiled if row["kernel"] == "helion_matmul")
    assert facts["tmem_columns"] > 0


@needs_helion
@pytest.mark.slow
def test_the_space_of_a_b200_has_choices_of_its_own_and_comes_without_an_import_of_torch(compiled):
    code = (
        "import json, sys; from pathlib import Path; from evotune.kernel import load_kernel\n"
        "space = load_kernel(Path(sys.argv[1])).backend('cuda').space(json.loads(sys.argv[2]))\n"
        "assert not {'torch', 'triton', 'helion'} & set(sys.modules)\n"
        "print(json.dumps({'names': space.names, 'default': dict(space.default)}))"
    )
    file, problem = str(ROOT / "kernels/helion_attention.py"), json.dumps({**ATTENTION, **B200})
    done = subprocess.run(
        [sys.executable, "-c", code, file, problem],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    b200 = json.loads(done.stdout)
    h100 = next(row["config"] for row in compiled if row["kernel"] == "helion_attention")
    assert set(b200["default"]) == set(b200["names"])
    assert {n for n in set(b200["names"]) - set(h100) if n.startswith("range_warp_specializes")}
    assert set(h100) < set(b200["names"])


def test_a_kernel_that_helion_refuses_is_the_files_fault_with_helions_reason(monkeypatch):
    class Refusing(Worker):
        def call(self, request, timeout_s):
            return Reply("error", error="InvalidConfig", message="two\nlines")

    monkeypatch.setattr("evotune.helion.kernel.find_spec", lambda name: "here")
    monkeypatch.setattr("evotune.helion.kernel.Worker", Refusing)
    kernel = load_kernel(ROOT / "kernels/helion_matmul.py")
    with pytest.raises(UsageError, match=r"does not take matmul of .*helion_matmul\.py .*: two lines"):
        kernel.backend("cuda").space({**MATMUL, **H100, "m": 66})


def test_without_helion_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("evotune.helion.kernel.find_spec", lambda name: None)
    kernel = load_kernel(ROOT / "kernels/helion_matmul.py")
    with pytest.raises(UsageError, match=r"pip install 'evotune\[gpu\]'"):
        kernel.backend("cuda").space({**MATMUL, **H100, "m": 65})
