"""Texts that a model might write, bent; and what must hold whatever they are."""

from __future__ import annotations

import re

from hypothesis import strategies as st

from evotune.errors import Rejected
from evotune.program import Sandbox, extract
from evotune.program.answers import ANSWER_BYTES, PROPOSALS
from evotune.space import ConfigSpace
from tests.program import corpus

SPACE = ConfigSpace.from_dict(corpus.SPACE, corpus.CONSTRAINTS)
# Where nobody minds: the path cannot be made, the port is never listened on.
PLACES = {"{canary}": "/proc/canary", "{secret}": "/proc/self/environ", "{port}": "1"}

# What parsers trip over: delimiters, keywords, numbers at limits, and characters of odd width.
TOKENS = [
    *"()[]{}'\"\\`~#:,;=@\n\t\r\0\f", "'''", '"""', "```", "```python\n", "~~~", "f'{", "}'", "\\\n", "\\N{", "\\x",
    "def get_kernel_config():\n", "    return ", "lambda: ", "async ", "await ", "yield ", "global ", "class A:\n",
    "try:\n", "except:\n", "while 1:\n", "for i in ", "if ", "else ", "match ", "case ", "import ", "from ",
    "print(", "True", "None", "nan", "NaN", "1e999", "-0", "0x", "1_0", "9" * 30, "2**63", "**", "<<", "//", ":=",
    "->", "...", "\ud800", "\u202e", "\ufeff", "\u0664", "\uff44ef", "\U000e0041", "\u2028", "\x1b[2J", "null",
    "true", '{"configs": [', '{"programs": ["', '"BLOCK_M": 64', "}]", "<<<<<<< SEARCH", ">>>>>>> REPLACE",
]  # fmt: skip


def _hostile() -> list[str]:
    out = [p for programs in corpus.HOSTILE.values() for p in programs] + corpus.SWALLOWING
    for name, place in PLACES.items():
        out = [program.replace(name, place) for program in out]
    return out


FENCED = [f"Try this:\n\n```python\n{program}```\nIt is fast.\n" for program in corpus.LEGITIMATE]
# Half of them good: a bent bomb is refused for what it was before.
ORIGINALS = st.sampled_from(corpus.LEGITIMATE) | st.sampled_from(_hostile() + FENCED)


@st.composite
def bent(draw: st.DrawFn) -> str:
    """A program or an answer after a few cuts, copies, insertions and grafts."""
    text = draw(ORIGINALS)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(["number", "cut", "copy", "token", "graft", "text"]))
        if kind == "number":
            number = draw(st.sampled_from([16, 32, 64, 1, 0, -1, 0.5, 1e308, 2**63]))
            text = text[:start] + re.sub(r"\d+", str(number), text[start:], count=1)
        elif kind == "cut":
            text = text[:start] + text[end:]
        elif kind == "copy":
            text = text[:end] + text[start:end] * draw(st.integers(1, 50)) + text[end:]
        elif kind == "token":
            text = text[:start] + draw(st.sampled_from(TOKENS)) * draw(st.integers(1, 3)) + text[start:]
        elif kind == "graft":
            text = text[:start] + draw(ORIGINALS) + text[end:]
        else:
            text = text[:start] + draw(st.text(max_size=20)) + text[end:]
    return text


def check_extraction(answer: str) -> None:
    """Nothing is raised, and what is found is bounded and of the promised types."""
    found = extract(answer)
    assert found.proposals or found.rejections
    assert len(found.proposals) + len(found.rejections) <= PROPOSALS + 1
    for proposal in found.proposals:
        assert len(proposal.text) <= 8 * ANSWER_BYTES
        assert proposal.config is None or type(proposal.config) is dict
    for rejection in found.rejections:
        check_reason(rejection)


def check_run(sandbox: Sandbox, program: str) -> bool:
    """Either a legal configuration of exact types or a clean rejection; which of them."""
    try:
        config = sandbox.run(program, SPACE)
    except Rejected as rejection:
        check_reason(rejection)
        return False
    assert SPACE.violations(config) == []
    for name, value in config.items():
        assert any(type(value) is type(legal) and value == legal for legal in SPACE.parameters[name].values)
    return True


def check_reason(rejection: Rejected) -> None:
    """What a person or a model is shown is short, plain text."""
    assert rejection.stage in ("parse", "validate")
    assert rejection.reason.isascii()
    assert rejection.reason.isprintable()
    assert len(rejection.reason) <= 2000
