"""Conversations -> token ids with the assistant's turns marked.

Which tokens are the assistant's is never guessed from the text. Either the template says so by `{% generation %}` tags,
or each turn is the difference of two renderings, before and after it, and these must make up the whole conversation
exactly; any other template is an error. What a generation prompt supplies (the header, an opened `<think>`) is not
trained; the stop token that ends a turn is; what follows it inside the turn (a newline, mostly) is not.
"""

from collections.abc import Sequence

import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.data.examples import Tokenised
from jaxpost.data.rows import ChatRow
from jaxpost.data.spans import Span, prefix_spans, tagged_spans
from jaxpost.data.template import TurnMarks, folder_of, has_generation_tags, template_of
from jaxpost.data.turns import Chat, turns_of


def encode_chats(chat: Chat, rows: Sequence[ChatRow]) -> list[Tokenised | None]:
    """Encode conversations; None for a row without an assistant turn to train.

    The ids are those of `tokenizer.apply_chat_template(messages)`: no special token is added to the template's text.

    Raises:
      InputError: naming row and folder: no template, a template that cannot be trained, a row that it refuses.
    """
    spoken = [index for index, row in enumerate(rows) if turns_of(row)]
    templates = {index: template_of(chat.tokenizer, rows[index]) for index in spoken}
    folder = folder_of(chat.tokenizer)
    tagged = [index for index in spoken if has_generation_tags(templates[index], folder)]
    untagged = sorted(set(spoken) - set(tagged))
    encoded: list[Tokenised | None] = [None] * len(rows)
    for chosen, find in ((tagged, tagged_spans), (untagged, prefix_spans)):
        pairs = [(rows[index], templates[index]) for index in chosen]
        for index, (ids, spans) in zip(chosen, find(chat, pairs) if pairs else [], strict=True):
            marks = chat.marks(templates[index], rows[index])
            _check_shown(chat, rows[index], marks)
            encoded[index] = _mark(chat, rows[index], ids, spans, chat.stops(marks))
    return encoded


def _check_shown(chat: Chat, row: ChatRow, marks: TurnMarks) -> None:
    if not marks.shows_strings and any(isinstance(message.get("content"), str) for message in row.messages):
        raise InputError(
            f"the chat template of {folder_of(chat.tokenizer)} must show contents that are strings; it drops them (row "
            f'at {row.where}). Write each content as [{{"type": "text", "text": ...}}].'
        )


def _mark(chat: Chat, row: ChatRow, ids: list[int], spans: Sequence[Span], stops: frozenset[int]) -> Tokenised:
    trained = np.zeros(len(ids), np.bool_)
    for start, end in spans:
        trained[start : _turn_end(chat, ids, start, end, stops)] = True
    trained[:1] = False
    if not trained.any():
        raise InputError(
            f"the assistant's turns must hold a token to train; got none in the row at {row.where}. Remove the row, or "
            f"see whether the chat template of {folder_of(chat.tokenizer)} puts {{% generation %}} tags round them."
        )
    stopped = ids[int(np.flatnonzero(trained)[-1])] in stops
    return Tokenised(ids=np.array(ids, np.int32), trained=trained, stopped=stopped)


def _turn_end(chat: Chat, ids: list[int], start: int, end: int, stops: frozenset[int]) -> int:
    """The end of a turn with its stop token: it may stand outside of the tags, and more may follow it inside."""
    last = end
    while last > start and chat.is_blank(ids[last - 1]):
        last -= 1
    if last == start or ids[last - 1] not in stops:
        stop = end
        while stop < len(ids) and chat.is_blank(ids[stop]):
            stop += 1
        if stop < len(ids) and ids[stop] in stops:
            return stop + 1
    return next((place + 1 for place in range(last - 1, start - 1, -1) if ids[place] in stops), end)
