"""Best-fit-decreasing bin packing: documents into rows of a fixed number of tokens, none of them split."""

from collections.abc import Sequence

import numpy as np

from jaxpost.core.errors import InputError


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Pack documents into bins of `capacity` tokens, the longest first, each into the fullest bin that has room for it.

    Takes O(n log capacity) time. Deterministic: equal lengths go in the order given; the number of bins, and how full
    each is, depend only on the lengths.

    Args:
      lengths: in tokens, each from 1 to `capacity`.
      capacity: in tokens.

    Returns:
      For each bin the indices of its documents.

    Raises:
      InputError: a length outside of 1..capacity.

    >>> pack([2, 5, 3, 4], capacity=7)
    [[1, 0], [3, 2]]
    """
    sizes = np.asarray(lengths, np.int64)
    wrong = np.flatnonzero((sizes < 1) | (sizes > capacity))
    if len(wrong):
        raise InputError(
            f"`lengths` must be from 1 to the capacity {capacity}; got {sizes[wrong[0]]} for document {wrong[0]}. "
            "Cut or drop longer documents before packing."
        )
    rooms = _Rooms(capacity)
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room they have left
    bins: list[list[int]] = []
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        room = rooms.smallest(size)
        if room is None:
            bins.append([])
            number, room = len(bins) - 1, capacity
        else:
            number = open_bins[room].pop()
            if not open_bins[room]:
                rooms.set(room, False)
        bins[number].append(index)
        if left := room - size:
            open_bins[left].append(number)
            rooms.set(left, True)
    return bins


class _Rooms:
    """Which amounts of room some open bin has left: a binary tree over 0..capacity that finds the next one up."""

    def __init__(self, capacity: int):
        self.leaves = 1 << capacity.bit_length()
        self.tree = [False] * (2 * self.leaves)

    def set(self, room: int, there: bool) -> None:
        node = self.leaves + room
        while node and self.tree[node] != there:
            self.tree[node] = there
            node >>= 1
            there = self.tree[2 * node] or self.tree[2 * node + 1]

    def smallest(self, size: int) -> int | None:
        """The least room of at least `size`, or None."""
        node = self.leaves + size
        while not self.tree[node]:
            while node & 1:  # a right child: nothing to the right under this parent
                node >>= 1
            if not node:
                return None
            node += 1
        while node < self.leaves:
            node = 2 * node if self.tree[2 * node] else 2 * node + 1
        return node - self.leaves
