"""What rows are checked against: tokenizer, template and the sizes of a run."""

import dataclasses
import datetime
import functools
import re
from collections.abc import Mapping
from typing import Any

from jaxpost.data.chat.template import template_of
from jaxpost.data.chat.turns import Chat
from jaxpost.data.plain import Plain
from jaxpost.data.rows import ChatRow

TRIAL = ChatRow(
    source=0,
    where="a trial conversation",
    messages=[{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}],
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """What rows are checked against.

    Attributes:
      chat, plain: the tokenizer, as rows are encoded with it.
      vocab_size: rows of the embedding.   max_length: in tokens.
      stops: by source (`tokenizer`, `config.json`, `generation_config.json`) the ids that end generation.
      date: the day that templates are told, None for today.
    """

    chat: Chat
    plain: Plain
    vocab_size: int
    max_length: int
    stops: Mapping[str, frozenset[int]]
    date: datetime.date | None = None

    @property
    def tokenizer(self) -> Any:
        return self.chat.tokenizer

    @functools.cached_property
    def template(self) -> str | None:
        """The chat template of rows without tools, None where there is none."""
        return self.tokenizer.chat_template and template_of(self.tokenizer, TRIAL)

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer: those that end generation, and the token that the template puts after an answer."""
        marked = self.chat.marks(self.template, TRIAL) if self.template else None
        eos = self.tokenizer.eos_token_id
        plain = self.chat.stop_ids if eos is None else self.chat.stop_ids | {eos}
        return self.chat.stops(marked) if marked is not None else plain

    @functools.cached_property
    def controls(self) -> re.Pattern[str]:
        """Finds the control tokens of the tokenizer in a text."""
        words = sorted(self.chat.controls.ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words)) or "(?!)")
