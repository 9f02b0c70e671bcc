"""Rendered conversations -> ids, in which a control token is one that the template wrote."""

import dataclasses
from collections.abc import Sequence

from jaxpost.data.chat.turns import Chat

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A rendered conversation: `cuts` are places in it, `marked` says that it has the marks of `data.controls`."""

    text: str
    cuts: Sequence[int]
    marked: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """Ids, the characters of each, and the cuts, both in the text without marks."""

    ids: list[int]
    offsets: Sequence[Span]
    cuts: Sequence[int]


def tokenise(chat: Chat, texts: Sequence[Text]) -> list[Tokens]:
    """Encode texts; no special token is added.

    A text without marks whose control ids are as many as it spells is what the tokenizer makes of it. Any other goes
    the long way, so that nothing that a normalizer makes of a message passes for a control token.
    """
    plain = [each.text for each in texts if not each.marked]
    batch = chat.untrimmed(plain, add_special_tokens=False, return_offsets_mapping=True, verbose=False) if plain else {}
    quick = iter(zip(batch.get("input_ids", ()), batch.get("offset_mapping", ()), strict=True))
    found = []
    for each in texts:
        ids, offsets = ([], []) if each.marked else next(quick)
        if each.marked or not chat.controls.agree(each.text, ids):
            ids, offsets, cuts = chat.controls.encode(each.text, each.cuts)
            found.append(Tokens(ids=ids, offsets=offsets, cuts=cuts))
        else:
            found.append(Tokens(ids=ids, offsets=offsets, cuts=each.cuts))
    return found
