"""What the SDKs' errors mean, and which parameters a server will not take.

Both SDKs are generated from the same pattern, so their exceptions are told apart by status code and
class name, without importing either.
"""

from __future__ import annotations

import email.utils
import logging
import re
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evotune.errors import Fatal, ProviderError, Transient
from evotune.llm.provider import Completion, Refused, Unusable, Usage, estimate_tokens
from evotune.llm.secret import Secret, printable

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
# Answers that pass through a proxy that gave up waiting: the model may have worked, and charged.
_GATEWAY_TIMEOUTS = (408, 504, 522, 524)
_BUSY = (409, 425, 429)
_QUOTA = re.compile(
    r"insufficient_quota|exceeded your current quota|billing|credit balance|spend(?:ing)? limit", re.IGNORECASE
)
_LONGEST_SERVER_DELAY_S = 1e6


@dataclass(frozen=True)
class Endpoint:
    """Who is asked, for messages that say what to change."""

    name: str
    model: str
    key_variable: str
    key: Secret

    def say(self, text: str) -> str:
        """A server's text, safe to show."""
        return printable(self.key.redact(text))


def classify(error: Exception, endpoint: Endpoint) -> ProviderError:
    """What an exception of an SDK means. It holds neither the request nor its headers."""
    status = getattr(error, "status_code", None)
    if isinstance(error, ProviderError):
        return error
    # A 200 that is not what was promised has a status too.
    if isinstance(status, int) and status >= 300:
        return _by_status(status, error, endpoint)
    text = endpoint.say(f"{type(error).__name__}: {error}")
    kinds = {c.__name__ for c in type(error).__mro__}
    if kinds & {"APIConnectionError", "TransportError"} or isinstance(error, (TimeoutError, ConnectionError)):
        cause = type(error.__cause__).__name__ if error.__cause__ else ""
        if cause in ("ConnectError", "ConnectTimeout"):
            return Refused(f"{endpoint.name} cannot be reached: {text}")
        return Transient(f"the connection to {endpoint.name} was lost: {text}")
    # json.JSONDecodeError and UnicodeDecodeError are both ValueErrors, as is pydantic's.
    if isinstance(error, ValueError) or kinds & {"APIResponseValidationError", "DecodingError"}:
        return Transient(f"{endpoint.name} sent a body that cannot be read: {text}")
    return Fatal(f"the request to {endpoint.name} cannot be made: {text}")


def _by_status(status: int, error: Exception, endpoint: Endpoint) -> ProviderError:
    name, said = endpoint.name, endpoint.say(str(error))
    if status == 402 or (status < 500 and _QUOTA.search(str(error))):
        return Fatal(f"{name} has no credit left for the key in {endpoint.key_variable}: {said}")
    if status in (401, 403):
        return Fatal(f"{name} refused the key (HTTP {status}): {said}; set {endpoint.key_variable} to a valid key")
    if status == 404:
        return Fatal(
            f"{name} does not know model {endpoint.model!r} (HTTP 404): {said}; set --model or --base-url right"
        )
    after_s = retry_after_s(getattr(getattr(error, "response", None), "headers", None))
    if status in _GATEWAY_TIMEOUTS:
        return Transient(f"{name} timed out (HTTP {status}): {said}", after_s)
    if status in _BUSY or status >= 500:
        return Refused(f"{name} is not available (HTTP {status}): {said}", after_s)
    return Fatal(f"{name} refused the request (HTTP {status}): {said}; check --model {endpoint.model}")


def retry_after_s(headers: Mapping[str, str] | None) -> float | None:
    """Seconds that a server asks to wait: ``retry-after-ms``, or ``retry-after`` as seconds or date."""
    if not headers:
        return None
    try:
        if ms := headers.get("retry-after-ms"):
            delay_s = float(ms) / 1e3
        elif (value := headers.get("retry-after")) is None:
            return None
        elif re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            delay_s = float(value)
        else:
            delay_s = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return delay_s if 0 <= delay_s < _LONGEST_SERVER_DELAY_S else None


class OptionalParameters:
    """Parameters that help but are not needed; each is dropped for good when a server refuses it.

    Args:
        name: The provider's, for the log.
        words: For each parameter, what a refusal of it mentions.
    """

    def __init__(self, name: str, words: Mapping[str, Collection[str]]) -> None:
        self._name = name
        self._patterns = {p: re.compile("|".join(map(re.escape, w)), re.IGNORECASE) for p, w in words.items()}
        self._dropped: set[str] = set()
        self._lock = threading.Lock()

    def keep(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Those that the server has not refused, and that have a value."""
        return {p: v for p, v in parameters.items() if p not in self._dropped and v is not None}

    def drop(self, error: Exception, sent: Collection[str]) -> str | None:
        """The parameter among those sent that an error (400 or 422) is about; it is said once."""
        if getattr(error, "status_code", None) not in (400, 422):
            return None
        text = str(error)
        found = next((p for p in sent if p in self._patterns and self._patterns[p].search(text)), None)
        if found is None:
            return None
        with self._lock:
            is_new = found not in self._dropped
            self._dropped.add(found)
        if is_new:
            _log.warning("%s does not take %s; going on without it", self._name, found)
        return found


def again(endpoint: Endpoint, why: str) -> Refused:
    """Asks for the same call once more, at once, because the next request will differ."""
    return Refused(f"{endpoint.name}: {why}", retry_after_s=0.0)


@dataclass(frozen=True)
class Answer:
    """What a server sent with HTTP 200, of whichever protocol; ``problem`` says why it is no use."""

    text: str
    problem: Literal["refused", "truncated", None]
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None

    def completion(self, asked: str, seconds: float) -> Completion:
        """The answer and its usage, estimated where the server does not count.

        Raises:
            Unusable: The model refused, was cut off, or said nothing.
        """
        usage = Usage(
            input_tokens=estimate_tokens(asked) if self.input_tokens is None else self.input_tokens,
            output_tokens=estimate_tokens(self.text) if self.output_tokens is None else self.output_tokens,
            cached_input_tokens=self.cached_input_tokens or 0,
            seconds=seconds,
        )
        if self.problem == "refused":
            raise Unusable("the model refused to answer", usage)
        if self.problem == "truncated":
            raise Unusable("the answer was cut off at the token limit", usage, is_truncated=True)
        if not self.text.strip():
            raise Unusable("the answer is empty", usage)
        return Completion(self.text, usage)
