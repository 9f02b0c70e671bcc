"""Marks in the strings of a row, where they spell control tokens: before its template sees them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.data.chat.controls import Controls
from jaxpost.data.chat.reasoning import CLOSE, reasoning_of, split_reasoning
from jaxpost.data.chat.respell import MEANT, SAID
from jaxpost.data.rows import ChatRow


def mark_row(controls: Controls, row: ChatRow, thinks: bool) -> tuple[ChatRow, bool]:
    """The row with a mark in every control token that its strings spell or begin at their end, and whether one is
    spelled in full. `thinks`: the template knows `</think>`, so an answer may hold it without its opening.

    Raises:
      InputError: the row holds one of the private characters as well.
    """
    if not controls.ids:
        return row, False
    marker = _Marker(controls=controls, thinks=thinks)
    messages = [marker.message(message) for message in row.messages]
    tools, kwargs = marker.value(row.tools), marker.value(dict(row.template_kwargs))
    if not marker.marked:
        return row, False
    if marker.private:
        raise InputError(
            "a row that spells control tokens must not hold the private characters U+E5C3 and U+E5C4 as well; got "
            f"one at {row.where}. Remove them."
        )
    return dataclasses.replace(row, messages=messages, tools=tools, template_kwargs=kwargs), marker.spelled


@dataclasses.dataclass(kw_only=True)
class _Marker:
    """Goes through the strings of one row and remembers what it met."""

    controls: Controls
    thinks: bool
    marked: bool = False
    spelled: bool = False
    private: bool = False

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list) else value

    def text(self, text: str) -> str:
        self.private = self.private or SAID in text or MEANT in text
        marked = self.controls.mark_text(text)
        if marked != text:
            self.marked = True
            self.spelled = self.spelled or self.controls.spells(text)
        return marked

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        answers = message.get("role") == "assistant" and reasoning_of(message) is None
        content = self.answer if answers else self.value
        return {self.value(k): content(v) if k == "content" else self.value(v) for k, v in message.items()}

    def answer(self, content: Any) -> Any:
        """An answer: the marks round the reasoning that it starts with stay as they are."""
        if isinstance(content, list) and content and isinstance(content[0], Mapping) and "text" in content[0]:
            first = {self.value(k): (self.answer if k == "text" else self.value)(v) for k, v in content[0].items()}
            return [first, *self.value(content[1:])]
        parts = split_reasoning(content, self.thinks)
        if parts is None:
            return self.value(content)
        thought, rest = self.text(parts.thought), self.text(parts.rest)
        return f"{parts.opening}{thought}{CLOSE}{rest}"
