"""Which tokens of a conversation the assistant says: by the template's own tags, or by rendering turn by turn.

Never by looking for the text of an answer: the same words may stand in a question.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.data.rows import ChatRow
from jaxpost.data.template import folder_of, render
from jaxpost.data.turns import Chat, turns_of

Span = tuple[int, int]


def tagged_spans(chat: Chat, pairs: Sequence[tuple[ChatRow, str]]) -> list[tuple[list[int], list[Span]]]:
    """Token ids and token spans of the text that each row's template puts between generation tags."""
    rendered = [render(chat.tokenizer, template, row, spans=True) for row, template in pairs]
    texts = [each.text for each in rendered]
    batch = chat.untrimmed(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = []
    for (row, template), each, ids, offsets in zip(
        pairs, rendered, batch["input_ids"], batch["offset_mapping"], strict=True
    ):
        supplied = chat.marks(template, row).supplied
        skipped = _prompt_spans(chat, row, template)
        spans = [(_after(each.text, start, supplied), end) for start, end in each.spans[skipped:]]
        found.append((ids, _token_spans(offsets, spans)))
    return found


def prefix_spans(chat: Chat, pairs: Sequence[tuple[ChatRow, str]]) -> list[tuple[list[int], list[Span]]]:
    """Token ids and token spans of the assistant's turns, by rendering the conversation before and after each of them.

    Raises:
      InputError: the renderings do not make up the whole conversation, as text or as tokens.
    """
    cuts = [_cuts(chat, row, template) for row, template in pairs]
    pieces = [[text[a:b] for a, b in itertools.pairwise((0, *cut, len(text)))] for text, cut in cuts]
    whole = _encode(chat, [text for text, _ in cuts])
    parts = iter(_encode(chat, list(itertools.chain.from_iterable(pieces))))
    found = []
    for (row, _), (text, cut), split, ids in zip(pairs, cuts, pieces, whole, strict=True):
        part = list(itertools.islice(parts, len(split)))
        bounds = list(itertools.accumulate(len(piece) for piece in part))[:-1]
        if list(itertools.chain.from_iterable(part)) != ids:
            # Tokenizers that put a blank before a text put one before every piece: the prefixes themselves decide.
            bounds = _prefix_bounds(chat, row, text, cut, ids)
        found.append((ids, list(zip(bounds[::2], bounds[1::2], strict=True))))
    return found


def _encode(chat: Chat, texts: list[str]) -> list[list[int]]:
    return chat.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _cuts(chat: Chat, row: ChatRow, template: str) -> tuple[str, list[int]]:
    """The text, and the character positions where each trained turn starts and ends."""
    text = render(chat.tokenizer, template, row).text
    cuts = []
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
        cuts += [len(before), len(after)]
    return text, cuts


def _prefix_bounds(chat: Chat, row: ChatRow, text: str, cuts: Sequence[int], ids: list[int]) -> list[int]:
    prefixes = _encode(chat, [text[:cut] for cut in cuts])
    for number, prefix in enumerate(prefixes):
        if prefix != ids[: len(prefix)]:
            edge = ("start", "end")[number % 2]
            problem = f"lets one token reach over the {edge} of that turn"
            raise _untrainable(
                chat, row, turns_of(row)[number // 2], problem, f"take the blanks from the message's {edge}"
            )
    return [len(prefix) for prefix in prefixes]


def _untrainable(chat: Chat, row: ChatRow, turn: int, problem: str, way_out: str = "") -> InputError:
    place = f"{folder_of(chat.tokenizer)} that {problem} (row at {row.where}, message {turn})"
    way_out = way_out or "give the row as `prompt` and `completion` messages"
    return InputError(
        "the chat template must mark the assistant's turns with {% generation %} tags, or render each turn the same "
        f"whatever follows it; got one of {place}. Add the tags to the template in that folder, or {way_out}."
    )


def _prompt_spans(chat: Chat, row: ChatRow, template: str) -> int:
    """How many generation tags belong to messages before the first trained one."""
    if not any(message["role"] == "assistant" for message in row.messages[: row.trained_from]):
        return 0
    return len(render(chat.tokenizer, template, row, end=row.trained_from, prompt=True, spans=True).spans)


def _after(text: str, start: int, supplied: Sequence[str]) -> int:
    """Where a tagged answer starts once the part is left out that the generation prompt supplies."""
    for header in supplied:
        place = text.find(header, max(0, start - len(header)), start + len(header))
        if place >= 0:
            return place + len(header)
    return start


def _token_spans(offsets: Sequence[Span], spans: Sequence[Span]) -> list[Span]:
    """Tokens that hold a character of each span. The tokens of one character share its offsets, so none is lost."""
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    first = np.searchsorted(ends, [start for start, _ in spans], side="right")
    last = np.searchsorted(starts, [end for _, end in spans], side="left")
    # An empty answer has no token of its own, even where a token reaches over its place.
    empty = [end <= start for start, end in spans]
    return list(zip(first.tolist(), np.where(empty, first, np.maximum(first, last)).tolist(), strict=True))
