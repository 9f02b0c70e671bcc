"""The forms of row that can be trained on, made from a dictionary of columns.

Four forms are understood; columns beside these are ignored, but for `tools` and `chat_template_kwargs` of rows that go
through a chat template:

    {"text": "..."}                                     language modelling, every token is trained
    {"prompt": ..., "completion": ...}                  two strings, or two message lists; the completion is trained
    {"messages": [{"role": ..., "content": ...}, ...]}  a conversation, the assistant's turns are trained
    {"conversations": [{"from": ..., "value": ...}]}    the same in ShareGPT's spelling, with a `system` column or none
"""

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping
from typing import Any

from jaxpost.core.errors import InputError, suggestion
from jaxpost.data.messages import check_messages, kind_of, template_kwargs_of, tools_of
from jaxpost.data.sharegpt import to_messages

FORMS = (("text",), ("prompt", "completion"), ("messages",), ("conversations",))
COLUMNS = {name for form in FORMS for name in form} | {"system", "tools", "chat_template_kwargs"}
MAX_DEPTH = 100  # of lists and objects in a row


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
    `date` is the day that a template is told which asks for it; None is today.
    """

    source: int
    where: str
    messages: list[dict[str, Any]]
    trained_from: int = 0
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    date: datetime.date | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.date, datetime.date | None):
            raise InputError(f"`date` must be a day, datetime.date(2025, 1, 31) say, or None; got {self.date!r}.")


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


def _refuse_template_columns(columns: Mapping[str, Any], where: str) -> None:
    if tools_of(columns.get("tools"), where) or columns.get("chat_template_kwargs"):
        name = "chat_template_kwargs" if columns.get("chat_template_kwargs") else "tools"
        raise InputError(
            f"`{name}` needs a row of messages, since plain text goes through no chat template; got it at {where}. "
            "Write the row as messages, or remove the column."
        )
