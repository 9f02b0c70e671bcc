"""What encoding makes of rows: token ids with the trained ones marked, and the tally of what became of the rows."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenised:
    """One row before it is cut or dropped.

    Attributes:
      ids, trained: as in `Example`.
      merged: one token holds the end of the prompt and the start of the completion.
      stopped: the last trained token is one that ends generation.
      spelled: a message spells a control token; it is encoded as text.
      unshown: the template leaves the text of a system or user message out.
    """

    ids: Int32[np.ndarray, " n"]
    trained: Bool[np.ndarray, " n"]
    merged: bool = False
    stopped: bool = True
    spelled: bool = False
    unshown: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One document.

    Attributes:
      ids: token ids.
      trained: aligned with the targets, not shifted: `trained[t]` says that token t is to be predicted from the tokens
        before it. The first token of a document is never trained, as nothing stands before it.
      source: number of the row that it came from, from 1.
    """

    ids: Int32[np.ndarray, " n"]
    trained: Bool[np.ndarray, " n"]
    source: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the rows; prints as one line.

    >>> print(Counts(rows=3, examples=2, tokens=40, trained_tokens=23, dropped_overlong=1))
    3 rows: 2 kept; 40 tokens, 23 of them trained; 1 dropped as longer than max_length
    """

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    dropped_overlong: int = 0
    dropped_truncated: int = 0
    dropped_no_assistant: int = 0
    dropped_empty: int = 0
    merged_boundaries: int = 0
    unstopped: int = 0
    spelled_controls: int = 0
    unshown_messages: int = 0

    def dropped(self) -> str:
        """The reasons for which rows were dropped, each with its count; empty if none was."""
        reasons = (
            (self.dropped_overlong, "dropped as longer than max_length"),
            (self.dropped_truncated, "dropped as truncation left nothing to train"),
            (self.dropped_no_assistant, "dropped as having no assistant turn"),
            (self.dropped_empty, "dropped as empty"),
        )
        return ", ".join(f"{count:,} {reason}" for count, reason in reasons if count)

    def __str__(self) -> str:
        notes = (
            (self.truncated, "truncated"),
            (self.merged_boundaries, "with a token across the end of the prompt"),
            (self.unstopped, "with a last answer that no stop token ends"),
            (self.spelled_controls, "with text that spells a control token"),
            (self.unshown_messages, "with a message that the template leaves out"),
        )
        parts = [
            f"{self.rows:,} rows: {self.examples:,} kept",
            f"{self.tokens:,} tokens, {self.trained_tokens:,} of them trained",
            self.dropped(),
            ", ".join(f"{count:,} {note}" for count, note in notes if count),
        ]
        return "; ".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The examples that are left, in the order of their rows, and the counts."""

    examples: Sequence[Example]
    counts: Counts
