"""Runs as they come out of a journal, made up: what is computed of them needs no file."""

from evotune.history import RunHistory, RunSummary
from evotune.trial import SECONDS, Candidate, Fidelity, Measurement, Static, Trial

LOW, MEDIUM = Fidelity(1, "low", 5), Fidelity(2, "medium", 15)
HIGH, ULTRA = Fidelity(3, "high", 50), Fidelity(4, "ultra", 500)
CREATED_S = 1_000_000.0
DESCRIPTION = {
    "target": "cpu",
    "device": "a device",
    "versions": {},
    "search": "evotune",
    "seed": 0,
    "settings": {},
}


def timed(fidelity, ms, provenance="measured", took_s=0.1):
    """A timing in a climb; in finals it is not known how long it took."""
    context = {} if took_s is None else {SECONDS: took_s}
    return Measurement(fidelity, provenance, (ms,) * 5, context=context)


def failed(fidelity, stage, reason, provenance="measured"):
    return Measurement(fidelity, provenance, failed_stage=stage, reason=reason, context={SECONDS: 0.1})


def trial(number, config, *measurements, origin="random", parent=None, rank=None):
    return Trial(number, Candidate(config, "", origin, parent, rank), measurements, Static(0.5))


def history_of(*trials, description=None, state="cut off", result=None, kernel="toy", **rest):
    """A run with these trials, which ended one second after the other."""
    described = {**DESCRIPTION, **(description or {})}
    known = {
        "done_s": {t.number: CREATED_S + i + 1 for i, t in enumerate(trials)},
        "attempts": {t.number: (CREATED_S + i,) for i, t in enumerate(trials)},
        "in_flight": (),
        "rejections": (),
        "llm_calls": (),
        "notes": (),
        "top_rank": 3,
        "offers": (),
        **rest,
    }
    summary = RunSummary(
        run_id="r-12345678",
        kernel=kernel,
        target=described["target"],
        device=described["device"],
        created_s=CREATED_S,
        last_s=CREATED_S + len(trials),
        stopped=None,
        state=state,
        is_running=state == "running",
        evaluations=len(trials),
        best_ms=None,
        speedup=None,
    )
    return RunHistory(summary, described, "cafe", result, tuple(trials), **known)
