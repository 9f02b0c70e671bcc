"""Rows of plain text -> token ids: the tokenizer's own special tokens, and one EOS at the end."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.data.chat.template import folder_of
from jaxpost.data.examples import Tokenised
from jaxpost.data.rows import CompletionRow, TextRow


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plain:
    """A tokenizer, and which special tokens it adds by itself to a text."""

    tokenizer: Any

    @functools.cached_property
    def added(self) -> tuple[str, str]:
        """The BOS and EOS strings that the tokenizer puts round a text; empty for one that it does not."""
        ids = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        starts, ends = ids[0] == self.tokenizer.bos_token_id, ids[-1] == self.tokenizer.eos_token_id
        return bos if starts else "", eos if ends else ""

    def closed(self, text: str) -> str:
        """The text so written that its ids end in exactly one EOS more than the text asks for, or in its own."""
        eos = self.tokenizer.eos_token
        if eos is None:
            raise InputError(
                f"the tokenizer must have an EOS token, or nothing would teach the model to stop; got none at "
                f"{folder_of(self.tokenizer)}. Set `eos_token` in its tokenizer_config.json."
            )
        if self.added[1]:
            return text.removesuffix(eos)
        return text if text.endswith(eos) else text + eos

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids with the tokenizer's own special tokens; a BOS that stands in the text already is not doubled."""
        texts = [text.removeprefix(self.added[0]) for text in texts]
        return self.tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]


def encode_texts(plain: Plain, rows: Sequence[TextRow]) -> list[Tokenised]:
    """Every token but the first is trained, the EOS too. A text that ends with the EOS string is taken as it is."""
    batch = plain.encode([plain.closed(row.text) for row in rows]) if rows else []
    return [_tokenised(ids, start=1) for ids in batch]


def encode_completions(plain: Plain, rows: Sequence[CompletionRow]) -> list[Tokenised]:
    """Prompt and completion as one string; trained from where the ids of the prompt alone and of the whole part.

    That is the prompt's end, unless a token reaches over it: then that whole token is trained, and the row says so.
    """
    if not rows:
        return []
    whole = plain.encode([plain.closed(row.prompt + row.completion) for row in rows])
    prompts = plain.encode([row.prompt for row in rows])
    if plain.added[1]:
        prompts = [ids[:-1] for ids in prompts]
    encoded = []
    for prompt, ids in zip(prompts, whole, strict=True):
        shared = common_prefix(prompt, ids)
        encoded.append(_tokenised(ids, start=max(1, shared), merged=shared < len(prompt)))
    return encoded


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids two sequences share.

    >>> common_prefix([5, 6, 7], [5, 6, 8, 9])
    2
    """
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.array(a[:n]) != np.array(b[:n]))
    return int(differ[0]) if len(differ) else n


def _tokenised(ids: list[int], *, start: int, merged: bool = False) -> Tokenised:
    return Tokenised(ids=np.array(ids, np.int32), trained=np.arange(len(ids)) >= start, merged=merged)
