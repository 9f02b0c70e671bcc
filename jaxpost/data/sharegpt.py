"""ShareGPT's spelling of a conversation, `{"conversations": [{"from": "human", "value": ...}, ...]}`, as messages."""

from collections.abc import Mapping
from typing import Any

from jaxpost.core.errors import InputError, suggestion

# Speakers found in published files -> the role that chat templates know.
ROLES: Mapping[str, str] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def to_messages(turns: Any, system: str | None, where: str) -> Any:
    """The turns as messages, after `system` (a column of its own in LLaMA-Factory's files) where there is one.

    Turns that are messages already, and what is no turn at all, come back as they are: `rows` checks messages.

    >>> to_messages([{"from": "human", "value": "Hi"}], "Be brief.", "line 1")
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]

    Raises:
      InputError: an unknown speaker, a turn without `from` or `value`, or a `system` column beside a system turn.
    """
    if not isinstance(turns, list):
        return turns
    messages = [_message(turn, index, where) for index, turn in enumerate(turns)]
    if not system:
        return messages
    if any(isinstance(message, dict) and message.get("role") == "system" for message in messages):
        raise InputError(
            f"`conversations` must have one system turn; got one and a `system` column at {where}. Remove one."
        )
    return [{"role": "system", "content": system}, *messages]


def _message(turn: Any, index: int, where: str) -> Any:
    if not isinstance(turn, dict) or (turn.get("from") is None and "role" in turn):
        return turn
    if not {"from", "value"} <= turn.keys():
        names = ", ".join(turn) or "none"
        raise InputError(f"`conversations[{index}]` must have `from` and `value`; got {names[:80]} at {where}. Fix it.")
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise InputError(
            f"`conversations[{index}].from` must be one of {', '.join(ROLES)}; got {str(speaker)[:40]!r} at {where}. "
            f"Rename it, or write the row as `messages`.{suggestion(str(speaker), ROLES)}"
        )
    rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
    return {"role": ROLES[speaker], "content": turn["value"], **rest}
