"""One line of an examination."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]
Fault = Literal["machine", "configuration"]


@dataclass(frozen=True)
class Row:
    """What was found, and the command or change that mends it; ``fault`` says whose a failure is."""

    name: str
    status: Status
    found: str
    fix: str | None = None
    fault: Fault = "machine"

    def to_json(self) -> dict[str, str | None]:
        """The object that ``--json`` prints of it."""
        return {"name": self.name, "status": self.status, "found": self.found, "fix": self.fix}


def ok(name: str, found: str) -> Row:
    """All is well."""
    return Row(name, "ok", found)


def warn(name: str, found: str, fix: str | None = None) -> Row:
    """Something works less well than it could."""
    return Row(name, "warn", found, fix)


def fail(name: str, found: str, fix: str | None = None, fault: Fault = "machine") -> Row:
    """Something that evotune needs does not work."""
    return Row(name, "fail", found, fix, fault)


def faults(rows: Iterable[Row]) -> set[Fault]:
    """Whose the failures are."""
    return {row.fault for row in rows if row.status == "fail"}
