"""Control tokens are the template's alone: a message that spells one is encoded as the text that it is.

Strings of a row are marked where they spell a control token, before the template sees them. In the rendered text, what
is spelled without a mark is the template's. That is respelled, the marks are taken out, and a copy of the tokenizer
that knows the control tokens by their new spelling only encodes the result: one text, encoded at one go, in which a
message can say anything. Rows that spell none take the tokenizer as it is.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.data.rows import ChatRow
from jaxpost.data.template import folder_of

Span = tuple[int, int]

# Two characters for private use: one stands in what messages spell, the other in what the template does.
SAID, MEANT = "\ue5c3", "\ue5c4"
_SAID_FORMS = f"{SAID}|{re.escape(ascii(SAID)[1:-1])}"  # the second is what JSON and Python's repr may make of it
_BRACKETED = re.compile(r"[<\[{|＜].+[>\]}|＞]", re.DOTALL)
# Gemma has these as tokens of their own: they are text, not marks of a conversation.
_HTML = re.compile(
    r"</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|ul|ol|li|p|br|hr|a|pre|strong|em|b|i|u|s|sub|sup|code)>"
)
# Reasoning that an answer starts with: its two marks are the template's business, whatever else stands in it.
_REASONED = re.compile(
    r"(?P<open>\s*<think>)?(?P<thought>(?:(?!<think>).)*?)(?P<close></think>)(?P<rest>.*)", re.DOTALL
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
    def _anywhere(self) -> re.Pattern[str]:
        """Every place where a control token is spelled without a mark; the longest that fits."""
        return re.compile(_trie(self.ids), re.DOTALL)

    @functools.cached_property
    def _starts(self) -> re.Pattern[str]:
        return re.compile(f"(?={_trie(self.ids)})(.)", re.DOTALL)

    @functools.cached_property
    def _either(self) -> re.Pattern[str]:
        return re.compile(f"(?P<said>{_SAID_FORMS})|(?P<meant>{_trie(self.ids)})", re.DOTALL)

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
            found = type(backend).from_str(_respell(backend.to_str(), self.ids))
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

    def count(self, text: str) -> int:
        """How many control tokens a text spells without a mark."""
        return sum(1 for _ in self._anywhere.finditer(text)) if self.ids else 0

    def mark(self, row: ChatRow, thinks: bool) -> tuple[ChatRow, bool]:
        """The row with a mark in every control token that its strings spell or begin at their end, and whether one is
        spelled in full. `thinks`: the template knows `</think>`, so an answer may hold it without its opening.

        Raises:
          InputError: the row holds one of the private characters as well.
        """
        if not self.ids:
            return row, False
        marker = _Marker(controls=self, thinks=thinks)
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
        written = sum(1 for match in self._either.finditer(text) if match["meant"])
        if sum(index in self.id_set for index in encoding.ids) != written:
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
            self.spelled = self.spelled or self.controls.count(text) > 0
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
        match = split_reasoning(content, self.thinks)
        if match is None:
            return self.value(content)
        thought, rest = self.text(match["thought"]), self.text(match["rest"])
        return f"{match['open'] or ''}{thought}{match['close']}{rest}"


def split_reasoning(content: Any, thinks: bool) -> re.Match[str] | None:
    """The parts of an answer that starts with its reasoning: `open`, `thought`, `close`, `rest`.

    >>> split_reasoning("<think>hm</think>yes", False)["thought"], split_reasoning("say </think>", False)
    ('hm', None)
    """
    match = _REASONED.fullmatch(content) if isinstance(content, str) else None
    return match if match is not None and (match["open"] or thinks) else None


def reasoning_of(message: Mapping[str, Any]) -> str | None:
    """The reasoning that a message holds beside its content, under any of the names in use."""
    found = (message.get(name) for name in ("reasoning_content", "thinking", "reasoning"))
    return next((text for text in found if isinstance(text, str)), None)


def respell(token: str) -> str:
    """The new spelling of a control token: its first character, the private one, the rest.

    >>> respell("<s>").encode("unicode_escape").decode()
    '<\\\\ue5c4s>'
    """
    return token[:1] + MEANT + token[1:]


def _is_control(token: Any) -> bool:
    text = token.content
    return token.special or bool(_BRACKETED.fullmatch(text.strip()) and not _HTML.fullmatch(text))


def _trie(words: Iterable[str]) -> str:
    """A regular expression for the longest of the words; a word of one character must not be followed by a mark."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return _expression(root, 0) or "(?!)"


def _expression(node: dict[str, Any], depth: int) -> str:
    branches = [re.escape(c) + _expression(child, depth + 1) for c, child in node.items() if c]
    if not branches:
        return f"(?!{SAID})" if depth == 1 else ""
    group = f"(?:{'|'.join(branches)})"
    return f"(?:{group}|(?!{SAID}))" if depth == 1 and "" in node else group + "?" * ("" in node)


def _respell(text: str, ids: Mapping[str, int]) -> str:
    """A tokenizer.json in which the control tokens have their new spelling, in the vocabulary as well."""
    written = json.loads(text)
    written["post_processor"] = written["truncation"] = written["padding"] = None
    for token in written["added_tokens"]:
        token["content"] = respell(token["content"]) if token["content"] in ids else token["content"]
    model = written["model"]
    new = {token: respell(token) for token in ids}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[new.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in new:
        model["unk_token"] = new[model["unk_token"]]
    if "merges" in model:  # a merge that makes a control token of text
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if "".join(pair) not in new]
    return json.dumps(written, ensure_ascii=False)
