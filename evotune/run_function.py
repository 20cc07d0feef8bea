"""What ``evotune run`` does, as a function: ``evotune.run("kernels/matmul.py", max_seconds=60)``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from evotune.errors import UsageError, nearest, spelt_for_python
from evotune.result import Result
from evotune.session import tune
from evotune.settings import OPTIONS, check_together, default_path, load
from evotune.shapes import find_shapes, tune_shapes
from evotune.track import open_tracker
from evotune.trial import Trial
from evotune.tuner import Observer, Tuner

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

log = logging.getLogger(__name__)


class Options(TypedDict, total=False):
    """The options of ``evotune run`` that are settings, by their names; see ``evotune run --help``."""

    target: str
    gpus: int | Literal["all"]
    gpu_model: str
    engine: str
    ray_address: str
    shape: str
    shapes: str
    provider: str
    model: str
    base_url: str
    prompts: str | Path
    on_llm_error: str
    search: str
    max_evaluations: int
    max_seconds: float
    max_usd: float
    target_latency_ms: float
    roofline_share: float
    no_progress: int
    seed: int
    warm_start: str | Path
    isolation: str
    journal: str | Path


@spelt_for_python()
def run(
    kernel: str | Path,
    *,
    observer: Observer | None = None,
    fresh: bool = False,
    track: str | None = None,
    config: str | Path | None = None,
    **options: Unpack[Options],
) -> Result:
    """Tune a kernel, or replay a recording, as ``evotune run`` does; the same call again resumes.

    Nothing is printed. Settings that are not given come from ``EVOTUNE_<SECTION>_<KEY>`` or ``config``, as
    for the command, and the run is in the same journal. Ctrl-C raises ``KeyboardInterrupt``; what was found
    by then is in the journal.

    Args:
        kernel: A kernel file, a recorded space, or the name of a shipped one.
        observer: Hears of every trial and note; without one, notes go to the log ``evotune.run_function``.
        fresh: Start anew instead of resuming.
        track: An experiment tracker: ``mlflow``, ``wandb``, or ``package.module:function``.
        config: A settings file like ``config.yaml``.
        options: As those of the command, with underscores: ``max_seconds=60``.

    Returns:
        What ``--json`` prints, whose ``best`` is None if nothing valid was found; with ``shapes``, a
        :class:`~evotune.shapes.ShapesResult`, whose ``program`` is the rule.

    Raises:
        UsageError: Something that was given cannot be used. It is a ``ValueError``.
        DeviceError: A device is missing or failed.
        Fatal: The model refuses its key, its name, or the request.
    """
    if observer is not None and not callable(getattr(observer, "on_note", None)):
        raise UsageError(f"observer is {observer!r}; give an object with on_trial and on_note")
    given: dict[str, Any] = {**options}
    known = Options.__annotations__
    if strangers := [f"option {name!r} is not known{nearest(name, known)}" for name in given if name not in known]:
        raise UsageError("; ".join(strangers))
    flags = {
        ".".join(OPTIONS[name]): str(value) if isinstance(value, Path) else value for name, value in given.items()
    }
    settings = load(Path(config) if config is not None else default_path(), flags, os.environ)
    check_together(settings, ray_address=given.get("ray_address"), track=track)
    hearing, name = observer or _Log(), str(kernel)
    if settings.run.shapes is not None:
        result: Result = tune_shapes(name, find_shapes(name, settings), settings, observer=hearing, fresh=fresh)
    else:
        tracker = None if track is None else open_tracker(track)
        result = tune(name, settings, observer=hearing, fresh=fresh, tracker=tracker)
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    return result


class _Log:
    def on_trial(self, trial: Trial, tuner: Tuner, *, is_best: bool) -> None:
        pass

    def on_note(self, text: str) -> None:
        log.info(text)
