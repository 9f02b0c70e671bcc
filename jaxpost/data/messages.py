"""Messages, tools and template arguments of a row, checked before a chat template sees them."""

import json
from collections.abc import Mapping
from typing import Any

from jaxpost.core.errors import InputError

# Arguments of the renderer itself: a row must not overrule them through `chat_template_kwargs`.
RESERVED_TEMPLATE_KWARGS = (
    *("messages", "conversations", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    "return_assistant_tokens_mask",
)


def kind_of(value: Any) -> str:
    """A JSON value's type in words, for messages.

    >>> kind_of(None), kind_of([1])
    ('null', 'a list')
    """
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def check_messages(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    """The column `name` as messages, each with a role and a content."""
    if not isinstance(value, list):
        both = "a string if the other is one, else " if name in ("prompt", "completion") else ""
        raise InputError(f"`{name}` must be {both}a list of messages; got {kind_of(value)} at {where}. Fix the row.")
    for index, message in enumerate(value):
        _check_message(message, f"{name}[{index}]", where)
    return value


def _check_message(message: Any, name: str, where: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        got = f"the keys {', '.join(map(json.dumps, message))}" if isinstance(message, dict) else kind_of(message)
        sharegpt = name.startswith("messages") and isinstance(message, dict) and "from" in message
        hint = " Name the column `conversations`." if sharegpt else ""
        raise InputError(
            f'`{name}` must be {{"role": string, "content": ...}}; got {got} at {where}. Fix or remove the row.{hint}'
        )
    if message["role"] == "assistant" and message.get("weight") not in (None, 1):
        raise InputError(
            f"`{name}.weight` must be 1: each turn of the assistant is trained; got {message['weight']} at {where}. "
            "Cut the conversation before the turn, or write it as `prompt` and `completion`."
        )
    _check_content(message, f"{name}.content", where)
    _check_calls(message, name, where)


def _check_content(message: Mapping[str, Any], name: str, where: str) -> None:
    content = message.get("content")
    # Templates write a missing content as an empty turn and an object as its spelling: either would be trained.
    if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
        raise InputError(
            f"`{name}` must be a string or a list of parts; got {kind_of(content)} at {where}. Fix or remove the row."
        )
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = f"the type {json.dumps(part.get('type'))}" if isinstance(part, dict) else kind_of(part)
            raise InputError(
                f'`{name}[{index}]` must be {{"type": "text", "text": string}}, as only text is trained; got {kind} at '
                f"{where}. Fix or remove the row."
            )


def _check_calls(message: Mapping[str, Any], name: str, where: str) -> None:
    """Calls of tools by name; a call that a template cannot read would be left out of the turn without a word."""
    if message.get("function_call") is not None:
        raise InputError(
            f"`{name}.function_call` is the old spelling of a call, which templates leave out; got it at {where}. "
            'Write `tool_calls`: [{"type": "function", "function": {"name": ..., "arguments": {...}}}].'
        )
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(map(called, calls))):
        got = "a call without a name" if isinstance(calls, list) else kind_of(calls)
        raise InputError(
            f'`{name}.tool_calls` must be a list of {{"function": {{"name": string, "arguments": ...}}}}; got {got} at '
            f"{where}. Fix or remove the row."
        )


def called(tool: Any) -> str:
    """The name of a tool's description or of a call, empty where it has none.

    >>> called({"type": "function", "function": {"name": "look_up"}}), called({"name": "look_up"}), called("look_up")
    ('look_up', 'look_up', '')
    """
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""


def text_of(content: Any) -> str:
    """A content as text: its parts joined, nothing for null.

    >>> text_of([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), text_of(None)
    ('ab', '')
    """
    return "".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def tools_of(value: Any, where: str) -> list[Any] | None:
    """The column `tools`. No tools is None, never an empty list: templates ask `tools is not none` before they write
    their boilerplate."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise InputError(
                f"`tools` must be a list or its JSON; got other text at {where}. Fix or remove it."
            ) from None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        got = "a list with other things" if isinstance(value, list) else kind_of(value)
        raise InputError(f"`tools` must be a list of tool objects; got {got} at {where}. Fix or remove it.")
    return value


def template_kwargs_of(value: Any, where: str) -> Mapping[str, Any]:
    """The column `chat_template_kwargs`: arguments of the template."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(
            f"`chat_template_kwargs` must be an object; got {kind_of(value)} at {where}. Fix or remove it."
        )
    for name in RESERVED_TEMPLATE_KWARGS:
        if name in value:
            raise InputError(f"`chat_template_kwargs` must not hold `{name}`; it does at {where}. Remove it.")
    return value
