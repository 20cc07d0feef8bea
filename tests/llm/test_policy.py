"""When a model is asked again, left alone, or given up; and that no limit is ever exceeded."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from evotune.errors import BadOutput, Fatal, ProviderError, Transient, UsageError
from evotune.llm import CapReached, Caps, Completion, Policy, Price, Refused, Retry, Unusable, Usage

from .conftest import make_provider
from .fake_server import FAULTS, FakeServer

PRICE = Price(input=1.0, cached=0.1, output=10.0)
Act = Completion | ProviderError


class Clock:
    """Time that passes only when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


class Script:
    """A provider that does what it is told, call by call; the last thing for ever."""

    name = "script"
    model = "script"

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.asked: list[str] = []

    def complete(self, system: str, user: str, *, n: int) -> Completion:
        self.asked.append(user)
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        if isinstance(act, ProviderError):
            raise act
        return act


GOOD = Completion("{}", Usage(100, 20))
OUTAGE = Transient("lost")
BUSY = Refused("busy")


def make(provider: object, clock: Clock, **more: object) -> Policy:
    return Policy(provider, clock=clock, sleep=clock.sleep, rng=Random(0), **more)  # type: ignore[arg-type]


def outcomes(policy: Policy, n: int) -> list[type]:
    found: list[type] = []
    for _ in range(n):
        try:
            policy.ask("s", "u")
            found.append(Completion)
        except ProviderError as error:
            found.append(type(error))
    return found


def test_an_outage_is_retried_with_growing_spread_waits() -> None:
    clock, provider = Clock(), Script(OUTAGE, OUTAGE, OUTAGE, OUTAGE, GOOD)
    assert make(provider, clock).ask("s", "u").text == "{}"
    assert len(clock.slept_s) == 4
    assert all(0 <= wait_s <= ceiling_s for wait_s, ceiling_s in zip(clock.slept_s, (1, 2, 4, 8), strict=True))
    other = Clock()
    Policy(Script(OUTAGE, GOOD), clock=other, sleep=other.sleep, rng=Random(1)).ask("s", "u")
    assert other.slept_s[0] != clock.slept_s[0]


def test_attempts_and_time_are_limited() -> None:
    clock, provider = Clock(), Script(OUTAGE)
    with pytest.raises(Transient):
        make(provider, clock).ask("s", "u")
    assert len(provider.asked) == 5
    clock, provider = Clock(), Script(Refused("busy", 50.0))
    with pytest.raises(Transient):
        make(provider, clock).ask("s", "u")
    assert len(provider.asked) == 3
    assert clock.now_s <= 120


def test_retry_after_is_honoured_but_not_beyond_the_cap() -> None:
    clock = Clock()
    make(Script(Refused("busy", 7.0), GOOD), clock).ask("s", "u")
    assert 7.0 <= clock.slept_s[0] <= 7.7
    clock, provider = Clock(), Script(Refused("busy", 90.0), GOOD)
    with pytest.raises(Refused):
        make(provider, clock).ask("s", "u")
    assert clock.slept_s == []
    assert len(provider.asked) == 1


@pytest.mark.parametrize("name", ["400", "401", "403", "404", "quota"])
def test_a_fatal_answer_is_not_retried_and_disables_the_model(name: str, kind: str, server: FakeServer) -> None:
    server.otherwise = FAULTS[name]
    clock = Clock()
    policy = make(make_provider(kind, server.url), clock)
    assert outcomes(policy, 3) == [Fatal, Fatal, Fatal]
    assert len(server.requests) == 1
    assert policy.state.startswith("disabled: ")
    assert clock.slept_s == []


@pytest.mark.parametrize("name", ["500", "529", "429", "reset", "truncated JSON", "HTML 200"])
def test_a_server_that_recovers_is_asked_again(name: str, kind: str, server: FakeServer) -> None:
    server.script = [FAULTS[name], FAULTS[name]]
    policy = make(make_provider(kind, server.url), Clock())
    assert outcomes(policy, 1) == [Completion]
    assert len(server.requests) == 3
    assert policy.state == "ok"


def test_three_outages_open_the_breaker_for_ever_longer_rests() -> None:
    clock, provider = Clock(), Script(OUTAGE)
    policy = make(provider, clock)
    outcomes(policy, 3)
    asked = len(provider.asked)
    rests: list[float] = []
    for _ in range(5):
        assert outcomes(policy, 2) == [Transient, Transient]
        assert len(provider.asked) == asked, "asked while open"
        assert policy.state.startswith("open for ")
        rest_s = policy._breaker.rest_s  # pyright: ignore[reportPrivateUsage]
        rests.append(rest_s)
        clock.now_s += rest_s
        assert outcomes(policy, 1) == [Transient]
        asked += 1
        assert len(provider.asked) == asked, "a probe is one attempt"
    assert rests == pytest.approx([60, 120, 240, 480, 480])


def test_a_probe_that_succeeds_closes_the_breaker() -> None:
    clock, provider = Clock(), Script(OUTAGE)
    policy = make(provider, clock)
    outcomes(policy, 3)
    clock.now_s += 60
    provider.acts = [GOOD, OUTAGE]
    assert outcomes(policy, 1) == [Completion]
    assert outcomes(policy, 2) == [Transient, Transient]
    assert policy.state == "ok", "two outages after a good answer do not open it"


def test_only_one_thread_probes() -> None:
    clock, provider = Clock(), Script(OUTAGE)
    policy = make(provider, clock)
    outcomes(policy, 3)
    clock.now_s += 60
    inside, release = threading.Event(), threading.Event()
    calls: list[int] = []

    def slow(system: str, user: str, *, n: int) -> Completion:
        calls.append(n)
        inside.set()
        assert release.wait(10)
        return GOOD

    provider.complete = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(policy.ask, "s", "u")
        assert inside.wait(10)
        assert outcomes(policy, 2) == [Transient, Transient]
        release.set()
        assert probe.result().text == "{}"
    assert len(calls) == 1


def test_a_bad_answer_is_asked_for_once_more_with_the_reason() -> None:
    provider = Script(Unusable("the model refused to answer", Usage(10, 5)), GOOD)
    policy = make(provider, Clock())
    assert outcomes(policy, 1) == [Completion]
    assert provider.asked[0] == "u"
    assert "the model refused to answer" in provider.asked[1]
    assert [c.usage and c.usage.input_tokens for c in policy.calls()] == [10, 100]


def test_a_truncated_answer_is_asked_for_again_but_shorter() -> None:
    provider = Script(Unusable("cut off", Usage(10, 5), is_truncated=True), GOOD)
    make(provider, Clock()).ask("s", "u", n=8)
    assert "at most 4 configurations" in provider.asked[1]


def test_a_useless_answer_is_found_by_the_check() -> None:
    provider = Script(GOOD)
    policy = make(provider, Clock(), check=lambda text: f"{text} holds no configuration")
    assert outcomes(policy, 1) == [BadOutput]
    assert len(provider.asked) == 2
    assert "holds no configuration" in provider.asked[1]
    assert [c.spent.tokens for c in policy.calls()] == [120, 120], "bad answers cost as much as good ones"


def test_ten_useless_answers_open_the_breaker() -> None:
    provider = Script(Unusable("empty", Usage(1, 1)))
    policy = make(provider, Clock())
    assert outcomes(policy, 7) == [Unusable] * 5 + [Transient] * 2
    assert len(provider.asked) == 10


def test_a_provider_that_breaks_is_given_up_without_ending_the_run() -> None:
    class Broken(Script):
        def complete(self, system: str, user: str, *, n: int) -> Completion:
            raise KeyError("sk-abcdefghijklmnop")

    policy = make(Broken(GOOD), Clock())
    assert outcomes(policy, 2) == [Fatal, Fatal]
    assert "KeyError" in policy.state
    assert "abcdefgh" not in policy.state


@pytest.mark.parametrize(
    ("caps", "answered"),
    [
        (Caps(calls=3), 3),
        # A call is 120 tokens, and 66 + 500 are set aside for the next: 4 fit, 480 + 566 do not.
        (Caps(tokens=1000), 4),
        # A call costs 300 µUSD and up to 5066 are set aside.
        (Caps(usd=0.006), 4),
        (Caps(seconds=200.0), 3),
    ],
    ids=["calls", "tokens", "usd", "seconds"],
)
def test_a_cap_ends_the_calls_before_it_is_exceeded(caps: Caps, answered: int) -> None:
    clock = Clock()

    class Slow(Script):
        def complete(self, system: str, user: str, *, n: int) -> Completion:
            clock.now_s += 50.0
            return super().complete(system, user, n=n)

    policy = make(Slow(GOOD), clock, caps=caps, price=PRICE, max_output_tokens=500, timeout_s=60.0)
    assert outcomes(policy, answered + 2) == [Completion] * answered + [CapReached, Fatal]
    assert policy.state.startswith("disabled: the limit of ")
    assert len(policy.calls()) == answered


@pytest.mark.parametrize("fault", [*FAULTS, "mixed"])
def test_no_cap_is_exceeded_whatever_the_server_does(fault: str, server: FakeServer) -> None:
    """Counted by the server, and priced by hand: 100 tokens in of which 10 cached, 20 out."""
    if fault == "mixed":
        server.script = [f for name, f in FAULTS.items() if name != "hang"]
    else:
        server.otherwise = FAULTS[fault]
    clock = Clock()
    policy = make(
        make_provider("openai", server.url, timeout_s=0.1),
        clock,
        caps=Caps(calls=4, tokens=3000, usd=0.02),
        price=PRICE,
        max_output_tokens=500,
        timeout_s=0.1,
    )
    for _ in range(4):
        outcomes(policy, 1)
        clock.now_s += 1000
    assert len(server.requests) <= 4
    assert 120 * len(server.requests) <= 3000
    assert len(server.requests) * (90 * 1.0 + 10 * 0.1 + 20 * 10.0) / 1e6 <= 0.02
    assert sum(c.spent.calls for c in policy.calls()) == len(server.requests)


def test_caps_hold_for_many_threads_at_once() -> None:
    lock, active, most, calls = threading.Lock(), 0, 0, 0

    class Slow(Script):
        def complete(self, system: str, user: str, *, n: int) -> Completion:
            nonlocal active, most, calls
            with lock:
                calls += 1
                active += 1
                most = max(most, active)
            time.sleep(0.02)
            with lock:
                active -= 1
            return GOOD

    # Two reservations of 5066 µUSD fit at once, a third does not.
    policy = make(Slow(GOOD), Clock(), caps=Caps(usd=0.011), price=PRICE, max_output_tokens=500)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: outcomes(policy, 1)[0], range(16)))
    assert most <= 2
    assert found.count(Completion) == calls >= 2
    assert found.count(CapReached) == 16 - calls
    assert sum(c.spent.usd for c in policy.calls()) == pytest.approx(calls * 300e-6)
    assert policy.state == "ok", "money that was only set aside does not disable the model"


@pytest.mark.parametrize(("act", "kept"), [(OUTAGE, True), (BUSY, False)])
def test_a_lost_call_keeps_its_reservation_and_a_refused_one_does_not(act: ProviderError, kept: bool) -> None:
    policy = make(Script(act), Clock(), price=PRICE, max_output_tokens=500, retry=Retry(attempts=1))
    outcomes(policy, 1)
    (call,) = policy.calls()
    assert call.spent.calls == 1
    assert (call.spent.tokens > 500) == kept
    assert (call.spent.usd > 0) == kept
    assert call.usage is None, "what a server did not report is not shown as used"


def test_usage_is_priced_with_its_cached_part() -> None:
    policy = make(Script(Completion("x", Usage(100, 20, 10))), Clock(), price=PRICE)
    assert policy.ask("s", "u").usage.usd == pytest.approx((90 + 1 + 200) / 1e6)
    assert make(Script(GOOD), Clock()).ask("s", "u").usage.usd is None, "an unknown price is never guessed"


def test_a_cap_that_allows_nothing_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="calls"):
        Caps(calls=0)


@pytest.mark.parametrize("name", ["400", "401", "403", "404"])
def test_preflight_finds_what_can_never_work(name: str, kind: str, server: FakeServer) -> None:
    server.otherwise = FAULTS[name]
    policy = make(make_provider(kind, server.url), Clock())
    with pytest.raises(Fatal, match=f"{kind.upper()}_API_KEY|--model"):
        policy.preflight()
    assert outcomes(policy, 1) == [Fatal], "a run that goes on all the same does not ask again"
    assert len(server.requests) == 1


@pytest.mark.parametrize("names", [["500"], ["length stop"], ["refusal"], ["hang"], []])
def test_preflight_passes_an_outage_and_any_answer(names: Sequence[str], kind: str, server: FakeServer) -> None:
    server.script = [FAULTS[n] for n in names]
    clock = Clock()
    policy = make(make_provider(kind, server.url), clock)
    policy.preflight()
    assert len(server.requests) == 1
    assert clock.slept_s == []
    assert len(policy.calls()) == 1


def test_preflight_drops_what_the_server_refuses(server: FakeServer) -> None:
    from .test_protocol import refusing

    server.refuse = refusing("temperature", "max_tokens")
    policy = make(make_provider("openai", server.url), Clock())
    policy.preflight()
    before = len(server.requests)
    policy.ask("s", "u")
    assert (before, len(server.requests)) == (3, 4)
