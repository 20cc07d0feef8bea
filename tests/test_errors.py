"""Names that are hinted at where one is not known, and where none was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from evotune import content
from evotune.batch.jobs import OPTIONS
from evotune.cli.completing import METHODS
from evotune.content import Kind
from evotune.errors import nearest
from evotune.export import FORMATS
from evotune.llm.choose import BUILT_IN
from evotune.schema import key_paths
from evotune.settings import Settings
from evotune.track import TRACKERS


def entries(*kinds: Kind) -> list[str]:
    paths = [entry for kind in kinds for entry in content.shipped(kind)]
    return [*paths, *(Path(entry).stem for entry in paths)]


KEYS = list(key_paths(Settings))
KNOWN = {
    "target": entries(content.EVALUATORS),
    "kernel": entries(content.KERNELS),
    "recording": entries(content.KERNELS, content.RECORDINGS),
    "provider": list(BUILT_IN),
    "method": list(METHODS),
    "shape": ["small", "odd", "default", "causal", "long", "gpu", "gpu_1024", "gpu_causal", "gpu_64", "gpu_8192"],
    "key of a job": ["kernel", "shapes", "targets", "priority", *OPTIONS],
    "key of the file": ["defaults", "in_all", "jobs"],
    "variable": ["_".join(("EVOTUNE", *key)).upper() for key in KEYS],
    "setting": [*("run." + key for section, key in KEYS if section == "run"), *(section for section, _ in KEYS)],
    "format": list(FORMATS),
    "mode": ["search", "cached", "off"],
    "tracker": list(TRACKERS),
    "parameter": ["BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "UNROLL"],
    "argument": ["x", "y", "out", "n", "BLOCK"],
}
# What was typed, and what was meant.
MISSPELT = {
    "target": {
        "h1000": "h100",
        "H100": "h100",
        "h10": "h100",
        "b20": "b200",
        "cdua": "cuda",
        "cud": "cuda",
        "h200x": "h200",
    },
    "provider": {
        "opnai": "openai",
        "OpenAI": "openai",
        "open_ai": "openai",
        "antropic": "anthropic",
        "anthorpic": "anthropic",
        "mok": "mock",
        "non": "none",
    },
    "method": {
        "randon": "random",
        "rand": "random",
        "genetics": "genetic",
        "anealing": "annealing",
        "patern": "pattern",
    },
    "shape": {
        "smal": "small",
        "defualt": "default",
        "casual": "causal",
        "lnog": "long",
        "gpu-1024": "gpu_1024",
        "gpu1024": "gpu_1024",
        "gpu_819": "gpu_8192",
    },
    "kernel": {
        "atention": "attention",
        "kernels/atention.py": "kernels/attention.py",
        "matmull": "matmul",
        "mat_mul": "matmul",
        "attn": "attention",
        "layernorm": "layer_norm",
        "vec_add": "vector_add",
        "attention.py": "attention",
    },
    "recording": {
        "conv_a100": "conv_A100",
    },
    "key of a job": {
        "kernl": "kernel",
        "target": "targets",
        "max_evals": "max_evaluations",
        "max-evaluations": "max_evaluations",
        "priorty": "priority",
        "sed": "seed",
        "max_second": "max_seconds",
    },
    "variable": {
        "EVOTUNE_RNU_SEED": "EVOTUNE_RUN_SEED",
        "EVOTUNE_SHAPE": "EVOTUNE_RUN_SHAPE",
        "EVOTUNE_LLM_TEMPRATURE": "EVOTUNE_LLM_TEMPERATURE",
        "EVOTUNE_PROVIDER": "EVOTUNE_LLM_PROVIDER",
    },
    "setting": {
        "run.sede": "run.seed",
        "run.max_evals": "run.max_evaluations",
        "lllm": "llm",
        "serach": "search",
    },
    "format": {
        "tritn": "triton",
        "jsn": "json",
        "vlm": "vllm",
    },
    "mode": {
        "serach": "search",
        "cache": "cached",
    },
    "tracker": {
        "mlfow": "mlflow",
        "wandbd": "wandb",
    },
    "parameter": {
        "block_m": "BLOCK_M",
        "num_warp": "num_warps",
        "UNROL": "UNROLL",
    },
    "argument": {
        "BLOK": "BLOCK",
        "nn": "n",
        "outt": "out",
    },
    "key of the file": {
        "job": "jobs",
        "default": "defaults",
    },
}
UNKNOWN = {
    "target": "gpu tpu rocm a100 mi300 h300 nvidia metal",
    "provider": "claude gemini ollama llama gpt-4o azure vllm",
    "method": "bayesian grid hill-climbing tpe ray",
    "shape": "1024 large tiny big bf16 huge",
    "kernel": "relu gelu flash.py kernels/foo.py kernels/topk.py mykernel.py",
    "recording": "resnet",
    "key of a job": "device name notes budget timeout parallel gpu_name",
    "variable": "EVOTUNE_HOME EVOTUNE_DEBUG EVOTUNE_CACHE EVOTUNE_LOG",
    "setting": "logging device run.name run.output",
    "format": "yaml csv python cutlass markdown",
    "mode": "on true",
    "tracker": "comet tensorboard neptune",
    "parameter": "waves_per_eu tile threads",
    "argument": "stride weight",
    "key of the file": "tasks version include",
}


@pytest.mark.parametrize(
    ("place", "typed", "meant"), [(place, *pair) for place, pairs in MISSPELT.items() for pair in pairs.items()]
)
def test_what_was_meant_is_hinted_at(place: str, typed: str, meant: str) -> None:
    assert nearest(typed, KNOWN[place]) == f" (did you mean {meant!r}?)"


@pytest.mark.parametrize(
    ("place", "typed"), [(place, word) for place, words in UNKNOWN.items() for word in words.split()]
)
def test_there_is_no_hint_where_nothing_that_is_known_was_meant(place: str, typed: str) -> None:
    assert nearest(typed, KNOWN[place]) == ""
