"""What a model costs, from the price file: the table of docs/models.md.

python benchmarks/model_costs.py
"""

from __future__ import annotations

from pathlib import Path

import yaml

import evotune.llm
from evotune.llm.prices import price_of
from evotune.llm.provider import Usage
from evotune.settings import Settings

# An answer of eight configurations as JSON is about this long; a reasoning model writes more before it.
ANSWER_TOKENS = 700
CALLS = 10


def table() -> str:
    """Dollars of a call and of a run, for each model with a price."""
    llm, prompt = Settings().llm, Settings().prompt
    models = yaml.safe_load((Path(evotune.llm.__file__).parent / "prices.yaml").read_text(encoding="utf-8"))
    lines = [
        f"| model | a call, USD | {CALLS} calls, USD | a call at worst, USD |",
        "|---|--:|--:|--:|",
    ]
    for model in models:
        price = price_of(model)
        assert price is not None
        call = price.usd(Usage(prompt.budget_tokens, ANSWER_TOKENS))
        worst = price.worst_usd(prompt.budget_tokens, llm.max_output_tokens)
        lines.append(f"| {model} | {call:.4f} | {CALLS * call:.3f} | {worst:.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
