"""Reads and tokenises a data set as training does, looks at every row, and goes on where training would stop."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int64

from jaxpost.core.errors import InputError
from jaxpost.data.checks.duplicates import Digester, Digests
from jaxpost.data.checks.findings import Finding, Observed, finding
from jaxpost.data.checks.rows import Context, check_row, check_text, tokenizer_findings
from jaxpost.data.encode import fit, tokenise_chunk
from jaxpost.data.examples import Counts, Example, Tokenised
from jaxpost.data.rows import BadRow, ChatRow, CompletionRow, Row

LITTLE = 0.01  # share of trained tokens under which a run teaches little
CHUNK_ROWS = 256  # tokenised at a time; where one of them is refused, each is tried alone


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inspected:
    """A data set that was looked at.

    Attributes:
      examples: as training would see them, cut to `max_length`.
      counts: what became of the rows.
      lengths: tokens of each row that was tokenised, before it is cut.
      trained: how many of them are trained.
      digests: of every row, for the search for duplicates.
      with_prompt: which rows have a prompt.
      findings: of rows, tokenizer and template.
    """

    examples: Sequence[Example]
    counts: Counts
    lengths: Int64[np.ndarray, " tokenised"]
    trained: Int64[np.ndarray, " tokenised"]
    digests: Digests
    with_prompt: Bool[np.ndarray, " rows"]
    findings: Sequence[Finding]

    def where(self, source: int) -> str:
        """File and line of a row by its number."""
        return self.digests.where[source - 1]


def inspect(context: Context, rows: Iterable[Row | BadRow], *, overlong: str, skip_bad: bool = False) -> Inspected:
    """Looks at every row, broken ones too.

    Args:
      overlong: what becomes of a row over `max_length`, as in `encode_rows`.
      skip_bad: broken rows are skipped by training, so they are no error.
    """
    observed, digester = Observed(), Digester()
    counter: collections.Counter[str] = collections.Counter()
    examples: list[Example] = []
    sizes: list[tuple[int, int]] = []
    prompts: list[bool] = []
    source, broken = iter(rows), "rows.skipped" if skip_bad else "rows.refused"
    while read := list(itertools.islice(source, CHUNK_ROWS)):
        chunk = [row for row in read if not isinstance(row, BadRow)]
        for row in read:
            observed.look(broken, row.where, isinstance(row, BadRow), getattr(row, "reason", "").rstrip("."))
        digester.add(chunk)
        prompts += [_has_prompt(row) for row in chunk]
        counter["chats"] += sum(isinstance(row, ChatRow) for row in chunk)
        for row, tokens in _tokenise(context, observed, chunk, broken):
            check_text(context, observed, row)
            if tokens is not None and tokens.trained.any():
                check_row(context, observed, row, tokens)
                _check_length(observed, row, len(tokens.ids), context.max_length, overlong)
                sizes.append((len(tokens.ids), int(tokens.trained.sum())))
            example, note = fit(row, tokens, context.max_length, "drop" if overlong == "error" else overlong)
            counter.update(filter(None, [note]))
            examples += [] if example is None else [example]
    chats = counter.pop("chats", 0)
    counts = Counts(
        rows=len(prompts),
        examples=len(examples),
        tokens=sum(len(example.ids) for example in examples),
        trained_tokens=sum(int(example.trained.sum()) for example in examples),
        **counter,
    )
    lengths, trained = np.array(sizes, np.int64).reshape(-1, 2).T
    return Inspected(
        examples=examples,
        counts=counts,
        lengths=lengths,
        trained=trained,
        digests=digester.digests(),
        with_prompt=np.array(prompts, np.bool_),
        findings=[*tokenizer_findings(context, chats), *observed.findings(), *_count_findings(counts)],
    )


def _tokenise(
    context: Context, observed: Observed, chunk: Sequence[Row], broken: str
) -> Iterator[tuple[Row, Tokenised | None]]:
    """Each row with its tokens, as `encode_rows` makes them; those that are refused are counted and left out."""
    if context.template is None:
        chunk = [row for row in chunk if not isinstance(row, ChatRow)]
    try:
        done = list(tokenise_chunk(context.plain, context.chat, chunk))
    except InputError:
        done = []
        for row in chunk:
            try:
                done += tokenise_chunk(context.plain, context.chat, [row])
            except InputError as error:
                observed.find(broken, row.where, str(error).rstrip("."))
    yield from done


def _has_prompt(row: Row) -> bool:
    return bool(row.prompt) if isinstance(row, CompletionRow) else isinstance(row, ChatRow)


def _check_length(observed: Observed, row: Row, length: int, max_length: int, overlong: str) -> None:
    over = length > max_length
    observed.look("length.truncated", row.where, over and overlong == "truncate")
    if over and overlong == "error":
        detail = f"of {length} tokens, over `--max-length` {max_length} with `--overlong error`"
        observed.find("rows.refused", row.where, detail)


def _count_findings(counts: Counts) -> list[Finding]:
    found = []
    dropped = counts.dropped_overlong + counts.dropped_truncated + counts.dropped_no_assistant + counts.dropped_empty
    if dropped:
        found.append(finding("rows.dropped", count=dropped, total=counts.rows, detail=counts.dropped()))
    if not counts.examples:
        found.append(finding("rows.none", detail=f"of {counts.rows:,}"))
    if counts.tokens and counts.trained_tokens < LITTLE * counts.tokens:
        share = counts.trained_tokens / counts.tokens
        found.append(finding("mask.little", detail=f"{share:.2%} of {counts.tokens:,}"))
    return found
