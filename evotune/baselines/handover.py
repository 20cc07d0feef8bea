"""Searches that own their loop, behind ``ask`` and ``tell``.

Other packages' searches are functions that call a measurement and return at the end. Such a function
runs in a thread of its own; the measurement hands over what it is asked for and waits for the answers.
Only one of the two threads runs at a time, so a run is a function of its seed.
"""

from __future__ import annotations

import queue
import random
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from random import Random

import numpy as np

from evotune.baselines.base import Baseline, Key, Move
from evotune.proposers.base import Feedback
from evotune.space import ConfigSpace


class Closed(BaseException):
    """Unwinds a search that is not wanted any more; no ``except Exception`` of its own holds it up."""


class Handover(Baseline):
    """A search that calls :meth:`_evaluate` from :meth:`_search`.

    A configuration that it repeats is answered with what is known already. While answers are awaited,
    further slots are given random configurations. Close it, or its thread waits for ever.
    """

    def __init__(self, space: ConfigSpace, seed: int) -> None:
        super().__init__(space, seed)
        self._known: dict[Key, float | None] = {}
        self._awaited: Sequence[Key] = ()
        self._unasked: deque[Key] = deque()
        self._requests: queue.SimpleQueue[Sequence[Key] | BaseException | None] = queue.SimpleQueue()
        self._go_on: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._generators = Random(seed).getstate(), np.random.RandomState(seed).get_state()

    @abstractmethod
    def _search(self) -> None:
        """The search, to its end. Runs in its own thread."""

    def _evaluate(self, keys: Sequence[Key]) -> list[float | None]:
        """Losses of legal configurations, None for a failure; called from :meth:`_search`."""
        self._requests.put(keys)
        if not self._go_on.get():
            raise Closed
        return [self._known[key] for key in keys]

    def close(self) -> None:
        """End the search; safe to call twice."""
        self._ended = True
        if self._thread is not None and self._thread.is_alive():
            with self._its_generators():
                self._go_on.put(False)
                self._thread.join()

    def _propose(self, rng: Random, in_flight: int) -> Move | None:
        while not self._ended:
            while self._unasked:
                key = self._unasked.popleft()
                if key not in self._seen:
                    return key, "mutation", None
            if any(key not in self._known for key in self._awaited):
                return None
            self._resume()
        return None

    def _learn(self, key: Key, item: Feedback) -> None:
        self._known[key] = item.loss

    def _resume(self) -> None:
        """Let the search run to its next request."""
        with self._its_generators():
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
                self._thread.start()
            else:
                self._go_on.put(True)
            request = self._requests.get()
        if isinstance(request, BaseException):
            self._ended = True
            raise request
        if request is None:
            self._ended = True
        else:
            self._awaited, self._unasked = request, deque(request)

    def _run(self) -> None:
        try:
            self._search()
            self._requests.put(None)
        except Closed:
            pass
        except BaseException as error:  # whatever it is, the caller's thread must hear of it
            self._requests.put(error)

    @contextmanager
    def _its_generators(self) -> Generator[None, None, None]:
        """The global generators as the search left them, which draws from them; then the caller's."""
        callers = random.getstate(), np.random.get_state()
        random.setstate(self._generators[0])
        np.random.set_state(self._generators[1])
        try:
            yield
        finally:
            self._generators = random.getstate(), np.random.get_state()
            random.setstate(callers[0])
            np.random.set_state(callers[1])
