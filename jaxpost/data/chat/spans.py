"""Where the assistant speaks in a rendered conversation: by the template's own tags, or by rendering turn by turn.

Never by looking for the text of an answer: the same words may stand in a question.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.data.chat.template import folder_of, render
from jaxpost.data.chat.turns import Chat, turns_of
from jaxpost.data.rows import ChatRow

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoken:
    """The text of a conversation, and the characters of it that are to be trained, turn by turn."""

    text: str
    spans: Sequence[Span]


def tagged_spans(chat: Chat, row: ChatRow, template: str) -> Spoken:
    """What the template puts between generation tags, less what a generation prompt supplies of it."""
    rendered = render(chat.tokenizer, template, row, spans=True)
    spans = rendered.spans[_untrained(chat, row, template, len(rendered.spans)) :]
    return Spoken(text=rendered.text, spans=after_prompt(rendered.text, spans, chat.marks(template, row).supplied))


def prefix_spans(chat: Chat, row: ChatRow, template: str) -> Spoken:
    """The assistant's turns, by rendering the conversation before and after each of them.

    Raises:
      InputError: the renderings do not make up the whole conversation.
    """
    text = render(chat.tokenizer, template, row).text
    spans = []
    for turn in turns_of(row):
        try:
            before = render(chat.tokenizer, template, row, end=turn, prompt=True).text
            after = render(chat.tokenizer, template, row, end=turn + 1).text
        except InputError:
            raise _untrainable(chat, row, turn, "cannot render the conversation up to there") from None
        if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):
            raise _untrainable(
                chat, row, turn, "renders the conversation up to there in another way when it ends there"
            )
        spans.append((len(before), len(after)))
    return Spoken(text=text, spans=spans)


def _untrainable(chat: Chat, row: ChatRow, turn: int, problem: str) -> InputError:
    return InputError(
        "the chat template must mark the assistant's turns with {% generation %} tags, or render each turn the same "
        f"whatever follows it; got one of {folder_of(chat.tokenizer)} that {problem} (row at {row.where}, message "
        f"{turn}). Add the tags to the template, give another by `--chat-template`, or give the row as `prompt` and "
        "`completion` messages."
    )


def _untrained(chat: Chat, row: ChatRow, template: str, number: int) -> int:
    """How many generation tags belong to messages before the first trained one."""
    said = [message["role"] == "assistant" for message in row.messages]
    if not any(said[: row.trained_from]):
        return 0
    if number == sum(said):
        return sum(said[: row.trained_from])
    return len(render(chat.tokenizer, template, row, end=row.trained_from, prompt=True, spans=True).spans)


def after_prompt(text: str, spans: Sequence[Span], supplied: Sequence[str]) -> list[Span]:
    """Spans without the part at their start that a generation prompt supplies."""
    return [(_after(text, start, supplied), end) for start, end in spans]


def _after(text: str, start: int, supplied: Sequence[str]) -> int:
    for header in supplied:
        place = text.find(header, max(0, start - len(header)), start + len(header))
        if place >= 0:
            return place + len(header)
    return start


def token_spans(offsets: Sequence[Span], spans: Sequence[Span]) -> list[Span]:
    """Tokens that hold a character of each span. The tokens of one character share its offsets, so none is lost."""
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    first = np.searchsorted(ends, [start for start, _ in spans], side="right")
    last = np.searchsorted(starts, [end for _, end in spans], side="left")
    # An empty answer has no token of its own, even where a token reaches over its place.
    empty = [end <= start for start, end in spans]
    return list(zip(first.tolist(), np.where(empty, first, np.maximum(first, last)).tolist(), strict=True))
