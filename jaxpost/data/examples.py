"""What encoding makes of rows: token ids with the trained ones marked, and the tally of what became of the rows."""

import bisect
import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence

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
    dropped_bad: int = 0
    unused: int = 0
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
            (self.dropped_bad, "skipped as broken"),
            (self.unused, "beyond their share of the mixture"),
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


def totals_of(examples: Sequence[Example]) -> dict[str, int]:
    """How many examples, tokens and trained tokens there are, by the names of `Counts`.

    >>> totals_of([Example(ids=np.array([5, 6], np.int32), trained=np.array([False, True]), source=1)])
    {'examples': 1, 'tokens': 2, 'trained_tokens': 1}
    """
    sizes = np.array([(1, len(example.ids), example.trained.sum()) for example in examples], np.int64).reshape(-1, 3)
    return dict(zip(("examples", "tokens", "trained_tokens"), sizes.sum(0).tolist(), strict=True))


SHOWN = 5  # broken rows that are named; the others are counted


@dataclasses.dataclass(kw_only=True)
class Tally:
    """What has become of the rows so far: a few numbers and places, however many rows there are.

    Attributes:
      counts: by the names of `Counts`.
      first: for each event that is warned about the place of the first row where it happened.
      bad: the reasons of the first broken rows.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    first: dict[str, str] = dataclasses.field(default_factory=dict)
    bad: list[str] = dataclasses.field(default_factory=list)

    def add_bad(self, reason: str) -> None:
        """Counts a broken row."""
        self.counts["dropped_bad"] += 1
        self.bad = [*self.bad, reason][:SHOWN]

    def merge(self, other: "Tally") -> None:
        """Adds what became of the rows that follow."""
        self.counts.update(other.counts)
        self.first = {**other.first, **self.first}
        self.bad = [*self.bad, *other.bad][:SHOWN]


class Fingerprint:
    """SHA-256 of examples in their order: their ids, what is trained, and the rows they came from.

    >>> example = Example(ids=np.array([5, 6], np.int32), trained=np.array([False, True]), source=1)
    >>> fingerprint_of([example]) == fingerprint_of([example, example])
    False
    """

    def __init__(self):
        self._columns = [hashlib.sha256() for _ in range(4)]  # one each: the examples may come in chunks of any size

    def update(self, examples: Sequence[Example]) -> None:
        """Adds examples at the end."""
        meta = np.array([(len(example.ids), example.source) for example in examples], "<i8").reshape(-1, 2)
        columns = [meta[:, 0].tobytes(), meta[:, 1].tobytes()]
        columns.append(b"".join(example.ids.astype("<i4", copy=False).tobytes() for example in examples))
        columns.append(b"".join(example.trained.tobytes() for example in examples))
        for digest, column in zip(self._columns, columns, strict=True):
            digest.update(column)

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(b"".join(digest.digest() for digest in self._columns)).hexdigest()


def fingerprint_of(examples: Sequence[Example]) -> str:
    """The `Fingerprint` of all of them."""
    fingerprint = Fingerprint()
    fingerprint.update(examples)
    return fingerprint.hexdigest()


class Joined(Sequence[Example]):
    """Examples of several sources as one sequence, all of them or chosen ones; none is copied.

    Args:
      parts: the examples of each source.
      rows: rows of each source: those of the next are numbered on from there.
      chosen: indices into the parts put one after another; None takes all.
    """

    def __init__(self, parts: Sequence[Sequence[Example]], rows: Sequence[int], chosen: np.ndarray | None = None):
        self._parts = parts
        self._first = list(itertools.accumulate([0, *rows[:-1]]))
        self._starts = list(itertools.accumulate((len(part) for part in parts), initial=0))
        self._chosen = chosen

    def __len__(self) -> int:
        return self._starts[-1] if self._chosen is None else len(self._chosen)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        place = index if self._chosen is None else int(self._chosen[index])
        part = bisect.bisect_right(self._starts, place) - 1
        example = self._parts[part][place - self._starts[part]]
        return dataclasses.replace(example, source=example.source + self._first[part])

    @property
    def lengths(self) -> Int32[np.ndarray, " examples"]:
        """Tokens of each example."""
        lengths = np.concatenate([lengths_of(part) for part in self._parts])
        return lengths if self._chosen is None else lengths[self._chosen]


def lengths_of(examples: Iterable[Example]) -> Int32[np.ndarray, " examples"]:
    """Tokens of each example; where they lie on disk, without reading them."""
    known = getattr(examples, "lengths", None)
    return np.array([len(example.ids) for example in examples], np.int32) if known is None else known


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The examples that are left.

    Attributes:
      examples: in the order of their rows.
      counts: what became of all rows.
      fingerprint: 64 hexadecimal digits that other examples, or the same in another order, would not have: batch n is a
        pure function of the fingerprint, the seed and n.
    """

    examples: Sequence[Example]
    counts: Counts
    fingerprint: str
