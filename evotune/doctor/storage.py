"""The journal, read and not touched, and the disks that evotune writes to."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from evotune.doctor.row import Row, fail, ok, warn
from evotune.gpu.compiler import default_cache
from evotune.journal import SCHEMA_VERSION
from evotune.process.owner import is_alive
from evotune.result import why_ended

CHECK_S = 8.0  # PRAGMA integrity_check reads every page: about a second for 300 MB
FAIL_BYTES, WARN_BYTES = 100 << 20, 1 << 30  # a run's journal and compiled code are tens of megabytes
# File systems on which SQLite's locks and shared memory do not work between machines.
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "lustre", "ceph", "glusterfs", "beegfs"}
OTHER = "give another file with --journal PATH"
SHOWN = 3


def journal(path: Path) -> list[Row]:
    """Whether the journal can be read and written, and what it holds."""
    if not path.exists():
        folder = _existing(path.parent)
        if not os.access(folder, os.W_OK):
            return [fail("journal", f"{path} cannot be made: {folder} is read-only", OTHER, "configuration")]
        return [ok("journal", f"{path} is not there yet; the first run makes it"), *_network(path)]
    try:
        with closing(_open(path)) as db:
            rows = _examined(db, path)
    except sqlite3.Error as error:
        return [fail("journal", f"{path}: {error}", OTHER, "configuration")]
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        rows.append(fail("journal file", f"{path} or its folder is read-only", OTHER, "configuration"))
    return [*rows, *_network(path)]


def _open(path: Path) -> sqlite3.Connection:
    """Without a trace: even a reader leaves files beside a journal, unless nobody has it open."""
    is_open = Path(f"{path}-wal").exists()
    how = "mode=ro" if is_open else "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=2.0)


def _examined(db: sqlite3.Connection, path: Path) -> list[Row]:
    schema = int(db.execute("PRAGMA user_version").fetchone()[0])
    if not 1 <= schema <= SCHEMA_VERSION:
        found = f"{path} has schema version {schema}, this evotune writes {SCHEMA_VERSION}"
        return [fail("journal", found, OTHER, "configuration")]
    old = "" if schema == SCHEMA_VERSION else f" (the next run makes it {SCHEMA_VERSION})"
    size = _bytes(path.stat().st_size)
    deadline_s = time.monotonic() + CHECK_S
    db.set_progress_handler(lambda: time.monotonic() > deadline_s, 100_000)
    try:
        problems = [text for (text,) in db.execute("PRAGMA integrity_check(5)") if text != "ok"]
        sound = fail("journal", f"{path}: {'; '.join(problems)}", f"sqlite3 {path} .recover", "machine")
    except sqlite3.OperationalError:
        problems, sound = ["late"], warn("journal", f"{path}, {size}: too large to check in {CHECK_S:.0f} s")
    db.set_progress_handler(None, 0)
    if not problems:
        sound = ok("journal", f"{path}, {size}, schema {schema}{old}, passes its integrity check")
    return [sound, _runs(db)]


def _runs(db: sqlite3.Connection) -> Row:
    """The last run, and those that were not finished."""
    query = "SELECT id, kernel, created_s, owner, stopped FROM run ORDER BY created_s"
    rows: list[tuple[Any, ...]] = db.execute(query).fetchall()
    if not rows:
        return ok("runs", "none yet")
    run_id, kernel, created_s, _, stopped = rows[-1]
    started = datetime.fromtimestamp(created_s).strftime("%Y-%m-%d %H:%M")  # local time, for a person
    ended = why_ended(stopped) if stopped else "it has not ended"
    last = f"{len(rows)}, the last is {run_id} of {kernel}, {started}: {ended}"
    working = [f"{r[0]} (process {r[3].split()[1]})" for r in rows if r[3] and is_alive(r[3])]
    cut_off = [str(r[0]) for r in rows if r[4] in (None, "interrupted") and not (r[3] and is_alive(r[3]))]
    parts = [last]
    parts += [f"at work: {', '.join(working)}"] if working else []
    if cut_off:
        named = ", ".join(cut_off[-SHOWN:]) + (", …" if len(cut_off) > SHOWN else "")
        parts.append(f"unfinished: {named}; the same commands resume them")
    return ok("runs", "; ".join(parts))


def _network(path: Path) -> list[Row]:
    kind = _file_system(_existing(path.parent).resolve())
    if kind in NETWORK:
        found = f"{path} is on {kind}: SQLite is not safe there when several machines write"
        return [warn("journal disk", found, "--journal with a path on a local disk")]
    return []


def _file_system(path: Path) -> str:
    """The type of the file system that a path is on, as the kernel calls it."""
    best, kind = -1, ""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, found, *_ = line.split()
        mount = mount.replace("\\040", " ")
        if path.is_relative_to(mount) and len(mount) > best:
            best, kind = len(mount), found
    return kind


def disks(journal_path: Path) -> list[Row]:
    """Space and permission where evotune writes."""
    rows: list[Row] = []
    for name, folder in {
        "journal folder": journal_path.parent,
        "temporary files": Path(tempfile.gettempdir()),
        "cache": default_cache(),
    }.items():
        rows.append(_folder(name, folder))
    return rows


def _folder(name: str, folder: Path) -> Row:
    """Whether a folder, or the nearest above it that exists, can be written to."""
    there = _existing(folder)
    free = shutil.disk_usage(there).free
    found = f"{folder}: {_bytes(free)} free"
    is_temporary, is_cache = name == "temporary files", name == "cache"
    fix = "export TMPDIR=FOLDER" if is_temporary else "export XDG_CACHE_HOME=FOLDER" if is_cache else OTHER
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        cannot = f"{folder} cannot be written to: {error.strerror}"
        return (
            warn(name, f"{cannot}; nothing is kept from run to run", fix) if is_cache else fail(name, cannot, fix)
        )
    if is_temporary and os.statvfs(there).f_flag & os.ST_NOEXEC:
        return fail(name, f"{folder} is mounted noexec: compiled kernels cannot be loaded from it", fix)
    if free < FAIL_BYTES:
        return fail(name, found, f"free some space, or {fix}")
    return warn(name, found, f"free some space, or {fix}") if free < WARN_BYTES else ok(name, found)


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(p for p in (folder, *folder.parents) if p.is_dir())


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
