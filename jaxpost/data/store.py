"""Examples in an Arrow file: written as they come, read from the memory-mapped file one at a time."""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from jaxpost.data.examples import Example, Fingerprint

ROWS_AT_ONCE = 1024  # examples of a record batch


def write_examples(path: Path, examples: Iterable[Example]) -> str:
    """Writes an Arrow IPC file of the columns `ids`, `trained` and `source`; returns the examples' fingerprint."""
    import pyarrow

    lists = {"ids": pyarrow.large_list(pyarrow.int32()), "trained": pyarrow.large_list(pyarrow.uint8())}
    schema = pyarrow.schema([*lists.items(), ("source", pyarrow.int64())])
    fingerprint = Fingerprint()
    examples = iter(examples)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
        while chunk := list(itertools.islice(examples, ROWS_AT_ONCE)):
            fingerprint.update(chunk)
            offsets = np.cumsum([0, *(len(example.ids) for example in chunk)], dtype=np.int64)
            ids = np.concatenate([example.ids for example in chunk])
            trained = np.concatenate([example.trained for example in chunk]).view(np.uint8)
            columns = [pyarrow.LargeListArray.from_arrays(offsets, values) for values in (ids, trained)]
            columns.append(pyarrow.array([example.source for example in chunk], pyarrow.int64()))
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
    return fingerprint.hexdigest()


class Stored(Sequence[Example]):
    """The examples of a file that `write_examples` has written: arrays are views of the mapped file."""

    def __init__(self, path: Path):
        import pyarrow

        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._offsets = [batch["ids"].offsets.to_numpy() for batch in batches]
        self._ids = [batch["ids"].values.to_numpy() for batch in batches]
        self._trained = [batch["trained"].values.to_numpy().view(np.bool_) for batch in batches]
        self._sources = [batch["source"].to_numpy() for batch in batches]
        self._starts = list(itertools.accumulate((batch.num_rows for batch in batches), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        batch = bisect.bisect_right(self._starts, index) - 1
        row = index - self._starts[batch]
        start, end = self._offsets[batch][row : row + 2].tolist()
        ids, trained = self._ids[batch][start:end], self._trained[batch][start:end]
        return Example(ids=ids, trained=trained, source=int(self._sources[batch][row]))

    @property
    def lengths(self) -> Int32[np.ndarray, " examples"]:
        """Tokens of each example."""
        return np.concatenate([np.zeros(0, np.int32), *(np.diff(offsets) for offsets in self._offsets)], dtype=np.int32)
