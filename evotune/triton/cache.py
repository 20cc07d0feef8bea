"""The best configurations on disk, one JSON file for each kernel, read by people too."""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, cast

from evotune import files
from evotune.space import Value

_log = logging.getLogger(__name__)

FORMAT = 1


class Cache:
    """What was found for the kernels of one name; an entry belongs to exactly one subject.

    A file that cannot be read, or a folder that cannot be written to, costs a search and a warning,
    never the launch.
    """

    def __init__(self, name: str) -> None:
        self.path = files.cache_folder("triton") / f"{name}.json"

    def get(self, subject: Mapping[str, Any]) -> dict[str, Value] | None:
        """The configuration that was found for a subject."""
        entry = self._entries().get(_digest(subject))
        if entry is None:
            return None
        if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict):
            _log.warning("ignoring an entry of %s that is not a configuration", self.path)
            return None
        return cast(dict[str, Value], entry["config"])

    def put(self, subject: Mapping[str, Any], config: Mapping[str, Value], result: Mapping[str, Any]) -> None:
        """Keep a configuration, and beside it what a person would like to know."""
        entry = {"config": dict(config), **result, "for": dict(subject)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that add to a file keep what both found
                entries = {**self._entries(), _digest(subject): entry}
                files.replace(self.path, json.dumps({"format": FORMAT, "entries": entries}, indent=1))
        except OSError as error:
            _log.warning("cannot keep the best configuration in %s: %s", self.path, error)

    def _entries(self) -> dict[str, Any]:
        try:
            content: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("ignoring the kept configurations in %s: %s", self.path, error)
            return {}
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            _log.warning("ignoring the kept configurations in %s: it is not of format %d", self.path, FORMAT)
            return {}
        return cast(dict[str, Any], content["entries"])


def _digest(subject: Mapping[str, Any]) -> str:
    return sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:32]
