"""Whether the mask of a row is what it should be: no question is trained, every answer is."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.data.chat.prepare import prepare
from jaxpost.data.chat.spans import token_spans
from jaxpost.data.chat.template import render
from jaxpost.data.chat.tokens import Text, tokenise
from jaxpost.data.chat.turns import turns_of
from jaxpost.data.checks.context import Context
from jaxpost.data.checks.findings import Observed
from jaxpost.data.examples import Tokenised
from jaxpost.data.messages import text_of
from jaxpost.data.rows import ChatRow, CompletionRow, Row, TextRow

LEAST_CHARACTERS = 8  # of a prompt that is looked for among the trained tokens: a word may stand in both
PINS = range(0xE000, 0xF900)  # private characters


def check_mask(context: Context, observed: Observed, row: Row, tokens: Tokenised) -> None:
    """Looks at what is trained of a row with a prompt."""
    if isinstance(row, TextRow) or not tokens.trained.any():
        return
    said = _normal(context.tokenizer.decode(tokens.ids[tokens.trained]))
    if isinstance(row, CompletionRow):
        answers, asked = [_normal(row.completion)], _prompt_is_trained(context, row, tokens, said)
    else:
        answers, asked = _answers(row), _question_is_trained(context, row, tokens, said)
    missing = [answer for answer in answers if answer not in said]
    observed.look("mask.prompt", row.where, asked)
    observed.look("mask.merged", row.where, tokens.merged)
    observed.look("mask.answer", row.where, bool(missing), f"as {missing[0][:40]!r}" if missing else "")


def _answers(row: ChatRow) -> list[str]:
    return [_normal(text_of(row.messages[turn].get("content"))) for turn in turns_of(row)]


def _normal(text: str) -> str:
    """Without blanks: templates trim, tokenizers put blanks before words."""
    return "".join(text.split())


def _prompt_is_trained(context: Context, row: CompletionRow, tokens: Tokenised, said: str) -> bool:
    prompt = _normal(row.prompt)
    # The first token is never trained: a prompt of one token is no prompt that is trained.
    unseen = prompt not in _normal(context.tokenizer.decode(tokens.ids[~tokens.trained]))
    whole = bool(prompt) and bool(tokens.trained[1:].all()) and unseen
    return whole or (len(prompt) >= LEAST_CHARACTERS and prompt in said and prompt not in _normal(row.completion))


def _question_is_trained(context: Context, row: ChatRow, tokens: Tokenised, said: str) -> bool:
    """Whether the token in the middle of a message that is no answer is trained.

    Answers, calls of tools and reasoning repeat questions, so words among the trained tokens prove nothing: of messages
    whose words are there the place in the rendered text is found.
    """
    turns = set(turns_of(row))
    contents = {i: _normal(text_of(m.get("content"))) for i, m in enumerate(row.messages) if i not in turns}
    likely = [i for i, text in contents.items() if text and text in said]
    return bool(likely) and bool(tokens.trained[_middles(context, row, likely)].any())


def _middles(context: Context, row: ChatRow, messages: Sequence[int]) -> np.ndarray:
    """The tokens in the middle of the contents of `messages`.

    No tokens where the template renders the row in another way when a character is put there: no place is known.
    """
    ready = prepare(context.chat, row)
    text = render(context.tokenizer, ready.template, ready.row).text
    pin = next(chr(code) for code in PINS if chr(code) not in text)
    pinned = [_pinned(m, pin) if i in messages else m for i, m in enumerate(ready.row.messages)]
    try:
        found = render(context.tokenizer, ready.template, dataclasses.replace(ready.row, messages=pinned)).text
    except InputError:
        found = ""
    if found.replace(pin, "") != text:
        return np.zeros(0, np.int64)
    cuts = [match.start() - before for before, match in enumerate(re.finditer(pin, found))]
    (encoded,) = tokenise(context.chat, [Text(text=text, cuts=cuts, marked=ready.marked)])
    places = token_spans(encoded.offsets, [(cut, cut + 1) for cut in encoded.cuts])
    return np.array([place for start, end in places for place in range(start, end)], np.int64)


def _pinned(message: Mapping[str, Any], pin: str) -> dict[str, Any]:
    """The message with a character in the middle of its content, where no template trims or looks."""
    content = message["content"]
    if isinstance(content, list):
        longest = max(range(len(content)), key=lambda index: len(content[index]["text"].strip()))
        part = {**content[longest], "content": content[longest]["text"]}
        pinned = {**content[longest], "text": _pinned(part, pin)["content"]}
        return {**message, "content": [*content[:longest], pinned, *content[longest + 1 :]]}
    middle = len(content) - len(content.lstrip()) + len(content.strip()) // 2
    return {**message, "content": content[:middle] + pin + content[middle:]}
