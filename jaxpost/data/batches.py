"""Examples -> batches of a few static shapes, as a function of the step.

The order is not a state: batch n follows from the examples, the seed and n alone, so resuming a run needs no cursor.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32

from jaxpost.core.errors import InputError
from jaxpost.data.examples import Example, lengths_of
from jaxpost.data.packing import pack

BUCKET = 64  # tokens: the smallest bucket without packing, and what a packed bucket's length is a multiple of
Rows = dict[str, Int32[np.ndarray, " accumulate micro T"] | Float32[np.ndarray, " accumulate micro T"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchInfo:
    """What a batch holds.

    Attributes:
      num_tokens: tokens that are no padding.
      trained_tokens: those of them that are predicted (the sum of the loss mask).
      epoch: passes over the data when this batch is done; 0.5 is half of the first.
      sources: for each row of the batch, in order, the numbers of the data's rows in it.
    """

    num_tokens: int
    trained_tokens: int
    epoch: float
    sources: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BatchPlan:
    """The batches of a run.

    Attributes:
      examples: each of at most `max_length` tokens.
      batch_size: rows of a global batch: packed rows with `packing`, documents without.
      micro_batch_size: rows of one micro-batch; divides `batch_size`.
      max_length: the longest row, in tokens.
      packing: put several documents into a row, by best fit over the whole set.
      seed: of the order; each epoch has its own.

    Raises:
      InputError: no examples, one that is too long, or sizes that do not fit each other.
    """

    examples: Sequence[Example]
    batch_size: int
    micro_batch_size: int
    max_length: int
    packing: bool
    seed: int

    def __post_init__(self):
        if not self.examples:
            raise InputError("`examples` must not be empty; got none. Check what the rows were dropped for.")
        if self.micro_batch_size < 1 or self.batch_size < 1 or self.batch_size % self.micro_batch_size:
            raise InputError(
                f"`micro_batch_size` must divide `batch_size`; got {self.micro_batch_size} and {self.batch_size}. "
                "Change one of them."
            )
        if (longest := int(lengths_of(self.examples).max())) > self.max_length:
            raise InputError(
                f"`examples` must fit `max_length` {self.max_length}; got one of {longest} tokens. Cut it."
            )

    @functools.cached_property
    def rows(self) -> list[list[int]]:
        """The examples of each row, by index, in the order before shuffling."""
        if self.packing:
            return _packed(lengths_of(self.examples).tobytes(), self.max_length)
        return [[index] for index in range(len(self.examples))]

    @functools.cached_property
    def lengths(self) -> Int32[np.ndarray, " rows"]:
        """Tokens in each row."""
        lengths = lengths_of(self.examples)
        return np.array([lengths[row].sum() for row in self.rows], np.int32)

    @property
    def accumulate(self) -> int:
        """Micro-batches of a step: enough for a full batch, or for all rows where they are fewer than that."""
        return -(-min(self.batch_size, len(self.rows)) // self.micro_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last may be a part batch, and is trained like the others."""
        return -(-len(self.rows) // self.batch_size)

    def buckets(self, steps: int) -> list[tuple[int, int, int]]:
        """The static shapes [accumulate, micro, T] that steps 0 to `steps - 1` use, shortest first."""
        used: set[int] = set()
        for epoch in range(-(-steps // self.steps_per_epoch)):
            lengths = self.lengths[_order(self.seed, epoch, len(self.rows))]
            longest = np.maximum.reduceat(lengths, np.arange(0, len(lengths), self.batch_size))
            used.update(longest[: steps - epoch * self.steps_per_epoch].tolist())
        return [(self.accumulate, self.micro_batch_size, length) for length in sorted({self._bucket(n) for n in used})]

    def batch(self, step: int) -> tuple[Rows, dict[str, np.float32], BatchInfo]:
        """The batch of a step, from 0 on: a pure function of the examples, the seed and the step.

        Returns:
          rows: `tokens`, `segment_ids`, `positions` (int32) and `loss_mask` (float32), each [accumulate, micro, T].
            Segment 0 is padding, documents count from 1 in each row; positions count from 0 in each document; the loss
            mask is 1 at each token that is predicted, so never at padding or at the first token of a document. A part
            batch is filled up with rows that are all padding.
          totals: `tokens`, the sum of the loss mask over the global batch, the denominator of the loss.
          info: what the batch holds.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        order = _order(self.seed, epoch, len(self.rows))
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        length = self._bucket(int(self.lengths[chosen].max()))
        documents = [[self.examples[i] for i in self.rows[row]] for row in chosen]
        rows = _fill(documents, self.accumulate * self.micro_batch_size, length)
        trained = int(rows["loss_mask"].sum(dtype=np.float64))
        info = BatchInfo(
            num_tokens=int(np.count_nonzero(rows["segment_ids"])),
            trained_tokens=trained,
            epoch=(step + 1) / self.steps_per_epoch,
            sources=tuple(tuple(example.source for example in row) for row in documents),
        )
        shape = (self.accumulate, self.micro_batch_size, length)
        return {name: leaf.reshape(shape) for name, leaf in rows.items()}, {"tokens": np.float32(trained)}, info

    def _bucket(self, length: int) -> int:
        """The static length for a batch whose longest row has `length` tokens.

        With packing one for the whole run, since nearly every row is full; without, the next power of two.
        """
        if self.packing:
            return min(self.max_length, -(-int(self.lengths.max()) // BUCKET) * BUCKET)
        return min(self.max_length, max(BUCKET, 1 << (length - 1).bit_length()))


@functools.lru_cache(maxsize=2)
def _packed(lengths: bytes, capacity: int) -> list[list[int]]:
    """Packed once for all plans of these lengths: plans are replaced while a micro-batch is looked for."""
    return pack(np.frombuffer(lengths, np.int32), capacity)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def _fill(documents: Sequence[Sequence[Example]], rows: int, length: int) -> dict[str, np.ndarray]:
    """Documents of each row, written one after another into [rows, length]; what is left over is padding."""
    tokens, segment_ids, positions = (np.zeros((rows, length), np.int32) for _ in range(3))
    loss_mask = np.zeros((rows, length), np.float32)
    for row, examples in enumerate(documents):
        start = 0
        for segment, example in enumerate(examples, start=1):
            end = start + len(example.ids)
            tokens[row, start:end] = example.ids
            segment_ids[row, start:end] = segment
            positions[row, start:end] = np.arange(end - start)
            loss_mask[row, start + 1 : end] = example.trained[1:]
            start = end
    return {"tokens": tokens, "segment_ids": segment_ids, "positions": positions, "loss_mask": loss_mask}
