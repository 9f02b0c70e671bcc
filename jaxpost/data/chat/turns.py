"""What is known about a tokenizer's chat template: its marks round a turn, the tokens that end one."""

import copy
import dataclasses
import functools
import json
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.data.chat.controls import Controls
from jaxpost.data.chat.template import TurnMarks, folder_of, turn_marks
from jaxpost.data.rows import ChatRow


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Chat:
    """A tokenizer with a chat template, and what has been found out about them.

    Attributes:
      tokenizer: a fast tokenizer of transformers (one with a tokenizer.json).
      stop_ids: ids that end generation (generation_config.json). The tokenizer's own EOS and the token, outside of the
        common vocabulary, that the template puts after an answer need not be named.
      twins: template -> our own tagged templates that render as it does (`chat.twins`).
    """

    tokenizer: Any
    stop_ids: frozenset[int] = frozenset()
    twins: dict[str, list[str]] = dataclasses.field(default_factory=dict, repr=False)
    _marks: dict[tuple[str, str], TurnMarks] = dataclasses.field(default_factory=dict, repr=False)
    _blank: dict[int, bool] = dataclasses.field(default_factory=dict, repr=False)
    _stops: dict[str, frozenset[int]] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def controls(self) -> Controls:
        """The tokenizer's control tokens, which no message may spell."""
        return Controls(tokenizer=self.tokenizer)

    @functools.cached_property
    def untrimmed(self) -> Any:
        """The tokenizer without post-processor: most of them trim a token's offsets to its text without blanks."""
        self.check_fast()
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.backend_tokenizer.post_processor = None
        return tokenizer

    def check_fast(self) -> None:
        """InputError unless the tokenizer has a tokenizer.json: only then are places in the text known."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError(
                f"the tokenizer must be a fast one; got {type(self.tokenizer).__name__} at "
                f"{folder_of(self.tokenizer)}. Save it with a tokenizer.json."
            )

    def marks(self, template: str, row: ChatRow) -> TurnMarks:
        """What the template puts around an answer, under the row's template arguments."""
        key = template, json.dumps(row.template_kwargs, sort_keys=True, default=str)
        if key not in self._marks:
            self._marks[key] = turn_marks(self.tokenizer, template, row.template_kwargs)
        return self._marks[key]

    def stops(self, marks: TurnMarks) -> frozenset[int]:
        """Ids of the tokens that end a turn."""
        if marks.tail not in self._stops:
            added = self.tokenizer.added_tokens_decoder  # not only those that are special by name: Llama 3 names few
            tail = self.tokenizer(marks.tail, add_special_tokens=False)["input_ids"] if marks.tail else []
            ends = [index for index in tail if index in added][:1]
            eos = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
            self._stops[marks.tail] = self.stop_ids.union(ends, eos)
        return self._stops[marks.tail]

    def is_blank(self, index: int) -> bool:
        """Whether a token is white space only."""
        if index not in self._blank:
            self._blank[index] = not self.tokenizer.decode([index]).strip()
        return self._blank[index]


def turns_of(row: ChatRow) -> list[int]:
    """Indices of the messages to train.

    >>> turns_of(ChatRow(source=1, where="", messages=[{"role": "user"}, {"role": "assistant"}]))
    [1]
    """
    return [i for i, m in enumerate(row.messages) if m["role"] == "assistant" and i >= row.trained_from]
