"""JSON as vLLM looks it up for its fused mixture-of-experts kernel: a configuration for each batch size.

Its kernel loads by pointers, computes one tile in a program, and leaves registers to the compiler. So what is
exported is the fastest configuration that was measured that way, which may not be the winner of the run.
File names and fields as in vLLM's ``fused_moe/configs``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from evotune.export.found import Export, Found
from evotune.history import SHAPE, RunHistory
from evotune.space import Config, Value
from evotune.trial import Trial, incumbent

SIZES = ("tokens", "experts", "n", "k")
FIELDS: Mapping[str, str] = {
    "BLOCK_M": "BLOCK_SIZE_M",
    "BLOCK_N": "BLOCK_SIZE_N",
    "BLOCK_K": "BLOCK_SIZE_K",
    "GROUP_M": "GROUP_SIZE_M",
    "num_warps": "num_warps",
    "num_stages": "num_stages",
}
# What vLLM's kernel does where ours has a choice: kernels/grouped_gemm.py.
ITS_WAY: Mapping[str, Value] = {"PERSISTENT": 0, "DESCRIPTORS": False, "maxnreg": 0}


def why_not(found: Found) -> str | None:
    """Why vLLM could not use what was found."""
    problems = [w.problem for w in found.winners]
    missing = [name for name in (*SIZES, "dtype") if any(name not in p for p in problems)]
    missing += [name for name in FIELDS if any(name not in w.config for w in found.winners)]
    if missing:
        return f"it is no grouped matrix product with experts: {', '.join(missing)} missing"
    if len({(p["experts"], p["n"], p["k"], p["dtype"]) for p in problems}) > 1:
        return "its file is for one set of weights; experts, n, k and dtype must be the same"
    if problems[0]["dtype"] not in ("float16", "bfloat16"):
        return (
            f"it is of {problems[0]['dtype']}, and evotune knows the names of files for float16 and bfloat16 only"
        )
    if not list(_trials(found)):
        way = ", ".join(f"{name}={value!r}" for name, value in ITS_WAY.items())
        return f"nothing was measured that its kernel can do ({way})"
    return None


def write(found: Found) -> Export:
    """One object: configurations by the number of rows."""
    problem = found.winners[0].problem
    best: dict[int, Trial] = {}
    for rows, trial in _trials(found):
        if rows not in best or (trial.latency_ms or 0.0) < (best[rows].latency_ms or 0.0):
            best[rows] = trial
    table = {
        str(rows): {FIELDS[name]: trial.config[name] for name in FIELDS} for rows, trial in sorted(best.items())
    }
    device = found.run.summary.device.replace(" ", "_")
    if "H200" in device.split("_"):
        device = "NVIDIA_H200"  # vLLM has one file for the family
    notes = [
        "the number before each configuration counts a row once for each expert that it goes to, and vLLM counts "
        "tokens: divide it by the experts of a token",
        "N in the file's name is n of the run; vLLM means the intermediate size, in one process of several a part",
    ]
    notes += [
        f"{rows} rows: {(trial.latency_ms or 0.0):.4g} ms, the fastest of what vLLM's kernel can do"
        for rows, trial in sorted(best.items())
    ]
    name = f"E={problem['experts']},N={problem['n']},device_name={device}.json"
    return Export(json.dumps(table, indent=4) + "\n", name, tuple(notes))


def _trials(found: Found) -> Iterator[tuple[int, Trial]]:
    """Number of rows, and the best trial at it that vLLM's kernel can do."""
    for winner in found.winners:
        trial = _best(winner.run, winner.shape)
        if trial is not None:
            yield int(winner.problem["tokens"]), trial


def _best(run: RunHistory, shape: str | None) -> Trial | None:
    mine = [t for t in run.trials if t.config.get(SHAPE) == shape and _is_its_way(t.config)]
    return incumbent(mine, run.top_rank)


def _is_its_way(config: Config) -> bool:
    return all(config.get(name, value) == value for name, value in ITS_WAY.items())
