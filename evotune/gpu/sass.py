"""What ``cuobjdump -res-usage -sass`` says of a compiled kernel."""

from __future__ import annotations

import re
from collections import Counter

_USAGE = re.compile(r"\bREG:(\d+) STACK:(\d+)")
# "        /*0060*/               @!P1 STL.64 [R1+0x8], R2 ;"
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)((?:\.\w+)*)", re.MULTILINE)
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_KINDS = {
    "wgmma": re.compile(r"[HQIB]GMMA"),  # Hopper's asynchronous matrix products
    "tcgen05_mma": re.compile(r"UTC\w*MMA"),  # Blackwell's, from tensor memory
    "mma_sync": re.compile(r"[HQIBDO]MMA"),  # a warp's own, on every architecture
    "tma_copies": re.compile(r"UTMALDG|UTMASTG|UTMAREDG|UBLKCP|UBLKRED"),
    "async_copies": re.compile(r"LDGSTS"),  # cp.async: global to shared memory
    "global_loads": re.compile(r"LDG"),
    "global_stores": re.compile(r"STG"),
    "shared_loads": re.compile(r"LDSM?"),
    "shared_stores": re.compile(r"STSM?"),
}


def resources(text: str) -> dict[str, int]:
    """``registers`` of a thread and ``stack_bytes``, the most of any function.

    Raises:
        ValueError: The text has no such line.
    """
    found = [(int(r), int(s)) for r, s in _USAGE.findall(text)]
    if not found:
        raise ValueError(f"cuobjdump reports no resource usage: {text[:200]!r}")
    return {"registers": max(r for r, _ in found), "stack_bytes": max(s for _, s in found)}


def instruction_mix(text: str) -> dict[str, int]:
    """Instructions in the code, each counted once however often it runs, and ``spill_bytes``.

    ``spill_bytes`` are those that local loads and stores move in each thread if each runs once. It
    equals what ``ptxas -v`` calls spill stores plus spill loads unless a kernel has local arrays,
    which Triton's have not.
    """
    mix = Counter[str](dict.fromkeys(("instructions", "spill_bytes", *_KINDS), 0))
    for name, modifiers in _INSTRUCTION.findall(text):
        mix["instructions"] += name != "NOP"
        if name in ("LDL", "STL"):
            widths = [_BYTES[m] for m in modifiers.split(".") if m in _BYTES]
            mix["spill_bytes"] += widths[0] if widths else 4
        for kind, pattern in _KINDS.items():
            if pattern.fullmatch(name):
                mix[kind] += 1
    return dict(mix)
