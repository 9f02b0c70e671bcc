"""Best-fit-decreasing: whole documents, full bins, quickly."""

import time

import numpy as np
import pytest

from jaxpost.core.errors import InputError
from jaxpost.data.packing import pack


def by_definition(lengths, capacity):
    """Each document, the longest first, into the fullest bin that holds it, found by trying them all: the fills."""
    fills = []
    for length in sorted(lengths, reverse=True):
        fitting = [(fill, place) for place, fill in enumerate(fills) if fill + length <= capacity]
        if fitting:
            fills[max(fitting)[1]] += length
        else:
            fills.append(length)
    return sorted(fills)


@pytest.mark.parametrize("seed", range(20))
def test_bins_are_those_of_the_definition(seed):
    """Mutation: jaxpost/data/packing.py: `np.argsort(-sizes, kind="stable")` -> `np.argsort(sizes, kind="stable")`"""
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 200))
    lengths = rng.integers(1, capacity + 1, size=rng.integers(0, 150)).tolist()
    bins = pack(lengths, capacity)
    assert sorted(index for row in bins for index in row) == list(range(len(lengths)))
    fills = [sum(lengths[index] for index in row) for row in bins]
    assert sorted(fills) == by_definition(lengths, capacity)
    assert max(fills, default=0) <= capacity


@pytest.mark.parametrize("seed", range(5))
def test_the_number_of_bins_depends_only_on_the_lengths(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 65, size=300)
    fills = [
        sorted(int(order[row].sum()) for row in pack(order.tolist(), 64))
        for order in (lengths, rng.permutation(lengths))
    ]
    assert fills[0] == fills[1]


def test_equal_lengths_keep_their_order():
    assert pack([3, 3, 3, 3], capacity=6) == [[0, 1], [2, 3]]
    assert pack([], capacity=6) == []
    assert pack([6, 6], capacity=6) == [[0], [1]]


@pytest.mark.parametrize("lengths", [[1, 0], [3, 9], [-1]])
def test_lengths_that_cannot_be_packed_are_refused(lengths):
    with pytest.raises(InputError, match="capacity 8"):
        pack(lengths, capacity=8)


def test_a_large_set_packs_in_seconds_and_tightly():
    """50,000 documents: quadratic code would take minutes. Best fit fills bins of many sizes within a percent."""
    lengths = np.minimum(np.random.default_rng(0).lognormal(5, 1, 50_000).astype(int) + 1, 4096).tolist()
    start = time.perf_counter()
    bins = pack(lengths, 4096)
    assert time.perf_counter() - start < 30
    assert len(bins) <= 1.01 * sum(lengths) / 4096 + 1
