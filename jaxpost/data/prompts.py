"""What a model is asked: a string or messages -> the ids to continue, and the ids that end the answer.

The one place where generation encodes; it shares its split with training: a string gets the tokenizer's special tokens
but no EOS, messages get the generation prompt that training counts as supplied.
"""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from jaxpost.core.errors import InputError
from jaxpost.data.chat.prompt import encode_prompt, stop_tokens
from jaxpost.data.chat.turns import Chat
from jaxpost.data.messages import check_messages, kind_of, template_kwargs_of, tools_of
from jaxpost.data.plain import Plain
from jaxpost.data.sources import read_columns

Message: TypeAlias = Mapping[str, Any]
PROMPT_COLUMNS = ("prompt", "messages")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt before it is encoded.

    Attributes:
      content: raw text, or messages that go through the chat template.
      where: the place that it came from, for messages.
      tools, template_kwargs: of the chat template.
      columns: the row that it stands in, whole.
    """

    content: str | Sequence[Message]
    where: str = "the prompt"
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """The ids to continue, and those that end what is said."""

    ids: tuple[int, ...]
    stop_ids: frozenset[int]


class PromptEncoder:
    """Encodes prompts with one tokenizer."""

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int], date: datetime.date | None = None) -> None:
        """`stop_ids`: those of config.json and generation_config.json; `date`: see `encode_prompt`."""
        self._plain = Plain(tokenizer=tokenizer)
        self._chat = Chat(tokenizer=tokenizer, stop_ids=stop_ids)
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._stop_ids = stop_ids.union(eos)
        self._date = date

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Ids of a prompt, never empty.

        Raises:
          InputError: nothing to continue, no chat template for messages, or one that refuses them.
        """
        found = self._text(prompt.content) if isinstance(prompt.content, str) else self._messages(prompt)
        if not found.ids:
            raise InputError(f"a prompt must have a token or more; got none at {prompt.where}. Write some text.")
        return found

    def _text(self, text: str) -> EncodedPrompt:
        (ids,) = self._plain.encode([text])
        return EncodedPrompt(ids=tuple(ids[:-1] if self._plain.added[1] else ids), stop_ids=self._stop_ids)

    def _messages(self, prompt: Prompt) -> EncodedPrompt:
        asked = (prompt.content, prompt.tools, prompt.template_kwargs)
        ids = encode_prompt(self._chat, *asked, where=prompt.where, date=self._date)  # pyright: ignore[reportArgumentType]
        return EncodedPrompt(ids=tuple(ids), stop_ids=stop_tokens(self._chat, *asked[1:]))


def read_prompts(data: str | Path | Sequence[str | Path]) -> list[Prompt]:
    """The prompts of items of `--data`: `prompt` (a string or messages), or `messages` up to the last answer.

    A row's other columns may be anything.

    Raises:
      InputError: a file or row that is not so, by its place; no row at all.
    """
    prompts = [make_prompt(columns, where) for columns, where in read_columns(data)]
    if not prompts:
        raise InputError("`data` must hold a prompt; got no row. Check the file.")
    return prompts


def make_prompt(columns: Mapping[str, Any], where: str) -> Prompt:
    """One row as a prompt.

    >>> asked, said = ({"role": role, "content": role[0]} for role in ("user", "assistant"))
    >>> make_prompt({"messages": [asked, said]}, "x").content
    [{'role': 'user', 'content': 'u'}]
    """
    found = [name for name in PROMPT_COLUMNS if columns.get(name) is not None]
    if len(found) != 1:
        got = " and ".join(found) or "neither"
        raise InputError(f"a row must have `prompt` or `messages`; got {got} at {where}. Rename or remove a column.")
    value = columns[found[0]]
    if isinstance(value, str) and found == ["prompt"]:
        return Prompt(content=value, where=where, columns=columns)
    return Prompt(
        content=_asked(check_messages(value, found[0], where), found[0], where),
        where=where,
        tools=tools_of(columns.get("tools"), where),
        template_kwargs=template_kwargs_of(columns.get("chat_template_kwargs"), where),
        columns=columns,
    )


def as_prompt(content: Any, where: str) -> Prompt:
    """A prompt that a caller gives in Python: a string, or a list of messages."""
    if isinstance(content, str):
        return Prompt(content=content, where=where)
    if not isinstance(content, list | tuple):
        raise InputError(f"a prompt must be a string or a list of messages; got {kind_of(content)} at {where}.")
    return Prompt(content=check_messages(list(content), "prompt", where), where=where)


def _asked(messages: list[dict[str, Any]], name: str, where: str) -> list[dict[str, Any]]:
    """Messages without the last answer, so that they end with the user or with what a tool gave; a `prompt` ends where
    it ends."""
    if name == "prompt":
        return messages
    if not any(message["role"] == "user" for message in messages):
        raise InputError(f"`messages` must hold a turn of the user; got none at {where}. Fix or remove the row.")
    end = len(messages)
    while messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]
