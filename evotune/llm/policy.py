"""When a model is asked, asked again, left alone for a while, or given up for the run."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from random import Random

import tenacity

from evotune.errors import BadOutput, Fatal, ProviderError, Transient
from evotune.llm.limits import Amount, Budget, Caps
from evotune.llm.prices import Price
from evotune.llm.provider import CapReached, Completion, Provider, Refused, Unusable, Usage
from evotune.llm.secret import NO_SECRET, printable

_log = logging.getLogger(__name__)

# Headers and the wrapping of messages, on top of one token per byte, which no tokenizer exceeds.
WRAPPING_TOKENS = 64


@dataclass(frozen=True)
class Retry:
    """How one question is repeated after an outage.

    A server's own ``Retry-After`` is kept to, unless it is longer than ``longest_wait_s``.
    """

    attempts: int = 5
    deadline_s: float = 120.0
    first_wait_s: float = 1.0
    longest_backoff_s: float = 30.0
    longest_wait_s: float = 60.0


@dataclass(frozen=True)
class Call:
    """One request to a model, for the record: ``usage`` as reported, or the ``error`` that came instead.

    ``spent`` counts against the caps: the worst case where nobody knows what was charged.
    """

    usage: Usage | None
    error: str | None
    spent: Amount


class Breaker:
    """Keeps calls away from a model that does not answer. Thread-safe.

    After ``OUTAGES`` lost questions in a row, or ``BAD_ANSWERS`` useless answers in a row, it is
    open for ``FIRST_REST_S``, twice as long each time up to ``LONGEST_REST_S``. Then one question
    goes through as a probe.
    """

    OUTAGES = 3
    BAD_ANSWERS = 10
    FIRST_REST_S = 60.0
    LONGEST_REST_S = 480.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._outages = 0
        self._bad_answers = 0
        self._rests = 0
        self._open_until_s = -math.inf
        self._is_probing = False
        self.disabled: str | None = None

    @property
    def rest_s(self) -> float:
        """Seconds until the next probe; 0 if questions may pass."""
        return max(0.0, self._open_until_s - self._clock())

    def enter(self) -> bool:
        """Let a question pass; True if it is the probe after a rest, to be tried only once.

        Raises:
            Fatal: The model is given up for this run.
            Transient: The breaker is open.
        """
        with self._lock:
            if self.disabled is not None:
                raise Fatal(self.disabled)
            if self._is_probing or self.rest_s > 0:
                raise Transient("the model does not answer and is left alone for now", self.rest_s)
            self._is_probing = self._rests > 0
            return self._is_probing

    def leave(self) -> None:
        """The question that :meth:`enter` let pass is over, whatever came of it."""
        with self._lock:
            self._is_probing = False

    def good(self) -> None:
        """A usable answer came."""
        with self._lock:
            self._outages = self._bad_answers = self._rests = 0

    def bad_answer(self) -> None:
        """The server answered, to no use."""
        with self._lock:
            self._outages = 0
            self._bad_answers += 1
            # After a rest one more is enough: nothing shows yet that the model has improved.
            if self._rests or self._bad_answers >= self.BAD_ANSWERS:
                self._rest()

    def outage(self) -> None:
        """No answer came, after all attempts."""
        with self._lock:
            self._outages += 1
            if self._rests or self._outages >= self.OUTAGES:
                self._rest()

    def disable(self, reason: str) -> None:
        """Give the model up for the rest of the run."""
        with self._lock:
            self.disabled = self.disabled or reason

    def _rest(self) -> None:
        rest_s = min(self.FIRST_REST_S * 2**self._rests, self.LONGEST_REST_S)
        self._rests += 1
        self._outages = self._bad_answers = 0
        self._open_until_s = self._clock() + rest_s
        _log.warning("the model does not answer usefully; the next try is in %.0f s", rest_s)


class Policy:
    """Asks a provider within the caps; every call to a model goes through here. Thread-safe.

    Args:
        provider: Who is asked.
        price: What it costs; None if unknown, and then ``caps.usd`` cannot be kept.
        caps: The most that a run may spend.
        timeout_s: Longest call, for the reservation of time.
        max_output_tokens: Longest answer, for the reservation of tokens and money.
        check: Why an answer cannot be used, or None if it can; told to the model, once.
        clock, sleep, rng: Injected by tests; ``rng`` spreads the waits.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        price: Price | None = None,
        caps: Caps | None = None,
        timeout_s: float = 60.0,
        max_output_tokens: int = 8192,
        check: Callable[[str], str | None] | None = None,
        retry: Retry | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        rng: Random | None = None,
    ) -> None:
        self.provider = provider
        self._price = price
        self._budget = Budget(caps or Caps())
        self._timeout_s = timeout_s
        self._max_output_tokens = max_output_tokens
        self._check = check
        self._retry = retry or Retry()
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or Random()
        self._breaker = Breaker(clock)
        self._lock = threading.Lock()
        self._numbers = count()
        self._under_way: dict[int, Amount] = {}
        self._calls: list[Call] = []

    def calls(self) -> list[Call]:
        """Requests that have ended since this was asked last."""
        with self._lock:
            ended, self._calls = self._calls, []
        return ended

    def abandon(self) -> list[Call]:
        """:meth:`calls`, and those under way, whose answers nobody will wait for."""
        with self._lock:
            self._calls += [Call(None, "the run ended first", worst) for worst in self._under_way.values()]
            self._under_way.clear()
        return self.calls()

    @property
    def state(self) -> str:
        """``ok``, ``open for 42 s`` or ``disabled: <reason>``, for display."""
        if self._breaker.disabled is not None:
            return f"disabled: {self._breaker.disabled}"
        rest_s = self._breaker.rest_s
        return f"open for {rest_s:.0f} s" if rest_s > 0 else "ok"

    def ask(self, system: str, user: str, *, n: int = 8) -> Completion:
        """An answer, after as many attempts as the policy allows.

        Raises:
            ProviderError: There is none; ``Fatal`` if there will be none in this run.
        """
        is_probe = self._breaker.enter()
        try:
            reply = self._answer(system, user, n, 0.0 if is_probe else self._retry.deadline_s)
        except CapReached as reached:
            if reached.is_final:
                self._breaker.disable(str(reached))
            raise
        except Fatal as fatal:
            self._breaker.disable(str(fatal))
            raise
        except Transient:
            self._breaker.outage()
            raise
        finally:
            self._breaker.leave()
        self._breaker.good()
        return reply

    def preflight(self) -> None:
        """A tiny call that finds a wrong key, model or request before any work.

        An outage is not an error here: it may be over when the model is needed.

        Raises:
            Fatal: The call can never succeed; the message names what to set.
        """
        system = 'Answer with exactly this JSON and nothing else: {"configs": []}'
        try:
            self._retrying(deadline_s=0.0)(self._attempt, system, "Are you there?", 1, None)
        except BadOutput:
            pass  # whoever answers at all has a key and a model
        except Transient as outage:
            _log.warning("the model does not answer yet: %s", outage)
        except Fatal as fatal:
            self._breaker.disable(str(fatal))
            raise

    def _answer(self, system: str, user: str, n: int, deadline_s: float) -> Completion:
        try:
            return self._retrying(deadline_s)(self._attempt, system, user, n, self._check)
        except BadOutput as bad:
            self._breaker.bad_answer()
            is_truncated = isinstance(bad, Unusable) and bad.is_truncated
            shorter = f" Give at most {max(1, n // 2)} configurations and no other text." if is_truncated else ""
            reason = printable(str(bad))
        hint = f"\n\nYour last answer could not be used: {reason}. Keep to the output format.{shorter}\n"
        try:
            return self._retrying(deadline_s)(self._attempt, system, user + hint, n, self._check)
        except BadOutput:
            self._breaker.bad_answer()
            raise

    def _attempt(self, system: str, user: str, n: int, check: Callable[[str], str | None] | None) -> Completion:
        worst = self._worst_case(system + user)
        self._budget.reserve(worst)
        start_s = self._clock()
        # A call that ends without a word of its cost, such as one that timed out, may have been charged.
        actual, usage, problem = worst, None, None
        with self._lock:
            number = next(self._numbers)
            self._under_way[number] = worst
        try:
            reply = self._provider_call(system, user, n)
            usage = self._priced(reply.usage)
            actual = _amount(usage)
            if check is not None and (reason := check(reply.text)):
                raise BadOutput(reason)
            return Completion(reply.text, usage)
        except ProviderError as error:
            problem = f"{type(error).__name__}: {error}"
            if isinstance(error, Unusable):
                usage = self._priced(error.usage)
                actual = _amount(usage)
            elif isinstance(error, (Fatal, Refused)):
                actual = Amount(calls=1)
            raise
        finally:
            spent = replace(actual, seconds=self._clock() - start_s)
            self._budget.settle(worst, spent)
            with self._lock:
                if self._under_way.pop(number, None) is not None:  # else it was abandoned, and is on record
                    self._calls.append(Call(usage, problem, spent))

    def _provider_call(self, system: str, user: str, n: int) -> Completion:
        try:
            return self.provider.complete(system, user, n=n)
        except ProviderError:
            raise
        except Exception as error:  # providers come from third parties too, and must not end a run
            text = printable(NO_SECRET.redact(f"{type(error).__name__}: {error}"))
            failure = Fatal(f"provider {self.provider.name} is broken: {text}")
        raise failure

    def _worst_case(self, prompt: str) -> Amount:
        input_tokens = len(prompt.encode("utf-8", "replace")) + WRAPPING_TOKENS
        usd = self._price.worst_usd(input_tokens, self._max_output_tokens) if self._price else 0.0
        return Amount(1, input_tokens + self._max_output_tokens, self._timeout_s, usd)

    def _priced(self, usage: Usage) -> Usage:
        if usage.usd is not None or self._price is None:
            return usage
        return replace(usage, usd=self._price.usd(usage))

    def _retrying(self, deadline_s: float) -> tenacity.Retrying:
        start_s = self._clock()

        def is_enough(state: tenacity.RetryCallState) -> bool:
            wait_s = state.upcoming_sleep
            is_late = wait_s > 0 and self._clock() - start_s + wait_s > deadline_s
            return is_late or state.attempt_number >= self._retry.attempts or wait_s > self._retry.longest_wait_s

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Transient),
            wait=self._wait_s,
            stop=is_enough,
            sleep=self._sleep,
            reraise=True,
        )

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Transient) and error.retry_after_s is not None:
            # A tenth more, spread, so that clients that were sent away together do not return together.
            return error.retry_after_s * self._rng.uniform(1.0, 1.1)
        ceiling_s = self._retry.first_wait_s * 2 ** (state.attempt_number - 1)
        return self._rng.uniform(0.0, min(ceiling_s, self._retry.longest_backoff_s))


def _amount(usage: Usage) -> Amount:
    """What an answered call counts against the caps."""
    return Amount(calls=1, tokens=usage.input_tokens + usage.output_tokens, usd=usage.usd or 0.0)
