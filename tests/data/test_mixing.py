"""Mixtures: fractions of rows, whatever the sizes and weights."""

from fractions import Fraction

import numpy as np
import pytest
from refusals import refused

from jaxpost.data.mixing import choose, mixture_sizes


@pytest.mark.parametrize("seed", range(200))
def test_D12_realised_fractions_are_those_asked_for_within_a_row(seed):
    """Each count is within one row of its share, none is over its source, and one more row could not be had.

    Mutation: jaxpost/data/mixing.py: `total = min(math.floor(` -> `total = max(math.floor(`
    Mutation: jaxpost/data/mixing.py: `key=lambda i: -remainders[i])[: total - sum(counts)]` -> `key=lambda i: -remainders[i])[:0]`
    """  # noqa: E501
    rng = np.random.default_rng(seed)
    number = int(rng.integers(1, 6))
    sizes = rng.integers(60, 3000, number).tolist()
    weights = np.round(rng.uniform(0.05, 1.0, number), int(rng.integers(2, 5))).tolist()
    counts = mixture_sizes(sizes, weights)
    total = sum(counts)
    shares = [Fraction(str(weight)) / sum(Fraction(str(weight)) for weight in weights) for weight in weights]
    for count, size, share in zip(counts, sizes, shares, strict=True):
        assert abs(count - total * share) < 1 and 0 < count <= size
    assert any((total + 1) * share > size for size, share in zip(sizes, shares, strict=True))


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ([100, 100], [0.7, 0.3], [99, 43]),
        ([70, 30], [0.7, 0.3], [70, 30]),  # in floats 0.7 of 100 is less than 70
        ([70, 30, 9], [7.0, 3.0, 0.9], [70, 30, 9]),
        ([3, 3, 3], [1 / 3, 1 / 3, 1 / 3], [3, 3, 3]),
        ([10_000, 100], [0.95, 0.05], [1900, 100]),
        ([5], [0.1], [5]),
    ],
)
def test_the_epoch_ends_where_the_scarcest_source_is_used_up(sizes, weights, counts):
    """By hand; all rows where sizes are as the weights.

    Mutation: jaxpost/data/mixing.py: `[Fraction(str(weight)) for weight in weights]` -> `[Fraction(weight) for weight in weights]`
    """  # noqa: E501
    assert mixture_sizes(sizes, weights) == counts


def test_a_source_that_would_give_no_row_is_refused():
    """Mutation: jaxpost/data/mixing.py: `    if 0 in counts:` -> `    if False:`"""
    refused(lambda: mixture_sizes([5, 100], [1.0, 0.01]), "item 2")


def test_rows_are_drawn_without_replacement_by_seed():
    """Of each source as many as said, each once, others for another seed, the same whatever the other source is.

    Mutation: jaxpost/data/mixing.py: `replace=False` -> `replace=True`
    Mutation: jaxpost/data/mixing.py: `default_rng([seed, index])` -> `default_rng([index])`
    """
    sizes, counts = [1000, 50, 300], [400, 50, 7]
    chosen = [choose(sizes, counts, seed) for seed in (0, 0, 1)]
    for indices in chosen:
        assert len(set(indices.tolist())) == sum(counts)
        parts = [indices[indices < 1000], indices[(indices >= 1000) & (indices < 1050)], indices[indices >= 1050]]
        assert [len(part) for part in parts] == counts and indices.max() < 1350
    assert chosen[0].tolist() == chosen[1].tolist() != chosen[2].tolist()
    assert choose([1000, 80], [400, 80], 0)[:400].tolist() == chosen[0][:400].tolist()
