"""Writing safetensors files tensor by tensor, in shards and with an index, named as Hugging Face names them."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxpost.hub.safetensors_reader import DTYPES, INDEX, SINGLE

MAX_SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Unwritten(NamedTuple):
    """A tensor to write: `read` is called when its turn comes, so that one tensor at a time is in memory."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(folder: Path, tensors: Sequence[Unwritten], max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write `tensors` into `folder` as model.safetensors, or as shards of at most `max_shard_bytes` and an index.

    A tensor larger than that has a shard of its own. Not atomic: give a folder that is built aside.
    """
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard)
        weight_map.update({tensor.name: file for tensor in shard})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_file(path: Path, tensors: Iterable[Unwritten]) -> None:
    """Write one safetensors file with the metadata `{"format": "pt"}`, which transformers asks for."""
    # Wide dtypes first, so that each tensor starts at a multiple of its item size: torch cannot map it otherwise.
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in ordered:
            file.write(_bytes(tensor))


def _bytes(tensor: Unwritten) -> memoryview:
    array = np.asarray(tensor.read(), tensor.dtype, order="C")
    if array.shape != tensor.shape:
        raise ValueError(f"{tensor.name}: the reader gave shape {array.shape}, {tensor.shape} was announced")
    return array.reshape(-1).view(np.uint8).data


def _split(tensors: Sequence[Unwritten], max_shard_bytes: int) -> list[list[Unwritten]]:
    shards: list[list[Unwritten]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards
