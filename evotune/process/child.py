"""The child's side of :class:`~evotune.process.worker.Worker`, and the frames that both sides speak.

A frame is a length of four bytes and that much JSON. Never pickle: loading one runs its writer's code.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

MAX_FRAME_BYTES = 1 << 20  # 500 samples of ten finalists are 100 kB of JSON
HEADER = struct.Struct("!I")


def serve() -> None:
    """Answer requests until the parent closes the channel. Called in the child by the line of
    code that it is started with; the arguments follow that line."""
    entry, fd, parent = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    die_with(parent)
    channel = socket.socket(fileno=fd)
    channel.set_inheritable(False)  # a program started from here must not hold it open
    handle: Callable[[Any], Any] | None = None
    while header := _read_exactly(channel, HEADER.size):
        message = json.loads(_read_exactly(channel, HEADER.unpack(header)[0]))
        try:
            if handle is None:
                module, _, function = entry.partition(":")
                handle, value = getattr(import_module(module), function)(message["body"]), None
            else:
                value = handle(message["body"])
            reply = frame({"id": message["id"], "value": value})
        except Exception as error:  # code of users and candidates may raise anything
            text = traceback.format_exception_only(type(error), error)[-1].strip()  # survives a bad __str__
            reply = frame({"id": message["id"], "error": type(error).__name__, "message": text[:2000]})
        channel.sendall(reply)


def die_with(parent: int) -> None:
    """Let this process, whose parent is named, be killed when that ends; call it first of all."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _read_exactly(channel: socket.socket, size: int) -> bytes:
    """So many bytes, or none at end of file."""
    data = b""
    while len(data) < size and (chunk := channel.recv(size - len(data))):
        data += chunk
    return data if len(data) == size else b""


def frame(message: Mapping[str, object]) -> bytes:
    """A message on its way; :class:`ValueError` if it is too long or not JSON."""
    body = json.dumps(message, allow_nan=False).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return HEADER.pack(len(body)) + body
