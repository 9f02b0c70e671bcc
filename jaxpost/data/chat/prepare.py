"""A row made ready for its template: the template chosen, what only we know put right, control tokens marked."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.data.chat.marking import mark_row
from jaxpost.data.chat.reasoning import reasoning_of, split_reasoning
from jaxpost.data.chat.template import TurnMarks, folder_of, template_of
from jaxpost.data.chat.turns import Chat, turns_of
from jaxpost.data.messages import called, text_of
from jaxpost.data.rows import ChatRow

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """A row to render.

    Attributes:
      row: with marks in the control tokens that its strings spell.
      template: the text of the chat template for it.
      turn: what the template puts round an answer.
      marked: the row has marks, so its text is not for the tokenizer as it is.
      spelled: a string of the row spells a control token.
    """

    row: ChatRow
    template: str
    turn: TurnMarks
    marked: bool
    spelled: bool


def prepare(chat: Chat, row: ChatRow) -> Ready:
    """The row as its template is to see it.

    Raises:
      InputError: a tokenizer without template or not a fast one; contents that the template would drop.
    """
    chat.check_fast()
    template = template_of(chat.tokenizer, row)
    _check_roles(chat, row)
    turn = chat.marks(template, row)
    if not turn.shows_strings and any(isinstance(message.get("content"), str) for message in row.messages):
        raise InputError(
            f"the chat template of {folder_of(chat.tokenizer)} must show contents that are strings; it drops them (row "
            f'at {row.where}). Write each content as [{{"type": "text", "text": ...}}].'
        )
    messages = [_message(message, turn) for message in row.messages]
    plain = dataclasses.replace(row, messages=messages)
    marked, spelled = mark_row(chat.controls, plain, "</think>" in template or bool(turn.opening))
    return Ready(row=marked, template=template, turn=turn, marked=marked is not plain, spelled=spelled)


def _check_roles(chat: Chat, row: ChatRow) -> None:
    """Templates make a control token of the role, `<|user|>` of "user": no other role may spell one."""
    for index, message in enumerate(row.messages):
        role = message["role"]
        if role not in ROLES and f"<|{role}|>" in chat.controls.ids:
            raise InputError(
                f"`messages[{index}].role` must not be the name of a control token; got {role!r} at {row.where}. "
                f"Use one of {', '.join(ROLES)}."
            )


def _message(message: dict[str, Any], turn: TurnMarks) -> dict[str, Any]:
    content, reasoning = message.get("content"), reasoning_of(message)
    if isinstance(content, list) and turn.shows_strings:  # most templates write a list as Python spells it, or drop it
        content = text_of(content)
        message = {**message, "content": content}
    if reasoning is not None:
        message = {**message, "reasoning_content": reasoning}
    if message["role"] == "assistant" and turn.opening and reasoning is None and isinstance(content, str):
        parts = split_reasoning(content, True)
        if parts is not None and not parts.opening:  # a sampled answer: the prompt had opened its reasoning
            message = {**message, "content": turn.opening + content.lstrip()}
    if turn.quotes_arguments and message.get("tool_calls"):
        message = {**message, "tool_calls": [_call(call) for call in message["tool_calls"]]}
    return message


def _call(call: Any) -> Any:
    """A tool call whose arguments are an object: the template writes them as JSON, and would do so with JSON too."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"])}
    try:
        arguments = json.loads(call["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    return {**call, "arguments": arguments} if isinstance(arguments, dict) else call


def check_shown(chat: Chat, ready: Ready, text: str, turns: Mapping[int, str]) -> None:
    """InputError unless tools are in the text of the conversation, and all that a trained turn says in its text."""
    for tool in ready.row.tools or []:
        _require(chat, ready, "tools", called(tool), text)
    for index, said in turns.items():
        message = ready.row.messages[index]
        _require(chat, ready, f"messages[{index}].reasoning_content", _reasoning(message), said)
        _require(chat, ready, f"messages[{index}].content", _answer(message), said)
        for call in message.get("tool_calls") or []:
            _require(chat, ready, f"messages[{index}].tool_calls", called(call), said)


def all_shown(ready: Ready, text: str) -> bool:
    """Whether every message is in the text: some templates leave those of the system, of tools or of roles out that
    they do not know."""
    return all(_shows(text, _answer(message)) for message in ready.row.messages)


def _shows(text: str, wanted: str) -> bool:
    return wanted in text or json.dumps(wanted, ensure_ascii=False)[1:-1] in text


def _require(chat: Chat, ready: Ready, what: str, wanted: str, text: str) -> None:
    if not _shows(text, wanted):
        way_out = (
            "Give another template, or end the row with that turn."
            if "reasoning" in what
            else "Give another template, or take it out."
        )
        raise InputError(
            f"the chat template of {folder_of(chat.tokenizer)} must show `{what}` of the row at {ready.row.where}, or "
            f"the model is not trained on it; it drops it. {way_out}"
        )


def _reasoning(message: Mapping[str, Any]) -> str:
    beside, parts = reasoning_of(message), split_reasoning(text_of(message.get("content")), False)
    return (beside if beside is not None else parts.thought if parts else "").strip()


def _answer(message: Mapping[str, Any]) -> str:
    """What a message says beside its reasoning."""
    text = text_of(message.get("content"))
    parts = split_reasoning(text, True) if message["role"] == "assistant" else None
    return (parts.rest if parts else text).strip()


def spoken_turns(row: ChatRow, text: str, spans: Any) -> dict[int, str]:
    """Message -> its trained text, where each turn has a span of its own."""
    turns = turns_of(row)
    if len(turns) != len(spans):
        return dict.fromkeys(turns, text)
    return {turn: text[start:end] for turn, (start, end) in zip(turns, spans, strict=True)}
