"""What a shell offers when Tab is pressed: names from folders and from here, so that nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path

# Those of the settings, of `evotune compare` and of the providers, which a test holds equal.
SEARCHES = ("evotune", "mfbo", "random", "pattern", "de", "genetic", "annealing")
METHODS = (
    *SEARCHES, "evotune+", "mfbo-pattern", "optuna-tpe", "optuna-gp", "cma-es", "kernel-tuner-annealing",
    "kernel-tuner-genetic", "helion-pattern", "helion-lfbo-pattern", "helion-lfbo-tree", "helion-de",
    "helion-random",
)  # fmt: skip
PROVIDERS = ("auto", "openai", "anthropic", "mock", "none", "replay:", "human:")
SYNTHETIC = "synthetic"


def kernels(incomplete: str) -> list[str]:
    """Kernel files, shipped and the user's own."""
    return _beginning(incomplete, [*_shipped("KERNELS"), *_files(incomplete, ".py")])


def subjects(incomplete: str) -> list[str]:
    """Whatever ``evotune run`` takes: kernels and recordings."""
    return _beginning(incomplete, [*kernels(incomplete), *recordings(incomplete)])


def recordings(incomplete: str) -> list[str]:
    """Recorded spaces, shipped and the user's own."""
    return _beginning(incomplete, [*_shipped("RECORDINGS"), *_recorded(incomplete)])


def spaces(incomplete: str) -> list[str]:
    """Whatever ``evotune compare`` takes."""
    return _beginning(incomplete, [SYNTHETIC, *recordings(incomplete)])


def targets(incomplete: str) -> list[str]:
    """Targets that a kernel can be tuned for."""
    return _beginning(incomplete, ["auto", "cpu", *gpus(incomplete)])


def gpus(incomplete: str) -> list[str]:
    """Targets that are GPUs."""
    names = [Path(entry).stem for entry in _shipped("EVALUATORS")]
    known = [n for n in names if n not in ("cpu", "replay")]
    return _beginning(incomplete, [*known, *_files(incomplete, ".yaml")])


def searches(incomplete: str) -> list[str]:
    """Values of ``--search``."""
    return _beginning(incomplete, SEARCHES)


def methods(incomplete: str) -> list[str]:
    """Values of ``evotune compare --method``."""
    return _beginning(incomplete, METHODS)


def providers(incomplete: str) -> list[str]:
    """Values of ``--provider``; plug-ins are left out, as finding them takes long."""
    return _beginning(incomplete, PROVIDERS)


def _beginning(incomplete: str, names: list[str] | tuple[str, ...]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _shipped(kind: str) -> list[str]:
    from evotune import content  # imports NumPy, which a command that has not been chosen yet need not

    return content.shipped(getattr(content, kind))


def _entries(incomplete: str) -> list[Path]:
    """What lies in the folder that is being typed; nothing where that cannot be read."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError:
        return []


def _files(incomplete: str, suffix: str) -> list[str]:
    """Files with a suffix, and the folders that may hold some."""
    found = [p for p in _entries(incomplete) if p.suffix == suffix or p.is_dir()]
    return [f"{p}/" if p.is_dir() else str(p) for p in found]


def _recorded(incomplete: str) -> list[str]:
    return [str(p) for p in _entries(incomplete) if (p / "meta.json").is_file()]
