"""What a run would do and cost at most: nothing is built, started, measured or asked."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from evotune.asking import AT_ONCE, name_model, open_prompts
from evotune.budget import Budget
from evotune.errors import UsageError
from evotune.journal import Journal, LlmCall
from evotune.llm import Choice, Context, Retry
from evotune.llm.policy import WRAPPING_TOKENS
from evotune.llm.provider import CHARS_PER_TOKEN
from evotune.process.owner import is_alive, me
from evotune.reading import is_empty, read
from evotune.session import describe, open_warm_start
from evotune.settings import Settings
from evotune.subject import Subject, find_subject
from evotune.transfer import WARM_START
from evotune.trial import Fidelity

# Of one evaluation: one while the last is measured, and one in the model's own turn.
QUESTIONS_PER_EVALUATION = 2
# Each is repeated after an outage, and asked again once if the answer is of no use; see Policy.
CALLS_PER_QUESTION = 2 * Retry().attempts
HINT_TOKENS = 600  # what is told then, a token for each byte


@dataclass(frozen=True)
class Space:
    """What is searched at one shape, None if none was named.

    ``configurations`` counts the legal ones, or all if they are too many.
    """

    shape: str | None
    problem: Mapping[str, Any]
    configurations: float
    is_exact: bool
    parameters: int
    default: Mapping[str, Any]

    @classmethod
    def of(cls, subject: Subject, shape: str | None = None) -> Space:
        """That of a subject."""
        space = subject.space
        exact = space.is_enumerable
        size = space.cardinality if exact else space.cartesian
        return cls(shape, dict(subject.story.problem), size, exact, len(space.parameters), dict(space.default))


@dataclass(frozen=True)
class Asking:
    """Whom the run asks, and what that costs at most: ``usd`` is None if the price is not known.

    ``questions`` are what is wanted to know; ``calls`` count each repetition that an outage or a useless
    answer can cause. Tokens are counted as the limits do: one for each byte of a prompt, and the longest
    answer.
    """

    provider: str
    model: str
    reason: str
    questions: int
    calls: int
    tokens: int
    usd: float | None


@dataclass(frozen=True)
class Resumed:
    """The run of the journal that the command goes on with."""

    run_id: str
    evaluations: int
    stopped: str | None
    device: str
    seconds_per_evaluation: float | None
    """Median time between the ends of two evaluations; None before there are two."""


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    kernel: str
    target: str
    why: str
    devices: int
    search: str
    seed: int
    spaces: Sequence[Space]
    budget: Budget
    evaluations_left: int
    """0 where the run is over, and its result would be shown again."""
    fidelities: Sequence[Mapping[str, Any]]
    finals: Mapping[str, Any]
    llm: Asking
    journal: str
    resumes: Resumed | None
    seconds: float | None
    """For the search: a limit that was given, or the pace of the run that is resumed; None if neither is."""
    seconds_by: str

    def to_json(self) -> dict[str, Any]:
        """The object that ``--dry-run --json`` prints."""
        out = asdict(self)
        if self.budget.max_seconds == math.inf:  # JSON has no infinity
            out["budget"]["max_seconds"] = None
        return {"dry_run": True, **out}


def plan(name: str, settings: Settings, environ: Mapping[str, str], *, fresh: bool = False) -> Plan:
    """What :func:`evotune.session.tune` would do.

    Raises:
        UsageError: As there, but what only compiling or asking would show.
        DeviceError: A target was named whose device is not here.
    """
    subject = find_subject(name, settings)
    bound_ms = subject.roofline.bound_ms if subject.roofline else None
    budget = Budget.of(settings.run, bound_ms, subject.target)
    prompts = open_prompts(settings)
    choice = name_model(settings, environ, subject.space)
    story = subject.story
    prompt = prompts.build(
        Context(
            story.kernel,
            subject.space,
            source=story.source,
            problem=story.problem,
            device=story.device,
            roofline=story.roofline,
            n=settings.llm.configs_per_call,
        )
    )
    wanted = describe(subject.story.problem, subject.target, settings)
    warmed = subject if settings.run.warm_start else None
    known = _find(settings, subject.name, subject.source_hash, wanted, warmed, fresh=fresh)
    prompt_bytes = len((prompt.system + prompt.user).encode())
    return _plan(settings, subject, [Space.of(subject, settings.run.shape)], budget, choice, prompt_bytes, known)


def plan_shapes(
    subjects: Mapping[str, Subject],
    name: str,
    wanted: Mapping[str, Any],
    settings: Settings,
    environ: Mapping[str, str],
    *,
    fresh: bool = False,
) -> Plan:
    """What a run over several shapes would do.

    Args:
        subjects: By shape.
        name: Of the run in the journal.
        wanted: Its description there, less the device and versions.
        settings: Of the run.
        environ: Holds the keys.
        fresh: Do not resume.

    Raises:
        UsageError: As :func:`plan`.
    """
    first = next(iter(subjects.values()))
    choice = name_model(settings, environ)
    budget = Budget.of(settings.run, None, first.target)
    known = _find(settings, name, first.source_hash, wanted, None, fresh=fresh)
    spaces = [Space.of(subject, shape) for shape, subject in subjects.items()]
    return _plan(settings, first, spaces, budget, choice, 0, known)


@dataclass(frozen=True)
class _Known:
    """A run of the journal, and the calls of models that it made."""

    resumed: Resumed
    calls: Sequence[LlmCall]


def _plan(
    settings: Settings,
    subject: Subject,
    spaces: Sequence[Space],
    budget: Budget,
    choice: Choice,
    prompt_bytes: int,
    known: _Known | None,
) -> Plan:
    resumed = known.resumed if known else None
    left = max(0, budget.max_evaluations - (resumed.evaluations if resumed else 0))
    if resumed is not None and resumed.stopped == "exhausted":
        left = 0
    sizes = [space.configurations for space in spaces if space.is_exact]
    if len(sizes) == len(spaces) and settings.run.search != "mfbo":  # which counts each once per fidelity
        left = min(left, int(sum(sizes)))
    seconds, by = _seconds(budget, left, resumed)
    return Plan(
        subject.name,
        subject.target,
        subject.why,
        subject.devices,
        settings.run.search,
        settings.run.seed,
        spaces,
        budget,
        left,
        [_fidelity(f) for f in subject.fidelities],
        {"finalists": settings.measure.finalists, **_fidelity(subject.finals)},
        _asking(settings, choice, left, prompt_bytes, known.calls if known else ()),
        settings.run.journal,
        resumed,
        seconds,
        by,
    )


def _fidelity(fidelity: Fidelity) -> dict[str, Any]:
    limit_s = None if fidelity.limit_s == math.inf else fidelity.limit_s
    return {"name": fidelity.name, "reps": fidelity.reps, "limit_s": limit_s}


def _seconds(budget: Budget, left: int, resumed: Resumed | None) -> tuple[float | None, str]:
    """How long the search takes as far as facts tell, and what tells it."""
    pace_s = resumed.seconds_per_evaluation if resumed else None
    by_pace_s = None if pace_s is None else left * pace_s
    if by_pace_s is not None and by_pace_s <= budget.max_seconds:
        return by_pace_s, f"at {pace_s:.3g} s per evaluation, the pace of the run so far"
    if budget.max_seconds < math.inf:
        return budget.max_seconds, "the limit that was given"
    return None, "not known before something has been measured; --max-seconds limits it"


# -- the model ----------------------------------------------------------------------------------


def _asking(
    settings: Settings, choice: Choice, evaluations: int, prompt_bytes: int, before: Sequence[LlmCall]
) -> Asking:
    """What is asked at most, within the limits and less what the run has spent of them."""
    name, llm = choice.provider.name, settings.llm
    if name == "none":
        return Asking(name, choice.provider.model, choice.reason, 0, 0, 0, 0.0)
    questions = QUESTIONS_PER_EVALUATION * evaluations
    is_online = name not in (*AT_ONCE, "human")
    # One more to find out beforehand whether the key is taken.
    calls = CALLS_PER_QUESTION * questions + 1 if is_online else questions
    if llm.max_calls is not None:
        calls = min(calls, max(0, llm.max_calls - len(before)))
    # Prompts grow with what was tried until they are as long as they may be.
    input_tokens = (
        max(prompt_bytes, CHARS_PER_TOKEN * settings.prompt.budget_tokens) + WRAPPING_TOKENS + HINT_TOKENS
    )
    tokens = calls * (input_tokens + llm.max_output_tokens)
    if llm.max_tokens is not None:
        tokens = min(tokens, max(0, llm.max_tokens - sum(c.spent_tokens or 0 for c in before)))
    usd = None if choice.price is None else calls * choice.price.worst_usd(input_tokens, llm.max_output_tokens)
    if usd is not None and llm.max_usd is not None:
        usd = min(usd, max(0.0, llm.max_usd - sum(c.spent_usd or 0.0 for c in before)))
    return Asking(name, choice.provider.model, choice.reason, min(questions, calls), calls, tokens, usd)


# -- the journal --------------------------------------------------------------------------------


def _find(
    settings: Settings,
    kernel: str,
    source_hash: str,
    wanted: Mapping[str, Any],
    warmed: Subject | None,
    *,
    fresh: bool,
) -> _Known | None:
    """The run that the same command would go on with, if the device and the versions are still the same.

    Args:
        settings: Where the journal is.
        kernel: Name of the run.
        source_hash: Of the kernel.
        wanted: What its description holds beside the device and versions.
        warmed: What is to be warmed by the source that the settings name.
        fresh: Go on with none.

    Raises:
        UsageError: The journal cannot be used, or another process works on that run.
    """
    path = Path(settings.run.journal)
    plain = json.loads(json.dumps(wanted))
    _require_writable(path)
    fitting: list[tuple[str, dict[str, Any]]] = []
    if path.exists() and not is_empty(path):
        fitting = read(path, lambda journal: _fitting(journal, kernel, source_hash, plain))
    if warmed is not None:
        # The run itself is no source: it is told apart by all of its description.
        itself = {k: v for k, v in fitting[0][1].items() if k != WARM_START} if fitting else plain
        warm = open_warm_start(warmed, settings, itself)
        assert warm is not None
        plain[WARM_START] = warm.hash
    same = [run_id for run_id, described in fitting if described.get(WARM_START) == plain.get(WARM_START)]
    return read(path, lambda journal: _known(journal, path, same[0])) if same and not fresh else None


def _fitting(
    journal: Journal, kernel: str, source_hash: str, wanted: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Runs with that in their descriptions, the latest first."""
    query = "SELECT id, description FROM run WHERE kernel=? AND source_hash=? ORDER BY created_s DESC"
    rows = [(run_id, json.loads(text)) for run_id, text in journal.read(query, kernel, source_hash)]
    return [(run_id, found) for run_id, found in rows if all(found.get(k) == v for k, v in wanted.items())]


def _known(journal: Journal, path: Path, run_id: str) -> _Known:
    query = "SELECT owner, stopped, description FROM run WHERE id=?"
    owner, stopped, text = journal.read(query, run_id)[0]
    if owner and owner != me() and is_alive(owner):
        raise UsageError(
            f"run {run_id} in {path} is being worked on by process {owner.split()[1]}; "
            "wait for it, or start another run with --fresh"
        )
    done = "SELECT done_s FROM trial WHERE run=? AND done_order IS NOT NULL ORDER BY done_s"
    ends_s = [end_s for (end_s,) in journal.read(done, run_id)]
    gaps_s = [after - before for before, after in pairwise(ends_s)]
    calls = journal.run(run_id).calls()
    device = str(json.loads(text)["device"])
    return _Known(Resumed(run_id, len(ends_s), stopped, device, median(gaps_s) if gaps_s else None), calls)


def _require_writable(path: Path) -> None:
    """Refuse a journal that could not be made or written."""
    folder = next(p for p in path.absolute().parents if p.exists())
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"{path.name} is read-only")
        with tempfile.TemporaryFile(dir=folder):  # it has no name, and is gone at once
            pass
    except OSError as error:
        raise UsageError(f"journal {path} cannot be used: {error}; give another file with --journal PATH") from None
