"""Control tokens are the template's alone: a message that spells one is encoded as the text that it is.

Strings of a row are marked where they spell a control token, before the template sees them. In the rendered text, what
is spelled without a mark is the template's. That is respelled, the marks are taken out, and a copy of the tokenizer
that knows the control tokens by their new spelling only encodes the result: one text, encoded at one go, in which a
message can say anything. Rows that spell none take the tokenizer as it is.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.data.chat.respell import SAID, SAID_FORMS, any_of, respell, respelled_file
from jaxpost.data.chat.template import folder_of

Span = tuple[int, int]

_BRACKETED = re.compile(r"[<\[{|＜].+[>\]}|＞]", re.DOTALL)
# Gemma has these as tokens of their own: they are text, not marks of a conversation.
_HTML = re.compile(
    r"</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|ul|ol|li|p|br|hr|a|pre|strong|em|b|i|u|s|sub|sup|code)>"
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Controls:
    """The control tokens of a tokenizer: those that are special by name, and the bracketed ones among the added
    (`<think>`, `[INST]`, `<|x|>`); not blanks, words and HTML, which are text with a token of its own."""

    tokenizer: Any

    @functools.cached_property
    def ids(self) -> Mapping[str, int]:
        """Control token -> id."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {token.content: index for index, token in added if token.content and _is_control(token)}

    @functools.cached_property
    def id_set(self) -> frozenset[int]:
        """Ids of the control tokens."""
        return frozenset(self.ids.values())

    @functools.cached_property
    def _counted(self) -> frozenset[int]:
        # A character that the vocabulary lacks becomes the unknown token, which no template writes.
        return self.id_set - {self.tokenizer.unk_token_id}

    @functools.cached_property
    def _anywhere(self) -> re.Pattern[str]:
        """Every place where a control token is spelled without a mark; the longest that fits."""
        return re.compile(any_of(self.ids), re.DOTALL)

    @functools.cached_property
    def _starts(self) -> re.Pattern[str]:
        return re.compile(f"(?={any_of(self.ids)})(.)", re.DOTALL)

    @functools.cached_property
    def _either(self) -> re.Pattern[str]:
        return re.compile(f"(?P<said>{SAID_FORMS})|(?P<meant>{any_of(self.ids)})", re.DOTALL)

    @functools.cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(token[:end] for token in self.ids for end in range(1, len(token)))

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self.ids), default=0)

    @functools.cached_property
    def respelled(self) -> Any:
        """The tokenizer's copy to which control tokens are known by their new spelling only.

        Raises:
          InputError: the tokenizer cannot be changed so.
        """
        try:
            backend = self.tokenizer.backend_tokenizer
            found = type(backend).from_str(respelled_file(backend.to_str(), self.ids))
        except Exception as error:  # the library's own errors have no common type
            raise self._failed(" ".join(str(error).split())) from None
        wrong = [token for token, index in self.ids.items() if found.token_to_id(respell(token)) != index]
        if wrong:
            raise self._failed(f"another id for {wrong[0]!r}")
        return found

    def _failed(self, reason: str) -> InputError:
        return InputError(
            "a message that spells a control token must be encoded as text; the tokenizer at "
            f"{folder_of(self.tokenizer)} cannot do it ({reason}). Take such rows out."
        )

    def spells(self, text: str) -> bool:
        """Whether a text spells a control token without a mark."""
        return bool(self.ids) and self._anywhere.search(text) is not None

    def agree(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the ids of a text hold as many control tokens as it spells without a mark."""
        unknown = self.tokenizer.unk_token
        spelled = sum(match["meant"] not in (None, unknown) for match in self._either.finditer(text)) if self.ids else 0
        return sum(index in self._counted for index in ids) == spelled

    def mark_text(self, text: str) -> str:
        """The text with a mark after the first character of every control token in it, and of one that its end begins.

        An end counts, because a template may write on from there.
        """
        marked = self._starts.sub(rf"\1{SAID}", text) if self._anywhere.search(text) else text
        body = marked.rstrip()
        for length in range(1, min(self._longest - 1, len(body)) + 1):
            if body[len(body) - length :] in self._beginnings:
                place = len(body) - length + 1
                marked = marked[:place] + SAID + marked[place:]
        return marked

    def encode(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[Span], list[int]]:
        """Ids of a rendered text with marks, the tokens' offsets in the text without marks, and where its `cuts` are
        there.

        Raises:
          InputError: ids hold another number of control tokens than the template wrote.
        """
        plain, places = self._respelled_text(text, cuts)
        encoding = self.respelled.encode(plain, add_special_tokens=False)
        if not self.agree(text, encoding.ids):
            raise self._failed("its rules make one of plain text, or none of the token itself")
        return encoding.ids, encoding.offsets, places

    def _respelled_text(self, text: str, cuts: Sequence[int]) -> tuple[str, list[int]]:
        pieces, edges, last, shift = [], [(0, 0)], 0, 0
        for match in self._either.finditer(text):
            new = respell(match["meant"]) if match["meant"] else ""
            pieces += [text[last : match.start()], new]
            last, shift = match.end(), shift + len(new) - len(match[0])
            edges.append((last, shift))
        shifts = [max(edge for edge in edges if edge[0] <= cut)[1] for cut in cuts] if len(cuts) else []
        return "".join([*pieces, text[last:]]), [cut + by for cut, by in zip(cuts, shifts, strict=True)]


def _is_control(token: Any) -> bool:
    text = token.content
    return token.special or bool(_BRACKETED.fullmatch(text.strip()) and not _HTML.fullmatch(text))
