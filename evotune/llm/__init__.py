"""Language models: who is asked, what they are told, and what happens when they do not answer.

:func:`resolve` chooses a provider, :class:`Policy` asks it within limits, :class:`LlmClient` does so
in the background, and :class:`PromptBuilder` writes the question. Importing this imports no SDK.
"""

from evotune.llm.choose import Choice, Options, resolve
from evotune.llm.client import LlmClient, Prompt, preflight
from evotune.llm.limits import Amount, Caps
from evotune.llm.mock import MockProvider
from evotune.llm.offline import HumanProvider, NoProvider, Recorder, ReplayProvider
from evotune.llm.policy import Call, Policy, Retry
from evotune.llm.prices import Price
from evotune.llm.prompt import Context, Failed, Focus, PromptBuilder, Roofline, Scored, answer_schema
from evotune.llm.provider import CapReached, Completion, Provider, Refused, Unusable, Usage

__all__ = [
    "Amount",
    "Call",
    "CapReached",
    "Caps",
    "Choice",
    "Completion",
    "Context",
    "Failed",
    "Focus",
    "HumanProvider",
    "LlmClient",
    "MockProvider",
    "NoProvider",
    "Options",
    "Policy",
    "Price",
    "Prompt",
    "PromptBuilder",
    "Provider",
    "Recorder",
    "Refused",
    "ReplayProvider",
    "Retry",
    "Roofline",
    "Scored",
    "Unusable",
    "Usage",
    "answer_schema",
    "preflight",
    "resolve",
]
