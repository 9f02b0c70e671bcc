"""The forms of row that can be trained on, made from a dictionary of columns.

Four forms are understood; columns beside these are ignored, but for `tools` and `chat_template_kwargs` of rows that go
through a chat template:

    {"text": "..."}                                     language modelling, every token is trained
    {"prompt": ..., "completion": ...}                  two strings, or two message lists; the completion is trained
    {"messages": [{"role": ..., "content": ...}, ...]}  a conversation, the assistant's turns are trained
    {"conversations": [{"from": ..., "value": ...}]}    the same in ShareGPT's spelling, with a `system` column or none
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from jaxpost.core.errors import InputError, suggestion
from jaxpost.data.sharegpt import to_messages

FORMS = (("text",), ("prompt", "completion"), ("messages",), ("conversations",))
COLUMNS = {name for form in FORMS for name in form} | {"system", "tools", "chat_template_kwargs"}
MAX_DEPTH = 100  # of lists and objects in a row
# Arguments of the renderer itself: a row must not overrule them through `chat_template_kwargs`.
RESERVED_TEMPLATE_KWARGS = (
    *("messages", "conversations", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    "return_assistant_tokens_mask",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRow:
    """A `text` row. `source` is the row's number over all files, from 1; `where` names its file and line."""

    source: int
    where: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionRow:
    """A `prompt` + `completion` row of two strings, joined without a template."""

    source: int
    where: str
    prompt: str
    completion: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRow:
    """A conversation. Assistant turns from message `trained_from` (0-based) on are trained.

    A `prompt` + `completion` row of message lists is the joined conversation with `trained_from = len(prompt)`.
    `date` is the day that a template is told which asks for it, YYYY-MM-DD; None is today.
    """

    source: int
    where: str
    messages: list[dict[str, Any]]
    trained_from: int = 0
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    date: str | None = None


Row = TextRow | CompletionRow | ChatRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be read or trained, and the one line that says why."""

    source: int
    where: str
    reason: str


def make_row(columns: Mapping[str, Any], *, source: int, where: str) -> Row:
    """One row from its columns; a column that is null counts as absent.

    >>> make_row({"text": "hello", "id": 7}, source=1, where="data.jsonl line 1")
    TextRow(source=1, where='data.jsonl line 1', text='hello')
    """
    form = _form(columns, where)
    _check_depth([columns.get(name) for name in COLUMNS], where)
    if form == ("text",):
        _refuse_template_columns(columns, where)
        return TextRow(source=source, where=where, text=_string(columns, "text", where))
    if form == ("messages",):
        messages, trained_from = check_messages(columns["messages"], "messages", where), 0
    elif form == ("conversations",):
        system = None if columns.get("system") is None else _string(columns, "system", where)
        turns = to_messages(columns["conversations"], system, where)
        messages, trained_from = check_messages(turns, "conversations", where), 0
    elif all(isinstance(columns[name], str) for name in form):
        _refuse_template_columns(columns, where)
        return CompletionRow(source=source, where=where, prompt=columns["prompt"], completion=columns["completion"])
    else:
        prompt, completion = (check_messages(columns[name], name, where) for name in form)
        messages, trained_from = prompt + completion, len(prompt)
    return ChatRow(
        source=source,
        where=where,
        messages=messages,
        trained_from=trained_from,
        tools=tools_of(columns.get("tools"), where),
        template_kwargs=template_kwargs_of(columns.get("chat_template_kwargs"), where),
    )


def kind_of(value: Any) -> str:
    """A JSON value's type in words, for messages.

    >>> kind_of(None), kind_of([1])
    ('null', 'a list')
    """
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def _form(columns: Mapping[str, Any], where: str) -> tuple[str, ...]:
    found = tuple(name for form in FORMS for name in form if columns.get(name) is not None)
    if found in FORMS:
        return found
    expected = "`text`, or `prompt` and `completion`, or `messages`, or `conversations`"
    if found and found not in (("prompt",), ("completion",)):
        names = ", ".join(found)
        raise InputError(f"a row must have one of {expected}; got {names} at {where}. Remove the columns of one form.")
    known = [name for form in FORMS for name in form]
    hint = next(filter(None, (suggestion(name, known) for name in columns if name not in known)), "")
    names = ", ".join(json.dumps(name[:40]) for name in list(columns)[:8]) or "no column"
    raise InputError(f"a row must have {expected}; got {names} at {where}. Rename or convert the columns.{hint}")


def _check_depth(values: list[Any], where: str) -> None:
    """Templates, and what encodes their text, go into values by recursion."""
    for _ in range(MAX_DEPTH):
        values = [inner for value in values for inner in _inside(value)]
        if not values:
            return
    raise InputError(f"a row must be nested at most {MAX_DEPTH} deep; got more at {where}. Fix or remove the row.")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _string(columns: Mapping[str, Any], name: str, where: str) -> str:
    value = columns[name]
    if not isinstance(value, str):
        raise InputError(f"`{name}` must be a string; got {kind_of(value)} at {where}. Fix or remove the row.")
    return value


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


def _refuse_template_columns(columns: Mapping[str, Any], where: str) -> None:
    if tools_of(columns.get("tools"), where) or columns.get("chat_template_kwargs"):
        name = "chat_template_kwargs" if columns.get("chat_template_kwargs") else "tools"
        raise InputError(
            f"`{name}` needs a row of messages, since plain text goes through no chat template; got it at {where}. "
            "Write the row as messages, or remove the column."
        )
