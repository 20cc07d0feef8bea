"""Python, the packages that evotune needs, and whether those for a GPU fit each other.

Versions come from the packages' metadata: importing torch takes seconds, and triton half of one.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from evotune.cpu.toolchain import find_compiler
from evotune.doctor.row import Row, fail, ok, warn
from evotune.errors import UsageError
from evotune.gpu.compiler import OLDEST_TRITON

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)  # those that the tests run on
NEWEST_TRITON_PYTHON_310 = (3, 8)  # 3.9 has no wheel for Python 3.10
# The Triton that a torch was built and tested with, where its metadata does not say so: the wheels
# for CPUs name none. By the first two numbers of each.
TRITON_OF_TORCH: Mapping[tuple[int, int], tuple[int, int]] = {(2, 13): (3, 9)}
# What evotune's tests run with, and what helion itself imports without saying so.
HELION, HELION_NEEDS = ">=1.5,<1.6", "packaging"
GPU_EXTRA = "pip install 'evotune[gpu]'"

_REQUIREMENT = re.compile(r"^([A-Za-z0-9_.\-]+)(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?$")
_CLAUSE = re.compile(r"(>=|<=|==|!=|~=|<|>)\s*([0-9][0-9.]*)")


def python() -> list[Row]:
    """The interpreter."""
    found = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.platform != "linux":
        return [fail("Python", f"{found} on {sys.platform}", "evotune runs on Linux")]
    if sys.version_info[:2] < OLDEST_PYTHON:
        return [fail("Python", found, f"use Python {_dotted(OLDEST_PYTHON)} or later")]
    if sys.version_info[:2] > NEWEST_PYTHON:
        return [warn("Python", f"{found}, newer than what is tested", f"use Python {_dotted(NEWEST_PYTHON)}")]
    return [ok("Python", found)]


def packages() -> list[Row]:
    """What evotune requires, as its own metadata says."""
    try:
        mine, wanted = version("evotune"), requires("evotune") or []
    except PackageNotFoundError:
        return [warn("packages", "evotune runs from a source tree without being installed", "pip install -e .")]
    problems: list[str] = []
    mended: list[str] = []
    n = 0
    for line in wanted:
        name, clauses, marker = parse_requirement(line)
        if marker:  # all of evotune's markers are those of extras
            continue
        n += 1
        found = installed(name)
        if found is not None and fits(found, clauses):
            continue
        problems.append(f"{name} is missing" if found is None else f"{name} is {found}, {clauses} is needed")
        mended.append(f"'{name}{clauses}'")
    if problems:
        return [fail("packages", f"evotune {mine}: {'; '.join(problems)}", f"pip install {' '.join(mended)}")]
    return [ok("packages", f"evotune {mine} and the {n} packages that it needs")]


def compilers() -> list[Row]:
    """The C compiler that kernels for the CPU, and Triton's launchers, are built with."""
    names = [name for name in ("cc", "gcc", "clang") if which(name)]
    names += ["ziglang"] if find_spec("ziglang") else []
    with tempfile.TemporaryDirectory(prefix="evotune-doctor-", ignore_cleanup_errors=True) as folder:
        try:
            compiler = find_compiler(Path(folder))
        except UsageError as error:
            fix = "apt-get install gcc libc6-dev, or pip install 'evotune[cc]'"
            return [fail("C compiler", str(error), fix)]
    found = f"{compiler.version} ({' '.join(compiler.argv)}) compiles and links"
    return [ok("C compiler", f"{found}; here: {', '.join(names)}" if names else found)]


def gpu_packages(*, has_gpu: bool) -> list[Row]:
    """torch, triton and helion, and whether they fit each other."""
    torch, triton, helion = (installed(name) for name in ("torch", "triton", "helion"))
    report = warn if has_gpu else _optional
    rows = [
        report(name, "not installed; only for GPUs", GPU_EXTRA) if found is None else ok(name, found)
        for name, found in (("torch", torch), ("triton", triton), ("helion", helion))
    ]
    rows[1] = _triton(triton, torch) if triton else rows[1]
    if torch and has_gpu and "+cpu" in torch:
        rows[0] = warn("torch", f"{torch}: a build that cannot use the GPU that is here", "pip install torch")
    if helion:
        rows[2] = _helion(helion)
    return rows


def _optional(name: str, found: str, fix: str) -> Row:
    return ok(name, f"{found}: {fix}")


def _triton(triton: str, torch: str | None) -> Row:
    mine, is_310 = numbers(triton)[:2], sys.version_info[:2] == (3, 10)
    if mine < OLDEST_TRITON:
        wanted = f"{_dotted(OLDEST_TRITON)} or later is needed"
        return fail("triton", f"{triton}; {wanted}", "pip install --upgrade triton")
    if torch is None:
        return fail("triton", f"{triton}, and torch, which it needs, is missing", "pip install torch")
    wanted = triton_of("torch", torch)
    if wanted is not None and mine != wanted:
        limit = f" (Python 3.10 has no Triton after {_dotted(NEWEST_TRITON_PYTHON_310)})" if is_310 else ""
        fix = f"pip install 'triton=={_dotted(wanted)}.*'"
        return warn("triton", f"{triton}; torch {torch} was made with {_dotted(wanted)}{limit}", fix)
    return ok("triton", f"{triton}, which fits torch {torch}" if wanted else f"{triton}; torch {torch}")


def triton_of(package: str, its_version: str) -> tuple[int, ...] | None:
    """The first two numbers of the Triton that a torch was made with; None if that is not known."""
    for line in requires(package) or []:
        name, clauses, _ = parse_requirement(line)
        if name == "triton" and (pinned := re.search(r"==\s*([0-9.]+)", clauses)):
            return numbers(pinned[1])[:2]
    return TRITON_OF_TORCH.get(numbers(its_version)[:2])  # type: ignore[arg-type] # two numbers


def _helion(helion: str) -> Row:
    if installed(HELION_NEEDS) is None:
        missing = f"{helion}, and {HELION_NEEDS} is missing: helion needs it and does not say so"
        return fail("helion", missing, f"pip install {HELION_NEEDS}")
    if not fits(helion, HELION):
        return warn("helion", f"{helion}; evotune's adapter is made for {HELION}", f"pip install 'helion{HELION}'")
    return ok("helion", f"{helion}, and {HELION_NEEDS} is here")


def installed(name: str) -> str | None:
    """Version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def parse_requirement(line: str) -> tuple[str, str, str]:
    """Name, clauses (``>=1.5,<1.6``) and marker of a requirement in a package's metadata."""
    match = _REQUIREMENT.match(line.strip())
    assert match is not None, line
    return match[1], match[2].strip(), (match[3] or "").strip()


def fits(found: str, clauses: str) -> bool:
    """Whether the numbers of a version satisfy clauses such as ``>=1.5,<1.6``; suffixes do not count."""
    mine = numbers(found)
    return all(_holds(mine, operator, numbers(wanted)) for operator, wanted in _CLAUSE.findall(clauses))


def _holds(mine: tuple[int, ...], operator: str, wanted: tuple[int, ...]) -> bool:
    width = max(len(mine), len(wanted))
    a, b = (n + (0,) * (width - len(n)) for n in (mine, wanted))
    return {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b}.get(operator, a >= b)


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.13.0+cpu`` is (2, 13, 0)."""
    leading = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(n) for n in leading[0].split(".")) if leading else ()


def _dotted(parts: tuple[int, ...]) -> str:
    return ".".join(map(str, parts))
