"""A run's page while the run goes on, served to this machine alone."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from evotune.errors import UsageError
from evotune.history import RunHistory
from evotune.report.belief import Belief
from evotune.report.kept import load
from evotune.report.page import text_of
from evotune.report.view import View
from evotune.result import why_ended

ADDRESS = "127.0.0.1"
# Learning takes a second of a core that may be timing kernels: only after so many more trials, or at the end.
LEARN_GROWTH = 1.25


class Live:
    """What is known of a run, read again when its journal has changed. Safe to use from several threads."""

    def __init__(self, journal: Path, run_id: str | None) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._stamp = self._changed()
        self._history = load(journal, run_id)
        self._run_id = self._history.summary.run_id
        self._belief: Belief | None = None
        self._learned = 0

    def state(self) -> dict[str, Any]:
        """What a page asks for again and again; another ``revision`` is news."""
        with self._lock:
            return self._state(self._latest())

    def page(self) -> str:
        """The page as it is now."""
        with self._lock:
            found = self._latest()
            is_due = not found.summary.is_running and self._learned != len(found.trials)
            if is_due or len(found.trials) >= max(self._learned * LEARN_GROWTH, 1):
                self._belief, self._learned = View(found).belief, len(found.trials)
            view = View(found, self._belief)
            return text_of(view, self._journal, revision=self._state(found)["revision"])

    def _state(self, found: RunHistory) -> dict[str, Any]:
        summary = found.summary
        return {
            "revision": f"{summary.evaluations} {summary.state} {len(found.notes)} {len(found.llm_calls)}",
            "evaluations": summary.evaluations,
            "state": why_ended(summary.state),
            "is_running": summary.is_running,
        }

    def _latest(self) -> RunHistory:
        """The run, read again if the journal has changed, or if its process may have gone."""
        stamp = self._changed()
        if stamp != self._stamp or self._history.summary.is_running:
            self._history = load(self._journal, self._run_id)
            self._stamp = stamp
        return self._history

    def _changed(self) -> list[tuple[int, int]]:
        """Another one when something was written."""
        files = [self._journal, Path(f"{self._journal}-wal")]
        found = [f.stat() for f in files if f.exists()]
        return [(s.st_mtime_ns, s.st_size) for s in found]


def serve(journal: Path, run_id: str | None, port: int, on_url: Callable[[str], None]) -> None:
    """Serve the page of a run until Ctrl-C, on a free port if ``port`` is 0.

    Raises:
        UsageError: There is no such run, or the port is taken.
        KeyboardInterrupt: It was to end.
    """
    with server_of(Live(journal, run_id), port) as server:
        on_url(f"http://{ADDRESS}:{server.server_port}/")
        server.serve_forever(poll_interval=0.2)


def server_of(live: Live, port: int) -> ThreadingHTTPServer:
    """A server that does not serve yet; close it, or use it in a ``with``.

    Raises:
        UsageError: The port is taken.
    """
    try:
        return ThreadingHTTPServer((ADDRESS, port), _handler(live))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken by another program" if taken else f"cannot be served: {error.strerror}"
        raise UsageError(f"port {port} {why}; give another --port, or leave it out for a free one") from None


def _handler(live: Live) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if not self._is_for_us():
                # A name of the outside that leads here would let that site's pages read ours.
                self._answer(HTTPStatus.FORBIDDEN, "text/plain", "this page is served to this machine alone\n")
            elif self.path == "/":
                self._tell("text/html", live.page)
            elif self.path == "/state.json":
                self._tell("application/json", lambda: json.dumps(live.state()))
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there are / and /state.json\n")

        def _is_for_us(self) -> bool:
            assert isinstance(self.server, ThreadingHTTPServer)
            port = self.server.server_port
            return self.headers.get("Host") in (f"{ADDRESS}:{port}", f"localhost:{port}")

        def _tell(self, kind: str, make: Callable[[], str]) -> None:
            try:
                text = make()
            except UsageError as error:  # the journal was moved or removed meanwhile
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error}\n")
                return
            self._answer(HTTPStatus.OK, kind, text)

        def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a page that asks every two seconds is no news."""

    return Handler
