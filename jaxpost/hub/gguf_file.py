"""A GGUF file opened: metadata with checked types, tensors by GGUF's names, read as float32 one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np

from jaxpost.core.errors import InputError

T = TypeVar("T", int, float, bool, str)


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The key-value part of a GGUF file; a key that is missing or of another type is an `InputError` that names it."""

    path: Path
    fields: Mapping[str, gguf.ReaderField]

    def optional(self, key: str, kind: type[T]) -> T | None:
        return None if key not in self.fields else self._cast(key, self._contents(key), kind)

    def required(self, key: str, kind: type[T]) -> T:
        return self._cast(key, self._contents(key), kind)

    def required_list(self, key: str, kind: type[T]) -> list[T]:
        values = self._contents(key)
        if not isinstance(values, list):
            raise InputError(f"{self.path}: metadata key `{key}` must be a list; got {values!r:.80}.")
        return [self._cast(key, value, kind) for value in values]

    def size(self, key: str, default: int | None = None) -> int:
        """A number that must be at least 1."""
        if default is not None and key not in self.fields:
            return default
        value = self.required(key, int)
        if value < 1:
            raise InputError(f"{self.path}: metadata key `{key}` must be at least 1; got {value}.")
        return value

    def decimal(self, key: str, default: float | None = None) -> float:
        """The shortest decimal of the stored float32: 1e-05, not 9.999999747378752e-06."""
        if default is not None and key not in self.fields:
            return default
        return float(str(np.float32(self.required(key, float))))

    def _contents(self, key: str) -> Any:
        if key not in self.fields:
            raise InputError(f"{self.path}: metadata key `{key}` is missing. Convert the model to GGUF again.")
        try:
            return self.fields[key].contents()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: metadata key `{key}` must be UTF-8 text; {error}.") from error

    def _cast(self, key: str, value: Any, kind: type[T]) -> T:
        if kind is float and type(value) is int:
            return kind(value)
        if type(value) is not kind:
            raise InputError(f"{self.path}: metadata key `{key}` must be {kind.__name__}; got {value!r:.80}.")
        return value


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """An opened (memory-mapped) GGUF file: metadata and tensors by GGUF's names."""

    path: Path
    metadata: Metadata
    tensors: Mapping[str, gguf.ReaderTensor]


def open_gguf(path: str | Path) -> GgufFile:
    """Map the file and read its headers.

    Raises:
      InputError: not a GGUF file, truncated or damaged, of the other byte order, or one part of a split model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"`FILE` must be a GGUF file; got {path}, which is no file.")
    try:
        reader = gguf.GGUFReader(path)
    # The reader slices a memory map without bounds checks: what a damaged file raises depends on where it is damaged.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
        raise InputError(f"{path}: not a whole GGUF file ({error}). Download it again.") from error
    if reader.byte_order != "I":
        raise InputError(f"{path}: the file's byte order must be this machine's; got the other one.")
    metadata = Metadata(path=path, fields=reader.fields)
    if (parts := metadata.optional("split.count", int) or 1) > 1:
        raise InputError(
            f"{path}: one of {parts} parts (`split.count`); join them with llama-gguf-split --merge first."
        )
    return GgufFile(path=path, metadata=metadata, tensors={tensor.name: tensor for tensor in reader.tensors})


def read_float32(path: Path, tensor: gguf.ReaderTensor) -> np.ndarray:
    """The tensor as float32 in its logical shape, whatever it is stored as."""
    values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
    if not np.isfinite(values).all():
        raise InputError(
            f"{path}: tensor `{tensor.name}` holds NaN or infinity. The file is damaged; download it again."
        )
    return values
