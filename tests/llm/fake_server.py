"""A server on this machine that speaks the protocols of OpenAI and Anthropic, faults included."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = '{"configs": [{"block": 64}]}'


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. ``body`` of None stands for a good answer."""

    status: int = 200
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    breaks: str = ""  # "reset" before any answer, "short" in the middle of one
    finish: str = ""  # "length", "refusal", "empty", "choices", "quiet" (no usage)


def error(status: int, message: str, **headers: str) -> Fault:
    """An error in the form that both protocols use."""
    body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": None}})
    return Fault(status, body, headers)


HANG_S = 30.0
GOOD = Fault()
FAULTS: dict[str, Fault] = {
    "slow": Fault(delay_s=0.05),
    "hang": Fault(delay_s=HANG_S),
    "reset": Fault(breaks="reset"),
    "short body": Fault(breaks="short"),
    "400": error(400, "invalid request"),
    "401": error(401, "invalid key"),
    "402": error(402, "payment required"),
    "403": error(403, "not allowed"),
    "404": error(404, "no such model"),
    "408": error(408, "request timeout"),
    "409": error(409, "conflict"),
    "413": error(413, "too large"),
    "422": error(422, "cannot be processed"),
    "429": error(429, "slow down"),
    "429 with Retry-After": error(429, "slow down", **{"Retry-After": "7"}),
    "429 with retry-after-ms": error(429, "slow down", **{"Retry-After-Ms": "2500"}),
    "quota": error(429, "You exceeded your current quota: insufficient_quota"),
    "500": error(500, "oops"),
    "503": error(503, "busy"),
    "504": error(504, "gateway timeout"),
    "529": error(529, "overloaded"),
    "HTML 200": Fault(body="<html><body>Please log in</body></html>", headers={"Content-Type": "text/html"}),
    "{}": Fault(body="{}"),
    "error in a 200": Fault(body='{"error": {"message": "upstream failed"}}'),
    "truncated JSON": Fault(body='{"id": "x", "choices": [{"mess'),
    "not UTF-8": Fault(body="\udcff\udcfe"),
    "empty choices": Fault(finish="choices"),
    "length stop": Fault(finish="length"),
    "refusal": Fault(finish="refusal"),
    "empty text": Fault(finish="empty"),
    "no usage": Fault(finish="quiet"),
}


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class FakeServer:
    """Serves on a free port of the loopback; each request takes the next fault of ``script``.

    When the script is used up, ``otherwise`` decides. ``refuse(request)`` may return a fault first.
    """

    def __init__(self) -> None:
        self.script: list[Fault] = []
        self.otherwise: Fault = GOOD
        self.refuse = lambda request: None
        self.answer = ANSWER
        self.requests: list[Request] = []
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def take(self, request: Request) -> Fault:
        with self._lock:
            self.requests.append(request)
            refused = self.refuse(request)
            if refused is not None:
                return refused
            return self.script.pop(0) if self.script else self.otherwise

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            request = Request(self.path, dict(self.headers), json.loads(self.rfile.read(length)))
            fault = server.take(request)
            if fault.delay_s:
                server.released.wait(fault.delay_s)
            self.close_connection = True
            if fault.breaks == "reset":
                return
            form = (
                fault.body if fault.body is not None else json.dumps(_answer(request, fault.finish, server.answer))
            )
            body = form.encode("utf-8", "surrogateescape")
            try:
                self.send_response(fault.status)
                self.send_header("Content-Length", str(len(body) * (2 if fault.breaks == "short" else 1)))
                self.send_header("Connection", "close")
                for name, value in {"Content-Type": "application/json", **fault.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the client has left, as it should when this is slow

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _answer(request: Request, finish: str, text: str) -> dict[str, Any]:
    text = "" if finish == "empty" else text
    if request.path.endswith("/messages"):
        reason = {"length": "max_tokens", "refusal": "refusal"}.get(finish, "end_turn")
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": request.body["model"],
            "content": None if finish == "choices" else [{"type": "text", "text": text}],
            "stop_reason": reason,
            **_usage(finish, {"input_tokens": 90, "cache_read_input_tokens": 10, "output_tokens": 20}),
        }
    if request.path.endswith("/responses"):
        part = (
            {"type": "refusal", "refusal": "no"} if finish == "refusal" else {"type": "output_text", "text": text}
        )
        cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
        return {
            "id": "resp_1",
            "object": "response",
            "output": None if finish == "choices" else [message],
            **(cut if finish == "length" else {"status": "completed"}),
            **_usage(
                finish,
                {"input_tokens": 100, "output_tokens": 20, "input_tokens_details": {"cached_tokens": 10}},
            ),
        }
    message = {"role": "assistant", "content": text, "refusal": "no" if finish == "refusal" else None}
    choice = {"index": 0, "message": message, "finish_reason": "length" if finish == "length" else "stop"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": request.body["model"],
        "choices": [] if finish == "choices" else [choice],
        **_usage(
            finish,
            {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 10}},
        ),
    }


def _usage(finish: str, counts: dict[str, Any]) -> dict[str, Any]:
    return {} if finish == "quiet" else {"usage": counts}
