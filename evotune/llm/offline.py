"""Providers without a server: nobody, recorded answers, and a person."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evotune.errors import Fatal, Transient, UsageError
from evotune.llm.provider import Completion, Provider, Unusable, Usage, estimate_tokens

POLL_S = 0.5


def prompt_hash(system: str, user: str) -> str:
    """A name for a prompt, 16 hex digits."""
    return hashlib.sha256(f"{system}\0{user}".encode("utf-8", "replace")).hexdigest()[:16]


class NoProvider:
    """Nobody is asked; the search goes on without a model."""

    name = "none"
    model = "none"

    def __init__(self, reason: str = "the provider is none") -> None:
        self.reason = reason

    def complete(self, system: str, user: str, *, n: int) -> Completion:
        raise Fatal(f"no model is asked: {self.reason}")


@dataclass(frozen=True)
class Recorded:
    """One line of a recording: the prompt's hash, the answer, and what it took then."""

    prompt: str
    text: str
    input_tokens: int = 0
    output_tokens: int = 0


class ReplayProvider:
    """Answers from a JSON-lines file that :class:`Recorder` wrote; costs nothing.

    A prompt that was recorded gets its own answers in their order. Timings differ between runs, and
    so do prompts: any other prompt gets the next answer that nobody has had.

    Raises:
        UsageError: The file cannot be read; the message names the line.
    """

    name = "replay"

    def __init__(self, path: Path) -> None:
        self.model = path.name
        self._lines = _read_recording(path)
        self._by_prompt: defaultdict[str, list[int]] = defaultdict(list)
        for i, line in enumerate(self._lines):
            self._by_prompt[line.prompt].append(i)
        self._used: set[int] = set()
        self._lock = threading.Lock()

    def complete(self, system: str, user: str, *, n: int) -> Completion:
        with self._lock:
            own = self._by_prompt.get(prompt_hash(system, user), [])
            free = (i for i in (*own, *range(len(self._lines))) if i not in self._used)
            i = next(free, None)
            if i is None:
                raise Fatal(f"all {len(self._lines)} answers of {self.model} are used; record more of them")
            self._used.add(i)
        line = self._lines[i]
        return Completion(line.text, Usage(line.input_tokens, line.output_tokens, usd=0.0))


class Recorder:
    """Passes calls on to another provider and appends its answers to a file for ``replay``."""

    def __init__(self, provider: Provider, path: Path) -> None:
        self.name = provider.name
        self.model = provider.model
        self._provider = provider
        self._path = path
        self._lock = threading.Lock()

    def complete(self, system: str, user: str, *, n: int) -> Completion:
        reply = self._provider.complete(system, user, n=n)
        line = {
            "prompt": prompt_hash(system, user),
            "text": reply.text,
            "input_tokens": reply.usage.input_tokens,
            "output_tokens": reply.usage.output_tokens,
        }
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return reply


class HumanProvider:
    """Writes ``<hash>.prompt.md`` to a folder and waits for ``<hash>.answer.md`` beside it.

    Whoever or whatever answers, the same prompt is asked once: an answer that is there already is
    read at once, also by a later run.

    Args:
        folder: Made if it is missing.
        timeout_s: After this the question counts as lost; a later answer still serves a repetition.
        sleep, clock: Injected by tests.
    """

    name = "human"
    model = "human"

    def __init__(
        self,
        folder: Path,
        *,
        timeout_s: float = 3600.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._clock = clock

    def complete(self, system: str, user: str, *, n: int) -> Completion:
        start_s = self._clock()
        name = prompt_hash(system, user)
        question, answer = self._folder / f"{name}.prompt.md", self._folder / f"{name}.answer.md"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            question.write_text(
                f"{system}\n\n{user}\n\nAnswer in {answer.name}, in this folder.\n", encoding="utf-8"
            )
        except OSError as error:
            raise Fatal(f"cannot write the prompt to {question}: {error.strerror}") from None
        seen = ""
        while True:
            text = answer.read_text(encoding="utf-8", errors="replace") if answer.is_file() else ""
            # Twice the same, because an editor may be writing it just now.
            if text and text == seen:
                break
            if self._clock() - start_s > self._timeout_s:
                raise Transient(f"no answer in {answer} after {self._timeout_s:.0f} s")
            seen = text
            self._sleep(POLL_S)
        tokens = (estimate_tokens(system + user), estimate_tokens(text))
        usage = Usage(*tokens, seconds=self._clock() - start_s, usd=0.0)
        if not text.strip():
            raise Unusable("the answer is empty", usage)
        return Completion(text, usage)


def _read_recording(path: Path) -> list[Recorded]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recorded answers in {path}: {error}") from None
    lines: list[Recorded] = []
    for number, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        try:
            fields: dict[str, Any] = json.loads(row)
            lines.append(Recorded(**fields))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path}, line {number}: {error}; wanted an object with prompt and text") from None
    if not lines:
        raise UsageError(f"{path} holds no answers; give a file that was recorded")
    return lines
