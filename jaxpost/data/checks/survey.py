"""What a data set comes to in tokens and steps, and how a row of it looks to the model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpost.data.batches import BatchPlan
from jaxpost.data.checks.findings import Finding, finding
from jaxpost.data.checks.inspection import Inspected
from jaxpost.data.examples import Example

SAMPLED_BATCHES = 64
BINS = 8  # of the histogram
WASTE = 0.5  # share of padding from which on packing is worth a note


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """The numbers of the report.

    Attributes:
      rows, kept: read, and trained on.
      tokens, trained_tokens: of the rows kept, after cutting: what an epoch trains on.
      truncated_rows, lost_tokens: rows that are cut, and the tokens behind their cut.
      lengths: tokens of a row before it is cut, at 0, 50, 90, 99 and 100 %.
      histogram: (longest row of the bin in tokens, rows in it).
      filled: share of the batches' places that hold a token; the rest is padding.
      steps_per_epoch, steps: optimizer steps.
    """

    rows: int
    kept: int
    tokens: int
    trained_tokens: int
    truncated_rows: int
    lost_tokens: int
    lengths: tuple[int, ...]
    histogram: tuple[tuple[int, int], ...]
    filled: float
    steps_per_epoch: int
    steps: int


def survey(inspected: Inspected, plan: BatchPlan, *, steps: int) -> Survey:
    """The numbers of a data set and of the run on it."""
    counts, lengths = inspected.counts, inspected.lengths
    return Survey(
        rows=counts.rows,
        kept=counts.examples,
        tokens=counts.tokens,
        trained_tokens=counts.trained_tokens,
        truncated_rows=counts.truncated + counts.dropped_truncated,
        lost_tokens=int(np.maximum(lengths - plan.max_length, 0).sum()),
        lengths=tuple(int(n) for n in np.percentile(lengths, (0, 50, 90, 99, 100))),
        histogram=histogram(lengths),
        filled=filled(plan),
        steps_per_epoch=plan.steps_per_epoch,
        steps=steps,
    )


def histogram(lengths: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(upper edge, rows) of up to `BINS` bins of equal width.

    >>> histogram(np.array([1, 2, 2, 9]))
    ((2, 3), (4, 0), (6, 0), (8, 0), (10, 1))
    """
    width = max(1, -(-int(lengths.max()) // BINS))
    counts = np.bincount((lengths - 1) // width)
    return tuple(((i + 1) * width, int(count)) for i, count in enumerate(counts))


def filled(plan: BatchPlan) -> float:
    """The share of places that hold a token, over up to `SAMPLED_BATCHES` batches of the first epoch."""
    steps = np.unique(np.linspace(0, plan.steps_per_epoch - 1, SAMPLED_BATCHES).astype(int)).tolist()
    made = [plan.batch(step) for step in steps]
    return sum(info.num_tokens for _, _, info in made) / sum(rows["tokens"].size for rows, _, _ in made)


def packing_findings(numbers: Survey, plan: BatchPlan) -> list[Finding]:
    """A note where packing is off and most of a batch is padding."""
    if plan.packing or numbers.filled > 1 - WASTE:
        return []
    return [finding("packing.waste", detail=f"{1 - numbers.filled:.0%} of the places")]


def chosen_rows(examples: Sequence[Example], random: int, seed: int) -> list[tuple[str, Example]]:
    """The first example, the longest, and some at random, each once, with the reason."""
    picked: dict[int, str] = {}
    if examples:
        picked[0] = "first"
        picked.setdefault(int(np.argmax([len(example.ids) for example in examples])), "longest")
        most = min(len(examples), len(picked) + random)
        for index in np.random.default_rng(seed).permutation(len(examples)).tolist():
            if len(picked) >= most:
                break
            picked.setdefault(index, "random")
    return [(why, examples[index]) for index, why in picked.items()]


def pieces(tokenizer: Any, example: Example) -> list[tuple[str, bool]]:
    """The text of an example in runs of tokens that are all trained, or all not; special tokens are spelled out."""
    edges = [0, *(np.flatnonzero(np.diff(example.trained)) + 1).tolist(), len(example.ids)]
    spell = lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)  # noqa: E731
    found, before = [], ""
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        whole = spell(example.ids[:end])
        # Tokenizers that put a blank before words drop that of a run decoded alone; half a character has no text yet.
        text = whole[len(before) :] if whole.startswith(before) else spell(example.ids[start:end])
        found.append((text, bool(example.trained[start])))
        before = whole
    return found
