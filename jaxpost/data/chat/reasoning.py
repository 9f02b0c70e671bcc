"""Reasoning in an answer: beside its content, or at the content's start."""

from collections.abc import Mapping
from typing import Any, NamedTuple

OPEN, CLOSE = "<think>", "</think>"


class Reasoned(NamedTuple):
    """An answer that starts with its reasoning: `opening` + `thought` + `</think>` + `rest`; `opening` may be empty."""

    opening: str
    thought: str
    rest: str


def split_reasoning(content: Any, thinks: bool) -> Reasoned | None:
    """The parts of an answer that starts with its reasoning, None for any other.

    Args:
      thinks: `</think>` alone counts as well: the template knows it, so a prompt may have opened the reasoning.

    >>> split_reasoning("<think>hm</think>yes", False)
    Reasoned(opening='<think>', thought='hm', rest='yes')
    >>> split_reasoning("say </think>", False)
    """
    if not isinstance(content, str) or CLOSE not in content:
        return None
    before, _, rest = content.partition(CLOSE)
    thought = before.lstrip().removeprefix(OPEN)
    if before.lstrip().startswith(OPEN):
        return Reasoned(before[: len(before) - len(thought)], thought, rest)
    return Reasoned("", before, rest) if thinks and OPEN not in before else None


def reasoning_of(message: Mapping[str, Any]) -> str | None:
    """The reasoning that a message holds beside its content, under any of the names in use."""
    found = (message.get(name) for name in ("reasoning_content", "thinking", "reasoning"))
    return next((text for text in found if isinstance(text, str)), None)
