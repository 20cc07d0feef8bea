"""How busy the device is while a slow model is asked, and what a dead one costs.

    python benchmarks/overlap.py [--rounds 5] [--evaluations 80] [--model-s 5] [--out benchmarks/results/overlap.md]

A server on this machine answers each question after ``--model-s`` seconds, in OpenAI's protocol and with
what the mock says. The kernel is really timed, on the CPU, for 0.2 s per configuration: as many
repetitions as fit. The share is the time in which the device was measuring, from its first
measurement to its last, over the wall time between the two. Each round makes the same run with that
server, without a model, and with an endpoint where nobody listens; the order changes from round to round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

RECIPE = """backend: cpu
ladder:
  - {fidelity: high, limit_s: 0.2}
finals: {fidelity: ultra, limit_s: 0.2}
"""


def serve(answer_s: float) -> ThreadingHTTPServer:
    """A model that thinks for so long."""
    from evotune.errors import BadOutput
    from evotune.llm import MockProvider

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            system, user = (m["content"] for m in asked["messages"])
            time.sleep(answer_s)
            try:
                text = MockProvider().complete(system, user, n=8).text
            except BadOutput:  # the check of the key shows no space
                text = '{"configs": []}'
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": len(system + user) // 4, "completion_tokens": len(text) // 4}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = json.dumps(
                {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@dataclass
class Clock:
    """When the device measured: a start and an end for each."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def watch(self, evaluator: type) -> None:
        measure = evaluator.measure

        def timed(this, config, fidelity):
            started = time.monotonic()
            try:
                return measure(this, config, fidelity)
            finally:
                self.spans.append((started, time.monotonic()))

        evaluator.measure = timed

    def share(self) -> float:
        return sum(end - start for start, end in self.spans) / (self.spans[-1][1] - self.spans[0][0])


class Silent:
    def on_trial(self, *_, **__) -> None: ...

    def on_note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Round:
    share: float
    seconds: float
    measure_s: float
    asked: int
    heard: int


def once(clock: Clock, recipe: Path, folder: Path, seed: int, evaluations: int, llm: dict[str, str]) -> Round:
    from evotune import session
    from evotune.settings import load

    flags = {
        "run.seed": seed,
        "run.target": str(recipe),
        "run.max_evaluations": evaluations,
        "run.journal": str(folder / f"{time.monotonic_ns()}.db"),
        "measure.high_reps": 1_000_000,  # the time limit ends it
        "measure.ultra_reps": 1_000_000,
        **llm,
    }
    clock.spans.clear()
    started = time.monotonic()
    result = session.tune("kernels/softmax.py", load(None, flags, {}), observer=Silent())
    seconds = time.monotonic() - started
    heard = result.proposals.get("llm", 0)
    took = statistics.median(end - start for start, end in clock.spans)
    return Round(clock.share(), seconds, took, result.llm["calls"], heard)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=80)
    parser.add_argument("--model-s", type=float, default=5.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from evotune.cpu import CpuEvaluator

    server = serve(args.model_s)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = free.getsockname()[1]
    local = {"llm.provider": "openai", "llm.model": "slow"}
    kinds = {
        "slow model": {**local, "llm.base_url": f"http://127.0.0.1:{server.server_address[1]}/v1"},
        "none": {"llm.provider": "none"},
        "dead": {**local, "llm.base_url": f"http://127.0.0.1:{dead}/v1"},
    }
    clock, found = Clock(), {kind: [] for kind in kinds}
    clock.watch(CpuEvaluator)
    lines = ["| round | load | model | busy share | seconds | measuring one, s | asked | trials of the model |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        recipe = folder / "fifth.yaml"
        recipe.write_text(RECIPE)
        once(clock, recipe, folder, 0, 5, kinds["slow model"])  # what is imported late is imported here
        for i in range(args.rounds):
            order = [*kinds][i % len(kinds) :] + [*kinds][: i % len(kinds)]
            for kind in order:
                load = os.getloadavg()[0]
                done = once(clock, recipe, folder, i, args.evaluations, kinds[kind])
                found[kind].append(done)
                lines.append(
                    f"| {i + 1} | {load:.1f} | {kind} | {done.share:.1%} | {done.seconds:.1f} | "
                    f"{done.measure_s:.3f} | {done.asked} | {done.heard} |"
                )
                print(lines[-1], flush=True)
    share = {kind: statistics.median(r.share for r in rounds) for kind, rounds in found.items()}
    pairs = zip(found["dead"], found["none"], strict=True)
    more_s = statistics.median(d.seconds - n.seconds for d, n in pairs)
    summary = [
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; "
        f"{args.rounds} rounds of {args.evaluations} evaluations; the model answers after {args.model_s:g} s.",
        "",
        *(f"- busy share with {kind}: median {value:.1%}" for kind, value in share.items()),
        f"- a dead endpoint costs {more_s:+.1f} s more than no model (median of the differences within rounds)",
    ]
    print("\n".join(summary))
    if args.out:
        command = f"    python benchmarks/overlap.py {' '.join(sys.argv[1:])}"
        args.out.write_text("\n".join(["# A slow model and a dead one", "", command, "", *summary, "", *lines, ""]))
    server.shutdown()


if __name__ == "__main__":
    main()
