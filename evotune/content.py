"""Finds kernels, recordings, evaluators and prompts: as given, in the checkout, or as installed.

Content is what a user copies and edits, so it is found by path and never imported as a package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evotune.errors import UsageError, nearest
from evotune.kernel import split_name

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Kind:
    """One folder of content; ``suffix`` is that of its files, empty where an entry is a folder."""

    folder: str
    suffix: str

    def owns(self, path: Path) -> bool:
        """Whether a path looks like an entry of this kind."""
        return path.suffix == self.suffix and path.is_file() if self.suffix else path.is_dir()


KERNELS = Kind("kernels", ".py")
EVALUATORS = Kind("evaluators", ".yaml")
PROMPTS = Kind("prompts", ".md")
RECORDINGS = Kind("recordings", "")


def checkout() -> Path | None:
    """Folder of the source checkout that evotune is imported from; None if it is installed."""
    root = PACKAGE.parent
    is_ours = (root / "pyproject.toml").is_file() and (root / KERNELS.folder).is_dir()
    return root if is_ours else None


def root() -> Path:
    """Folder that holds the shipped content."""
    return checkout() or PACKAGE / "_content"


def shipped(kind: Kind) -> list[str]:
    """Paths of the shipped entries of a kind, such as ``kernels/matmul.py``."""
    folder = root() / kind.folder
    if not folder.is_dir():
        return []
    entries = (p for p in folder.iterdir() if kind.owns(p) and not p.name.startswith(("_", ".")))
    return sorted(f"{kind.folder}/{p.name}" for p in entries)


def find(name: str, *kinds: Kind) -> Path:
    """Path of an entry given by path (``kernels/matmul.py``) or by its shipped name (``matmul``).

    The current folder comes first, so that a user's edited copy hides the shipped file. What follows
    the colon of ``FILE.py:NAME`` is kept.

    Raises:
        UsageError: There is no such entry; the message lists what is shipped.
    """
    file, inside = split_name(Path(name))
    if inside is not None:
        found = find(str(file), *kinds)
        return found.with_name(f"{found.name}:{inside}")
    given = Path(name).expanduser()
    candidates = [(given, kind) for kind in kinds]
    if not given.is_absolute() and ".." not in given.parts:
        for kind in kinds:
            candidates += [(root() / given, kind), (root() / kind.folder / (name + kind.suffix), kind)]
    for path, kind in candidates:
        if kind.owns(path):
            return path
    known = [entry for kind in kinds for entry in shipped(kind)]
    wanted = " or ".join(f"a {k.suffix} file" if k.suffix else "a folder" for k in kinds)
    found = f"{name!r} is not {wanted}" if given.exists() else f"nothing found at {name!r}"
    raise UsageError(f"{found}{_closest(name, known)}; shipped: {', '.join(known) or 'nothing'}")


def _closest(name: str, known: list[str]) -> str:
    """The nearest shipped entry, by what was typed: a path or a bare name."""
    by_spelling = {Path(entry).stem: entry for entry in known} | {entry: entry for entry in known}
    return nearest(name, by_spelling)
