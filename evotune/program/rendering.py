"""A configuration as a program, and back without an interpreter."""

from __future__ import annotations

from evotune.space import Config, ConfigSpace, Value

SHOWN_VALUES = 32
INDENT = " " * 8
SUMMARY = "One legal configuration; each comment lists the values that a parameter can take."


def render(config: Config, space: ConfigSpace) -> str:
    """A program whose ``get_kernel_config()`` returns a legal configuration.

    Comments name the values of each parameter and the constraints, so that whoever edits the
    program needs nothing else. It is ASCII; the same configuration always gives the same text.

    Raises:
        UsageError: The configuration is not legal.
    """
    space.validate(config)
    lines = [
        "def get_kernel_config():",
        f'    """{SUMMARY}"""',
        *(f"    # Must hold: {_one_line(c.text)}" for c in space.constraints),
        *(f"    # where {name} = {value!a}" for name, value in space.constants.items()),
        "    return {",
        *(_line(space, name, config[name]) for name in space.names),
        "    }",
    ]
    return "\n".join(lines) + "\n"


def read_back(program: str, space: ConfigSpace) -> dict[str, Value] | None:
    """The configuration that :func:`render` made this exact text from, or None if it did not."""
    if SUMMARY not in program:
        return None
    lines = set(program.split("\n"))
    config: dict[str, Value] = {}
    for name, parameter in space.parameters.items():
        for value in parameter.values:
            if _line(space, name, value) in lines:
                config[name] = value
    if space.violations(config) or render(config, space) != program:
        return None
    return config


def _line(space: ConfigSpace, name: str, value: Value) -> str:
    values = space.parameters[name].values
    shown = ", ".join(f"{v!a}" for v in values[:SHOWN_VALUES])
    if len(values) > SHOWN_VALUES:
        shown += f", ... {values[-1]!a} ({len(values)} values)"
    return f"{INDENT}{name!a}: {value!a},  # {shown}"


def _one_line(text: str) -> str:
    return ascii(" ".join(text.split()))[1:-1]
