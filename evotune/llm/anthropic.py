"""Anthropic's Messages API. Its SDK has no temperature any more; variety comes from the prompt."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from evotune.errors import Transient
from evotune.llm.prices import is_loopback
from evotune.llm.provider import Completion
from evotune.llm.secret import Secret
from evotune.llm.wire import CONNECT_TIMEOUT_S, Answer, Endpoint, OptionalParameters, again, classify

if TYPE_CHECKING:
    import anthropic

ANTHROPIC_URL = "https://api.anthropic.com"


class AnthropicProvider:
    """Messages; a schema that the server refuses is left out from then on.

    Args:
        model: As the server knows it.
        key: Sent as a bearer token.
        base_url: Without ``/v1``; None is Anthropic's own.
        timeout_s: Of one request, to the next byte of its answer.
        max_output_tokens: Thinking included.
        schema: JSON schema of the answer, used where the server can.
    """

    name = "anthropic"

    def __init__(
        self,
        model: str,
        key: Secret,
        *,
        base_url: str | None = None,
        timeout_s: float = 60.0,
        max_output_tokens: int = 8192,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self._endpoint = Endpoint(self.name, model, "ANTHROPIC_API_KEY", key)
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._max_output_tokens = max_output_tokens
        self._schema = schema
        words = ["output_config", "output_format", "json_schema", "structured output", "schema"]
        self._optional = OptionalParameters(self.name, {"output_config": words})
        self._lock = threading.Lock()
        self._client: anthropic.Anthropic | None = None

    def complete(self, system: str, user: str, *, n: int) -> Completion:
        del n  # the prompt says it
        start = time.monotonic()
        form = {"format": {"type": "json_schema", "schema": self._schema}} if self._schema else None
        optional = self._optional.keep({"output_config": form})
        try:
            create = cast(Any, self._connect().messages.create)
            reply = create(
                model=self.model,
                max_tokens=self._max_output_tokens,
                system=system,
                messages=[{"role": "user", "content": user}],
                **optional,
            )
        except Exception as error:  # the SDK lets more than its own errors through, such as JSONDecodeError
            dropped = self._optional.drop(error, optional)
            failure = again(self._endpoint, f"left out {dropped}") if dropped else classify(error, self._endpoint)
        else:
            answer = _read(reply)
            if answer is not None:
                return answer.completion(system + user, time.monotonic() - start)
            failure = Transient(f"{self.name} sent an answer with nothing in it: {self._endpoint.say(str(reply))}")
        # Outside of `except`, so that no context keeps the request with its headers.
        raise failure

    def _connect(self) -> anthropic.Anthropic:
        with self._lock:
            if self._client is None:
                import anthropic  # 0.8 s
                import httpx2

                timeout = httpx2.Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S)
                local = self._base_url is not None and is_loopback(self._base_url)
                self._client = anthropic.Anthropic(
                    api_key=self._endpoint.key.reveal(),
                    base_url=self._base_url or ANTHROPIC_URL,
                    timeout=timeout,
                    max_retries=0,
                    # A proxy for the outside does not lead to this machine.
                    http_client=httpx2.Client(trust_env=False, timeout=timeout) if local else None,
                )
            return self._client


def _read(reply: Any) -> Answer | None:
    blocks: Any = getattr(reply, "content", None)
    if not isinstance(blocks, list):
        return None
    reason = getattr(reply, "stop_reason", None)
    is_truncated = reason in ("max_tokens", "model_context_window_exceeded")
    usage: Any = getattr(reply, "usage", None)
    cached = getattr(usage, "cache_read_input_tokens", None) or 0
    written = getattr(usage, "cache_creation_input_tokens", None) or 0
    fresh: int | None = getattr(usage, "input_tokens", None)
    return Answer(
        text="".join(b.text for b in cast("list[Any]", blocks) if getattr(b, "type", "") == "text"),
        problem="refused" if reason == "refusal" else "truncated" if is_truncated else None,
        # Anthropic counts what comes from its cache apart; here `input_tokens` include it.
        input_tokens=None if fresh is None else fresh + cached + written,
        output_tokens=getattr(usage, "output_tokens", None),
        cached_input_tokens=cached,
    )
