"""Mixtures: how many rows of each source an epoch takes, and which ones."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from jaxpost.core.errors import InputError
from jaxpost.data.names import DataName


def mixture_sizes(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Rows of each source in an epoch, so that fractions are those of the weights and no row comes twice.

    The epoch ends where the source that is scarcest for its weight is used up: `N = min_i floor(sizes_i / w_i)` with
    weights that sum to 1, the rule "first_exhausted" (under-sampling) of `datasets.interleave_datasets`. Source i gives
    `floor(N w_i)` rows or one more (largest remainders first), so each count is within 1 row of `N w_i`.

    Args:
      sizes: rows of each source, 1 or more.   weights: above 0, of any sum.

    Raises:
      InputError: sources so small for their weights that one of them would give no row.

    >>> mixture_sizes([1000, 50], [0.9, 0.1])
    [450, 50]
    """
    exact = [Fraction(str(weight)) for weight in weights]  # as they were written: 0.7 and 0.3 sum to 1
    shares = [weight / sum(exact) for weight in exact]
    total = min(math.floor(size / share) for size, share in zip(sizes, shares, strict=True))
    counts = [math.floor(total * share) for share in shares]
    remainders = [total * share - count for share, count in zip(shares, counts, strict=True)]
    for index in sorted(range(len(counts)), key=lambda i: -remainders[i])[: total - sum(counts)]:
        counts[index] += 1  # no more than the source has: N w_i <= sizes_i, which is whole
    if 0 in counts:
        raise InputError(
            f"each weighted item of `data` must give a row to an epoch; got {total} rows an epoch, as it ends where an "
            f"item is used up, and none of item {counts.index(0) + 1}. Change the weights or add rows."
        )
    return counts


def choose(sizes: Sequence[int], counts: Sequence[int], seed: int) -> Int64[np.ndarray, " rows"]:
    """Indices into the sources put one after another: `counts[i]` rows of source i, drawn without replacement.

    A pure function of its arguments; source i's draw depends on no other source. Sorted: batches have their own order.
    """
    starts = np.cumsum([0, *sizes[:-1]])
    drawn = [
        start + np.sort(np.random.default_rng([seed, index]).choice(size, count, replace=False, shuffle=False))
        for index, (start, size, count) in enumerate(zip(starts, sizes, counts, strict=True))
    ]
    return np.concatenate(drawn).astype(np.int64)


def drawn(
    names: Sequence[DataName], rows: Sequence[int], sizes: Sequence[int], seed: int
) -> Int64[np.ndarray, " examples"] | None:
    """Which examples an epoch holds: indices into those of the items put one after another; None, for all, without
    weights.

    Args:
      names: the items.   rows: how many rows each has.   sizes: how many of them are left to train on.

    Raises:
      InputError: a mixture that cannot be had.
    """
    weights = weights_of(names)
    if weights is None:
        return None
    if 0 in sizes:
        item = sizes.index(0)
        raise InputError(
            f"each weighted item of `data` must hold a row to train on; got {rows[item]} rows, none of them left, in "
            f"{names[item].text}. Check the data, or remove the item."
        )
    return choose(sizes, mixture_sizes(sizes, weights), seed)


def weights_of(names: Sequence[DataName]) -> list[float] | None:
    """The weights of the items, None where they have none."""
    return [name.weight for name in names if name.weight is not None] or None
