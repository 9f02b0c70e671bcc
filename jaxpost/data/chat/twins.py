"""Our own tagged templates of the families: the third rung, for templates that neither tags nor prefixes can mark.

A checkpoint's template is never replaced. A twin of it says where the assistant speaks, after it has rendered the same
bytes: of each trial conversation that the checkpoint's template takes, and of the row at hand.
"""

import functools
import importlib.resources
from collections.abc import Iterator, Mapping
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.data.chat.spans import Spoken, after_prompt
from jaxpost.data.chat.template import render
from jaxpost.data.chat.turns import Chat
from jaxpost.data.rows import ChatRow

_CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "look_up", "arguments": {"what": "a b", "n": 2}}}
_TEXT_CALL = {**_CALL, "function": {"name": "look_up", "arguments": '{"what": "a b", "n": 2}'}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Finds it.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
    },
}
_SYSTEM = {"role": "system", "content": " Be brief. "}
_ASK, _ASK_AGAIN = {"role": "user", "content": " one\n"}, {"role": "user", "content": "two"}
_SAY, _SAY_AGAIN = {"role": "assistant", "content": "\nyes "}, {"role": "assistant", "content": "no"}
_THINK = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}
_THINK_BESIDE = {"role": "assistant", "content": "yes", "reasoning_content": "\nhm "}
_RESULT = {"role": "tool", "content": "found", "tool_call_id": "abcdefghi"}


def _calls(content: str | None, call: Mapping[str, Any] = _CALL, number: int = 1) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": [call] * number}


# (messages, tools): what templates differ in. A template need not take them all.
PROBES: tuple[tuple[list[dict[str, Any]], list[Any] | None], ...] = (
    ([_ASK, _SAY], None),
    ([_SYSTEM, _ASK, _SAY, _ASK_AGAIN, _SAY_AGAIN], None),
    ([_ASK, {"role": "assistant", "content": ""}, {"role": "user", "content": ""}, _SAY], None),
    ([_ASK, _THINK], None),
    ([_ASK, _THINK, _ASK_AGAIN, _THINK_BESIDE], None),
    ([_SYSTEM, _ASK, _THINK_BESIDE, _ASK_AGAIN, _SAY], None),
    ([_ASK, _SAY], [_TOOL]),
    ([_SYSTEM, _ASK, _calls(""), _RESULT, _SAY], [_TOOL, _TOOL]),
    ([_ASK, _calls(None, _TEXT_CALL), _RESULT, _RESULT, _SAY, _ASK_AGAIN, _SAY_AGAIN], [_TOOL]),
    ([_ASK, _calls("wait", number=2), _RESULT, _RESULT, _calls("<think>\nhm\n</think>\n\nso"), _RESULT, _SAY], None),
    ([_ASK, _SAY_AGAIN, _SYSTEM, _ASK_AGAIN, _SAY], None),
)


def twin_spans(chat: Chat, row: ChatRow, template: str) -> Spoken | None:
    """The assistant's turns by a twin of the template; None if no twin renders this row as the template does."""
    text = render(chat.tokenizer, template, row).text
    for twin in proven(chat, template):
        try:
            rendered = render(chat.tokenizer, twin, row, spans=True)
        except InputError:
            continue
        said = sum(message["role"] == "assistant" for message in row.messages)
        if rendered.text == text and len(rendered.spans) == said:
            first = sum(message["role"] == "assistant" for message in row.messages[: row.trained_from])
            supplied = chat.marks(template, row).supplied
            return Spoken(text=text, spans=after_prompt(text, rendered.spans[first:], supplied))
    return None


def proven(chat: Chat, template: str) -> list[str]:
    """Our templates that render every trial conversation as `template` does."""
    if template not in chat.twins:
        wanted = _renderings(chat.tokenizer, template)
        chat.twins[template] = [twin for twin in family_templates().values() if _agrees(chat, twin, wanted)]
    return chat.twins[template]


@functools.cache
def family_templates() -> Mapping[str, str]:
    """Name of a family -> our template for it."""
    folder = importlib.resources.files("jaxpost.data.chat") / "templates"
    found = sorted((file.name, file) for file in folder.iterdir() if file.name.endswith(".jinja"))
    return {name.removesuffix(".jinja"): file.read_text(encoding="utf-8").rstrip("\n") for name, file in found}


def trial_rows() -> Iterator[ChatRow]:
    """The trial conversations as rows."""
    for messages, tools in PROBES:
        yield ChatRow(source=0, where="a trial conversation", messages=messages, tools=tools)


def _renderings(tokenizer: Any, template: str) -> list[str | None]:
    return [_rendering(tokenizer, template, row) for row in trial_rows()]


def _rendering(tokenizer: Any, template: str, row: ChatRow) -> str | None:
    try:
        return render(tokenizer, template, row).text
    except InputError:
        return None


def _agrees(chat: Chat, twin: str, wanted: list[str | None]) -> bool:
    known = [(row, text) for row, text in zip(trial_rows(), wanted, strict=True) if text is not None]
    return bool(known) and all(_rendering(chat.tokenizer, twin, row) == text for row, text in known)
