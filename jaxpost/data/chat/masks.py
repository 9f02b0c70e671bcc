"""Conversations -> token ids with the assistant's turns marked.

Which tokens are the assistant's is never guessed from the text. Either the template says so by `{% generation %}` tags;
or each turn is the difference of two renderings, before and after it, and these must make up the whole conversation
exactly; or a tagged template of ours renders the same bytes. Any other template is an error. What a generation prompt
supplies (the header, an opened `<think>`) is not trained; the stop token that ends a turn is; what follows it inside
the turn (a newline, mostly) is not.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.data.chat.prepare import Ready, all_shown, check_shown, prepare, spoken_turns
from jaxpost.data.chat.spans import Spoken, prefix_spans, tagged_spans, token_spans
from jaxpost.data.chat.template import folder_of, has_generation_tags
from jaxpost.data.chat.tokens import Text, Tokens, tokenise
from jaxpost.data.chat.turns import Chat, turns_of
from jaxpost.data.chat.twins import twin_spans
from jaxpost.data.examples import Tokenised
from jaxpost.data.rows import ChatRow


def encode_chats(chat: Chat, rows: Sequence[ChatRow]) -> list[Tokenised | None]:
    """Encode conversations; None for a row without an assistant turn to train.

    The ids are those of `tokenizer.apply_chat_template(messages)`: no special token is added to the template's text.
    Lists of text parts are joined first, where the template takes strings.
    Text of a message that spells a control token is encoded as text.

    Raises:
      InputError: naming row and folder: no template, a template that cannot be trained, a row that it refuses.
    """
    spoken = [index for index, row in enumerate(rows) if turns_of(row)]
    found = [(ready, _spoken(chat, ready)) for ready in (prepare(chat, rows[index]) for index in spoken)]
    texts = [
        Text(text=said.text, cuts=list(itertools.chain.from_iterable(said.spans)), marked=ready.marked)
        for ready, said in found
    ]
    encoded: list[Tokenised | None] = [None] * len(rows)
    for index, (ready, said), tokens in zip(spoken, found, tokenise(chat, texts), strict=True):
        marked = _mark(chat, ready, tokens)
        encoded[index] = dataclasses.replace(marked, spelled=ready.spelled, unshown=not all_shown(ready, said.text))
    return encoded


def _spoken(chat: Chat, ready: Ready) -> Spoken:
    """Where the assistant speaks: by tags, else by prefixes, else by a template of ours that renders the same."""
    row, template = ready.row, ready.template
    if has_generation_tags(template, folder_of(chat.tokenizer)):
        said = tagged_spans(chat, row, template)
    else:
        try:
            said = prefix_spans(chat, row, template)
        except InputError:
            said = twin_spans(chat, row, template)
            if said is None:
                raise
    check_shown(chat, ready, said.text, spoken_turns(row, said.text, said.spans))
    return said


def _mark(chat: Chat, ready: Ready, tokens: Tokens) -> Tokenised:
    ids, stops = tokens.ids, chat.stops(ready.turn)
    trained = np.zeros(len(ids), np.bool_)
    spans = list(zip(tokens.cuts[::2], tokens.cuts[1::2], strict=True))
    merged = False
    for (begins, _), (start, end) in zip(spans, token_spans(tokens.offsets, spans), strict=True):
        # Phi's control tokens take the blanks behind them: those of the header stay the header's.
        while start < end and ids[start] in chat.controls.id_set and tokens.offsets[start][0] < begins:
            start += 1
        trained[start : _turn_end(chat, ids, start, end, stops)] = True
        merged = merged or (start < end and tokens.offsets[start][0] < begins)
    trained[:1] = False
    if not trained.any():
        raise InputError(
            f"the assistant's turns must hold a token to train; got none in the row at {ready.row.where}. Remove the "
            f"row, or see whether the chat template of {folder_of(chat.tokenizer)} puts {{% generation %}} tags round "
            "them."
        )
    return Tokenised(
        ids=np.array(ids, np.int32),
        trained=trained,
        merged=merged,
        stopped=ids[int(np.flatnonzero(trained)[-1])] in stops,
    )


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
    stop = next((place for place in range(last - 1, start - 1, -1) if ids[place] in stops), None)
    return end if stop is None else _first_stop(chat, ids, start, stop, stops) + 1


def _first_stop(chat: Chat, ids: list[int], start: int, stop: int, stops: frozenset[int]) -> int:
    """The first of the stop tokens that end a turn one after another: Phi writes its EOS after the end of a turn."""
    for place in range(stop - 1, start - 1, -1):
        if ids[place] in stops:
            stop = place
        elif not chat.is_blank(ids[place]):
            break
    return stop
