"""OpenAI and every server that speaks its protocol (vLLM, llama.cpp, Ollama, gateways, …)."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from evotune.errors import ProviderError, Transient
from evotune.llm.prices import is_loopback
from evotune.llm.provider import Completion
from evotune.llm.secret import Secret
from evotune.llm.wire import CONNECT_TIMEOUT_S, Answer, Endpoint, OptionalParameters, again, classify

if TYPE_CHECKING:
    import openai

_log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
# OpenAI's newer models refuse the old name; other servers refuse, or worse, ignore the new one.
_LIMIT_NAMES = ("max_completion_tokens", "max_tokens")
# Models that answer only there say so: "... only supported in v1/responses ...".
_NEEDS_RESPONSES = re.compile(r"v1/responses|responses api|responses endpoint", re.IGNORECASE)


class OpenAIProvider:
    """Chat completions, or responses for models that have nothing else.

    What a server refuses (the temperature, a schema, the newer name of the token limit) is left out
    from then on; ``complete`` then raises a ``Refused`` that may be repeated at once.

    Args:
        model: As the server knows it.
        key: Any text for servers that want none.
        base_url: Ends in ``/v1``; None is OpenAI's own.
        temperature: 0 to 1.
        timeout_s: Of one request, to the next byte of its answer.
        max_output_tokens: Hidden reasoning included.
        schema: JSON schema of the answer, used where the server can.
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        key: Secret,
        *,
        base_url: str | None = None,
        temperature: float = 0.8,
        timeout_s: float = 60.0,
        max_output_tokens: int = 8192,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self._endpoint = Endpoint(self.name, model, "OPENAI_API_KEY", key)
        self._base_url = base_url
        self._temperature = temperature
        self._timeout_s = timeout_s
        self._max_output_tokens = max_output_tokens
        self._schema = schema
        self._optional = OptionalParameters(
            self.name,
            {
                "temperature": ["temperature"],
                "response_format": ["response_format", "json_schema", "structured output", "guided", "grammar"],
                "text": ["text.format", "json_schema", "structured output"],
                "store": ["store"],
            },
        )
        # The second is tried if the server refuses the first.
        self._limit_names = list(_LIMIT_NAMES if base_url is None else reversed(_LIMIT_NAMES))
        self._use_responses = False
        self._lock = threading.Lock()
        self._client: openai.OpenAI | None = None

    def complete(self, system: str, user: str, *, n: int) -> Completion:
        del n  # the prompt says it
        start = time.monotonic()
        is_chat = not self._use_responses
        request = self._chat(system, user) if is_chat else self._responses(system, user)
        try:
            client = self._connect()
            create = cast(Any, client.chat.completions.create if is_chat else client.responses.create)
            reply = create(**request)
        except Exception as error:  # the SDK lets more than its own errors through, such as JSONDecodeError
            failure = self._adapt(error, request) or classify(error, self._endpoint)
        else:
            answer = _read_chat(reply) if is_chat else _read_responses(reply)
            if answer is not None:
                return answer.completion(system + user, time.monotonic() - start)
            failure = Transient(f"{self.name} sent an answer with nothing in it: {self._endpoint.say(str(reply))}")
        # Outside of `except`, so that no context keeps the request with its headers.
        raise failure

    def _chat(self, system: str, user: str) -> dict[str, Any]:
        schema = {"name": "answer", "schema": self._schema}
        optional = {
            "temperature": self._temperature,
            "response_format": {"type": "json_schema", "json_schema": schema} if self._schema else None,
        }
        return {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            self._limit_names[0]: self._max_output_tokens,
            **self._optional.keep(optional),
        }

    def _responses(self, system: str, user: str) -> dict[str, Any]:
        form = {"type": "json_schema", "name": "answer", "schema": self._schema}
        optional = {
            "temperature": self._temperature,
            "text": {"format": form} if self._schema else None,
            "store": False,
        }
        return {
            "model": self.model,
            "instructions": system,
            "input": user,
            "max_output_tokens": self._max_output_tokens,
            **self._optional.keep(optional),
        }

    def _adapt(self, error: Exception, request: Mapping[str, Any]) -> ProviderError | None:
        """Change what the server complains of, if that can be changed, and ask to be called again."""
        status, text = getattr(error, "status_code", None), str(error)
        if status in (400, 404) and "messages" in request and _NEEDS_RESPONSES.search(text):
            self._use_responses = True
            _log.warning("%s answers only in the responses API; using that", self.model)
            return again(self._endpoint, "changed to the responses API")
        if dropped := self._optional.drop(error, request):
            return again(self._endpoint, f"left out {dropped}")
        limit = next((name for name in _LIMIT_NAMES if name in request), None)
        if status in (400, 422) and limit is not None and limit in text:
            with self._lock:
                if self._limit_names[0] == limit and len(self._limit_names) > 1:
                    del self._limit_names[0]
                # Another thread may have changed the name since this request was made.
                if self._limit_names[0] != limit:
                    return again(self._endpoint, f"changed {limit} to {self._limit_names[0]}")
        return None

    def _connect(self) -> openai.OpenAI:
        with self._lock:
            if self._client is None:
                import httpx2
                import openai  # 0.4 s

                timeout = httpx2.Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S)
                local = self._base_url is not None and is_loopback(self._base_url)
                self._client = openai.OpenAI(
                    api_key=self._endpoint.key.reveal(),
                    base_url=self._base_url or OPENAI_URL,
                    timeout=timeout,
                    max_retries=0,
                    # A proxy for the outside does not lead to this machine.
                    http_client=httpx2.Client(trust_env=False, timeout=timeout) if local else None,
                )
            return self._client


def _read_chat(reply: Any) -> Answer | None:
    choices: list[Any] = getattr(reply, "choices", None) or []
    message: Any = getattr(choices[0], "message", None) if choices else None
    if message is None:
        return None
    reason: Any = choices[0].finish_reason
    refused = getattr(message, "refusal", None) or reason == "content_filter"
    usage: Any = getattr(reply, "usage", None)
    return Answer(
        text=getattr(message, "content", None) or "",
        problem="refused" if refused else "truncated" if reason == "length" else None,
        input_tokens=getattr(usage, "prompt_tokens", None),
        output_tokens=getattr(usage, "completion_tokens", None),
        cached_input_tokens=getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None),
    )


def _read_responses(reply: Any) -> Answer | None:
    if not isinstance(getattr(reply, "output", None), list):
        return None
    parts = [part for item in reply.output for part in getattr(item, "content", None) or ()]
    why = getattr(getattr(reply, "incomplete_details", None), "reason", None)
    refused = why == "content_filter" or any(getattr(p, "type", "") == "refusal" for p in parts)
    usage: Any = getattr(reply, "usage", None)
    return Answer(
        text=str(reply.output_text),
        problem="refused" if refused else "truncated" if reply.status == "incomplete" else None,
        input_tokens=getattr(usage, "input_tokens", None),
        output_tokens=getattr(usage, "output_tokens", None),
        cached_input_tokens=getattr(getattr(usage, "input_tokens_details", None), "cached_tokens", None),
    )
