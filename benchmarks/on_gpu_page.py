"""What `on_gpu.py` found, as a page of Markdown; of a dry run it says so in its first line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

# What the pull requests that evotune grew from expected, unmeasured: default → tuned, on a B200.
EXPECTED = {"vector_add": "450–500 → 550–600 GB/s", "attention": "40–50 → 60–80 TFLOP/s"}


def page(state: Mapping[str, Any]) -> str:
    """All steps, those that are done with their figures."""
    parts = (_head, _doctor, _gains, _study, _peers, _recordings, _steps)
    return "\n".join(line for part in parts for line in part(state))


def _results(state: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, step in state["steps"].items():
        if name.startswith(prefix) and step["status"] == "done":
            yield name.removeprefix(prefix), step["result"]


def _head(state: Mapping[str, Any]) -> Iterator[str]:
    yield "# On a GPU"
    yield ""
    if state["dry_run"]:
        yield "**A dry run on a CPU, at small sizes, to walk the steps. No figure here is a GPU's.**"
        yield ""
    yield f"    python benchmarks/on_gpu.py --out FOLDER{' --dry-run' if state['dry_run'] else ''}"
    yield ""
    yield f"Begun {state['begun']}."
    for _, found in _results(state, "study_finals"):
        versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
        yield f"Device: {found['device']}; {versions}."
    yield ""


def _doctor(state: Mapping[str, Any]) -> Iterator[str]:
    for _, found in _results(state, "doctor"):
        doubts = [c for c in found["checks"] if c["status"] != "ok"]
        if not doubts:
            yield "`evotune doctor` finds nothing wrong."
            yield ""
        for check in doubts:
            yield f"- {check['status']}: {check['name']}: {check['found']}"
        yield ""


def _gains(state: Mapping[str, Any]) -> Iterator[str]:
    rows = list(_results(state, "gain/"))
    if not rows:
        return
    yield "## Default → tuned"
    yield ""
    yield "What the pull requests expected, unmeasured, was for a B200."
    yield "Both re-timed in alternating rounds. GB/s and TFLOP/s count what the problem needs."
    yield ""
    yield "| kernel | default, ms | tuned, ms | speed-up [95 %] | GB/s | TFLOP/s | expected | samples |"
    yield "|---|--:|--:|---|---|---|---|--:|"
    for kernel, found in rows:
        default, best = (found["retimed"]["rows"][n] for n in ("default", "best"))
        if "failed" in default or "failed" in best:
            yield f"| {kernel} | {default.get('failed', 'ok')} | {best.get('failed', 'ok')} | | | | | |"
            continue
        rates = [
            " → ".join(f"{found[what] / row['latency_ms'] / scale:.3g}" for row in (default, best))
            for what, scale in (("bytes", 1e6), ("flops", 1e9))
        ]
        low, high = best["speedup_ci95"]
        yield (
            f"| {kernel} | {default['latency_ms']:.4g} | {best['latency_ms']:.4g} | {best['speedup']:.3f} "
            f"[{low:.3f}, {high:.3f}] | {rates[0]} | {rates[1]} | {EXPECTED.get(kernel, '')} | {best['samples']} |"
        )
    yield ""


def _study(state: Mapping[str, Any]) -> Iterator[str]:
    arms = dict(_results(state, "study/"))
    if not arms:
        return
    retimed = next((found["rows"] for _, found in _results(state, "study_finals")), {})
    yield "## The original study: matmul 1024³"
    yield ""
    yield "Wall time of each search from nothing to its end, finals included; winners re-timed together."
    yield ""
    yield "| search | seeds | evaluations | wall, s | found, ms (re-timed) | worst seed, ms | default / found |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for search in dict.fromkeys(name.partition("/")[0] for name in arms):
        mine = {n: a for n, a in arms.items() if n.partition("/")[0] == search}
        rows = [retimed.get(f"study/{n}", {}) for n in mine]
        found = [r["latency_ms"] for r in rows if "latency_ms" in r]
        ratios = [r["speedup"] for r in rows if "speedup" in r]
        yield (
            f"| {search} | {len(mine)} | {median(a['evaluations'] for a in mine.values()):.0f} "
            f"| {median(a['seconds'] for a in mine.values()):.1f} "
            f"| {f'{median(found):.4g}' if found else ''} | {f'{max(found):.4g}' if found else ''} "
            f"| {f'{median(ratios):.3f}' if ratios else ''} |"
        )
    yield ""


def _peers(state: Mapping[str, Any]) -> Iterator[str]:
    rows = list(_results(state, "peers/"))
    if not rows:
        return
    yield "## Beside PyTorch, and beside timing many configurations"
    yield ""
    yield "The n are compiled and timed one after the other, by `do_bench`, as `triton.autotune` does."
    yield ""
    yield "| kernel | tuned, ms | PyTorch, ms | PyTorch / tuned | best of n, ms | n (failed) | their wall, s |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for kernel, found in rows:
        if "skipped" in found:
            yield f"| {kernel} | {found['skipped']} | {found['torch_ms']:.4g} | | | | |"
            continue
        ratio = median(t / o for o, t in zip(found["tuned_ms"], found["torch_ms"], strict=True))
        every = found["exhaustive"]
        yield (
            f"| {kernel} | {median(found['tuned_ms']):.4g} | {median(found['torch_ms']):.4g} | {ratio:.3f} "
            f"| {every['best_ms']:.4g} | {every['configs']} ({every['failed']}) | {every['seconds']:.0f} |"
        )
        if found["differs"]:
            yield f"| | PyTorch's result differs: {found['differs']} | | | | | |"
    yield ""


def _recordings(state: Mapping[str, Any]) -> Iterator[str]:
    rows = list(_results(state, "record/"))
    if not rows:
        return
    yield "## Recordings"
    yield ""
    yield "| kernel | configurations | measured | best, ms | worst, ms |"
    yield "|---|--:|--:|--:|--:|"
    for kernel, found in rows:
        figures = f"{found['optimum_ms']:.4g} | {found['worst_ms']:.4g}"
        yield f"| {kernel} | {found['n']} | {found['n_valid']} | {figures} |"
    yield ""


def _steps(state: Mapping[str, Any]) -> Iterator[str]:
    yield "## Steps"
    yield ""
    yield "| step | came to | seconds | why |"
    yield "|---|---|--:|---|"
    for name, step in state["steps"].items():
        why = str(step.get("reason", "")).replace("|", "/").replace("\n", " ")
        yield f"| {name} | {step['status']} | {step['seconds']} | {why} |"
    yield ""
