"""Conversations -> the ids that a model answers: what training left untrained is what generation is given."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpost.data.chat.prepare import prepare
from jaxpost.data.chat.template import render
from jaxpost.data.chat.tokens import Text, tokenise
from jaxpost.data.chat.turns import Chat
from jaxpost.data.rows import ChatRow, make_row


def encode_prompt(
    chat: Chat,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    where: str = "the prompt",
    date: datetime.date | None = None,
) -> list[int]:
    """Ids of a conversation and of the generation prompt after it.

    Equals `apply_chat_template(messages, tools=..., add_generation_prompt=True)` where no message spells a control
    token; what spells one is encoded as text. No special token is added to what the template writes.

    Args:
      chat: the tokenizer; made once, as it remembers what it finds out.
      messages: as in a row of data, `{"role": ..., "content": ...}` and what else the template knows.
      tools: as in the `tools` column.
      template_kwargs: as in the `chat_template_kwargs` column, `{"enable_thinking": False}` say.
      where: names the conversation in messages of errors.
      date: the day that the template is told if it asks for it; None is today.

    Raises:
      InputError: no template, a conversation that it refuses, a `date` that is no day.
    """
    row = dataclasses.replace(_row(messages, tools, template_kwargs, where), date=date)
    ready = prepare(chat, row)
    text = render(chat.tokenizer, ready.template, ready.row, prompt=True).text
    (tokens,) = tokenise(chat, [Text(text=text, cuts=(), marked=ready.marked)])
    return tokens.ids


def stop_tokens(
    chat: Chat, tools: Sequence[Any] | str | None = None, template_kwargs: Mapping[str, Any] | None = None
) -> frozenset[int]:
    """Ids that end the assistant's turn: `chat.stop_ids`, the tokenizer's EOS, the token after a trained answer."""
    ready = prepare(chat, _row([], tools, template_kwargs, "the prompt"))
    return chat.stops(ready.turn)


def _row(messages: Sequence[Mapping[str, Any]], tools: Any, kwargs: Any, where: str) -> ChatRow:
    given = [dict(message) if isinstance(message, Mapping) else message for message in messages]
    columns = {
        "messages": given,
        "tools": tools if tools is None or isinstance(tools, str) else list(tools),
        "chat_template_kwargs": None if kwargs is None else dict(kwargs),
    }
    row = make_row(columns, source=0, where=where)
    assert isinstance(row, ChatRow), "columns of messages make a row of messages"
    return row
