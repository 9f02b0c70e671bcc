"""Reads and tokenises a data set as training does, looks at every row, and goes on where training would stop."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int64

from jaxpost.core.errors import InputError
from jaxpost.data.checks.context import Context
from jaxpost.data.checks.duplicates import Digester, Digests
from jaxpost.data.checks.findings import Finding, Observed, finding
from jaxpost.data.checks.rows import check_row, check_text, tokenizer_findings
from jaxpost.data.encode import at_day, fit, tokenise_chunk
from jaxpost.data.examples import Counts, Example, Tokenised, totals_of
from jaxpost.data.mixing import drawn
from jaxpost.data.rows import BadRow, ChatRow, CompletionRow, Row
from jaxpost.data.sources import Source

LITTLE = 0.01  # share of trained tokens under which a run teaches little
CHUNK_ROWS = 256  # tokenised at a time; where one of them is refused, each is tried alone


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inspected:
    """A data set that was looked at.

    Attributes:
      examples: as training would see them, cut to `max_length`.
      epoch: those of an epoch; of a mixture a part of them, none where it cannot be had.
      counts: what became of the rows; tokens are those of an epoch.
      places: file and line of every row, the first one's first; of broken ones too.
      lengths: tokens of each row that was tokenised, before it is cut.
      trained: how many of them are trained.
      digests: of every row that is not broken, for the search for duplicates.
      with_prompt: which of these have a prompt.
      findings: of rows, tokenizer and template.
    """

    examples: Sequence[Example]
    epoch: Sequence[Example]
    counts: Counts
    places: Sequence[str]
    lengths: Int64[np.ndarray, " tokenised"]
    trained: Int64[np.ndarray, " tokenised"]
    digests: Digests
    with_prompt: Bool[np.ndarray, " readable"]
    findings: Sequence[Finding]

    def where(self, source: int) -> str:
        """File and line of a row by its number."""
        return self.places[source - 1]


def inspect(
    context: Context, sources: Sequence[Source], *, overlong: str, skip_bad: bool = False, seed: int = 0
) -> Inspected:
    """Looks at every row of the items of `--data`, broken ones too.

    Args:
      overlong: what becomes of a row over `max_length`, as in `encode_rows`.
      skip_bad: broken rows are skipped by training, so they are no error.
      seed: of the part that a mixture takes, as in `prepare_data`.
    """
    looker = _Looker(context=context, overlong=overlong, broken="rows.skipped" if skip_bad else "rows.refused")
    rows, sizes = [], []
    for source in sources:
        before, kept = len(looker.places), len(looker.examples)
        read = at_day(source.rows(before + 1, keep_bad=True), context.date)
        while chunk := list(itertools.islice(read, CHUNK_ROWS)):
            looker.chunk(chunk)
        rows.append(len(looker.places) - before)
        sizes.append(len(looker.examples) - kept)
    try:
        chosen = drawn([source.name for source in sources], rows, sizes, seed)
    except InputError as error:
        return looker.inspected([], [finding("data.mixture", detail=str(error))] if looker.examples else [])
    every = looker.examples
    return looker.inspected(every if chosen is None else [every[index] for index in chosen.tolist()], [])


@dataclasses.dataclass(kw_only=True)
class _Looker:
    """Looks at rows, some at a time, and keeps what `Inspected` holds of them."""

    context: Context
    overlong: str
    broken: str
    observed: Observed = dataclasses.field(default_factory=Observed)
    digester: Digester = dataclasses.field(default_factory=Digester)
    counter: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: list[Example] = dataclasses.field(default_factory=list)
    places: list[str] = dataclasses.field(default_factory=list)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    prompts: list[bool] = dataclasses.field(default_factory=list)
    chats: int = 0

    def chunk(self, read: Sequence[Row | BadRow]) -> None:
        """Reads, tokenises and looks at some rows."""
        rows = [row for row in read if not isinstance(row, BadRow)]
        for row in read:
            self.observed.look(self.broken, row.where, isinstance(row, BadRow), getattr(row, "reason", ""))
        self.places += [row.where for row in read]
        self.digester.add(rows)
        self.prompts += [_has_prompt(row) for row in rows]
        self.chats += sum(isinstance(row, ChatRow) for row in rows)
        done = 0
        for row, tokens in self._tokenise(rows):
            self._row(row, tokens)
            done += 1
        self.counter["dropped_bad"] += len(read) - done

    def _tokenise(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Tokenised | None]]:
        """Each row with its tokens, as `encode_rows` makes them; those that are refused are counted and left out."""
        if self.context.template is None:
            rows = [row for row in rows if not isinstance(row, ChatRow)]
        try:
            done = list(tokenise_chunk(self.context.plain, self.context.chat, rows))
        except InputError:
            done = list(itertools.chain.from_iterable(self._alone(row) for row in rows))
        yield from done

    def _alone(self, row: Row) -> Sequence[tuple[Row, Tokenised | None]]:
        try:
            return tokenise_chunk(self.context.plain, self.context.chat, [row])
        except InputError as error:
            self.observed.find(self.broken, row.where, str(error))
            return []

    def _row(self, row: Row, tokens: Tokenised | None) -> None:
        check_text(self.context, self.observed, row)
        if tokens is not None and tokens.trained.any():
            check_row(self.context, self.observed, row, tokens)
            self._length(row, len(tokens.ids))
            self.sizes.append((len(tokens.ids), int(tokens.trained.sum())))
        left_out = "drop" if self.overlong == "error" else self.overlong
        example, note = fit(row, tokens, self.context.max_length, left_out)
        self.counter.update(filter(None, [note]))
        self.examples += [] if example is None else [example]

    def _length(self, row: Row, length: int) -> None:
        over, detail = length > self.context.max_length, f"the first has {length:,} tokens"
        for check, overlong in (("length.truncated", "truncate"), ("length.refused", "error")):
            self.observed.look(check, row.where, over and self.overlong == overlong, detail)

    def inspected(self, epoch: Sequence[Example], findings: Sequence[Finding]) -> Inspected:
        """What was found, once all rows have been looked at."""
        unused = len(self.examples) - len(epoch)
        counts = Counts(rows=len(self.places), **totals_of(epoch), unused=unused, **self.counter)
        lengths, trained = np.array(self.sizes, np.int64).reshape(-1, 2).T
        about = tokenizer_findings(self.context, self.chats)
        return Inspected(
            examples=self.examples,
            epoch=epoch,
            counts=counts,
            places=self.places,
            lengths=lengths,
            trained=trained,
            digests=self.digester.digests(),
            with_prompt=np.array(self.prompts, np.bool_),
            findings=[*findings, *about, *self.observed.findings(), *_count_findings(counts)],
        )


def _has_prompt(row: Row) -> bool:
    return bool(row.prompt) if isinstance(row, CompletionRow) else isinstance(row, ChatRow)


def _count_findings(counts: Counts) -> list[Finding]:
    found = []
    told = dataclasses.replace(counts, dropped_bad=0, unused=0).dropped()  # broken rows have a finding of their own
    dropped = counts.dropped_overlong + counts.dropped_truncated + counts.dropped_no_assistant + counts.dropped_empty
    if dropped:
        found.append(finding("rows.dropped", count=dropped, total=counts.rows, detail=told))
    if not counts.examples + counts.unused:
        found.append(finding("rows.none", detail=f"of {counts.rows:,}"))
    if counts.tokens and counts.trained_tokens < LITTLE * counts.tokens:
        share = counts.trained_tokens / counts.tokens
        found.append(finding("mask.little", detail=f"{share:.2%} of {counts.tokens:,}"))
    return found
