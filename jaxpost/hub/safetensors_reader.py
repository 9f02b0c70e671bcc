"""Reading safetensors files: the tensors of a folder by name, and slices of them on demand.

Headers are read and checked for all files before any tensor; a tensor's bytes are mapped while they are read and no
longer, so that nothing of a file stays in memory.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.core.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: what the header says, and the way to its bytes."""

    name: str
    file: Path
    dtype_name: str  # as safetensors spells it: F32, BF16, ...
    shape: tuple[int, ...]
    offset: int  # of the first byte, from the start of the file

    @property
    def dtype(self) -> np.dtype:
        """The tensor's own dtype; InputError where it is not a float that a model is made of."""
        if self.dtype_name not in DTYPES:
            raise InputError(
                f"`{self.name}` must be one of {', '.join(DTYPES)}; got {self.dtype_name} at {self.file}. "
                "Quantised and integer weights cannot be read; use the original checkpoint."
            )
        return DTYPES[self.dtype_name]

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor (or the part `index` of it) in its own dtype, as a read-only map of the file."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)[index]
        flat = np.memmap(self.file, self.dtype, "r", self.offset, (math.prod(self.shape),))
        return np.asarray(flat.reshape(self.shape)[index])


def open_folder(folder: str | Path) -> dict[str, Stored]:
    """The tensors of a checkpoint folder, by name: `model.safetensors`, or the shards that the index names.

    Raises:
      InputError: no weights, weights as pickle only, a shard that is missing, cut short or damaged, a tensor that is
        in two shards or not where the index says.
    """
    folder = Path(folder)
    index, single = folder / INDEX, folder / SINGLE
    if index.exists() and single.exists():
        raise InputError(f"{folder} must hold {INDEX} or {SINGLE}, not both; remove the one that is out of date.")
    if single.exists():
        return open_file(single)
    if index.exists():
        return _open_shards(folder, _weight_map(index))
    raise _no_weights(folder)


def open_file(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, by name; the header is checked against the file's length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise _damaged(path, size, "its header does not fit into it")
        header = _parse(path, size, file.read(length))
    start = 8 + length
    header.pop("__metadata__", None)
    tensors = {name: _stored(path, size, start, name, entry) for name, entry in header.items()}
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    filled = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())
    if start + end != size or filled != end:
        raise _damaged(path, size, f"its {len(tensors)} tensors end at byte {start + end} and fill {filled} bytes")
    return tensors


def _parse(path: Path, size: int, data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise _damaged(path, size, "its header is not JSON")
    return header


def _stored(path: Path, size: int, start: int, name: str, entry: Any) -> Stored:
    try:
        dtype, shape = entry["dtype"], tuple(map(int, entry["shape"]))
        first, last = map(int, entry["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise _damaged(path, size, f"its header has no dtype, shape and offsets for {name}") from None
    itemsize = DTYPES[dtype].itemsize if dtype in DTYPES else None
    if first < 0 or last < first or (itemsize and last - first != itemsize * math.prod(shape)):
        raise _damaged(path, size, f"its header contradicts itself about {name}")
    return Stored(name, path, dtype, shape, start + first)


def _damaged(path: Path, size: int, why: str) -> InputError:
    with path.open("rb") as file:
        pointer = file.read(20).startswith(b"version https://git")
    hint = (
        "It is a Git LFS pointer: run `git lfs pull`." if pointer else "The download looks incomplete: fetch it again."
    )
    return InputError(f"{path} must be a whole safetensors file; got {size} bytes, and {why}. {hint}")


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise InputError(f"`weight_map` must name the shard of each tensor; got none in {index}.")
    for name, file in files.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"`{name}` must be in a file of the same folder; got {file!r} in {index}.")
    return files


def _open_shards(folder: Path, weight_map: dict[str, str]) -> dict[str, Stored]:
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        held = sum(file == missing[0] for file in weight_map.values())
        others = f" ({len(missing)} of {len(files)} shards are missing)" if len(missing) > 1 else ""
        raise InputError(
            f"{missing[0]} must be in {folder}; got no such file, and {INDEX} says that it holds {held} of "
            f"{len(weight_map)} tensors{others}. The download looks incomplete: fetch it again."
        )
    tensors: dict[str, Stored] = {}
    for file in files:
        for name, stored in open_file(folder / file).items():
            if name in tensors:
                raise InputError(
                    f"`{name}` must be in one shard; got it in {tensors[name].file.name} and in {file} of {folder}. "
                    "Which one is meant cannot be known: save the checkpoint again."
                )
            tensors[name] = stored
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            got = tensors[name].file.name if name in tensors else "no such tensor"
            raise InputError(f"`{name}` must be in {file} as {INDEX} says; got {got} in {folder}. Fetch it again.")
    return tensors


def _no_weights(folder: Path) -> InputError:
    found = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickles = [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    shards = [name for name in found if name.endswith(".safetensors")]
    if "adapter_config.json" in found:
        hint = "It is an adapter: give the base model here, and the folder to --adapter."
    elif shards:
        hint = f"It holds {shards[0]} without an index: fetch {INDEX}."
    elif pickles:
        hint = f"{pickles[0]} is a pickle, which can run code when read: save it as safetensors with transformers."
    elif any(name.endswith(".gguf") for name in found):
        hint = "It holds GGUF: run `jaxpost import FILE.gguf` first."
    else:
        hint = "The download looks incomplete: fetch it again."
    return InputError(f"{folder} must hold {SINGLE} or {INDEX}; got neither. {hint}")
