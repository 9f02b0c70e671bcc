"""Which checkpoint it is: a hash of the tensors that a folder holds and of its configuration."""

import hashlib
import json
import math
from typing import BinaryIO

from jaxpost.core.errors import InputError
from jaxpost.hub.model import Model
from jaxpost.hub.safetensors_reader import Stored, open_folder

BLOCK, BLOCKS = 4096, 16  # bytes, and how many of a large tensor are read
_NO_MATTER = ("_name_or_path", "transformers_version", "use_cache", "architectures")


def fingerprint(model: Model) -> str:
    """SHA-256 of the configuration and of every tensor's name, dtype, shape and bytes, of a large one a sample.

    The sample is 16 blocks of 4 KiB, evenly spread: training changes every block of a weight, and 14 GB need not be
    read again for it. The folder's path and how it is cut into shards do not matter.
    """
    if model.folder is None:
        raise InputError("`model` must come from a folder; this one was made in memory.")
    kept = {name: value for name, value in model.hf_config.items() if name not in _NO_MATTER}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name, stored in sorted(open_folder(model.folder).items()):
        digest.update(f"{name} {stored.dtype_name} {stored.shape}".encode())
        with stored.file.open("rb") as file:
            _sample(file, stored, digest)
    return digest.hexdigest()


def _sample(file: BinaryIO, stored: Stored, digest: "hashlib._Hash") -> None:
    size = math.prod(stored.shape) * stored.dtype.itemsize
    whole = size <= BLOCK * BLOCKS
    starts = [0] if whole else [(size - BLOCK) * i // (BLOCKS - 1) for i in range(BLOCKS)]
    for start in starts:
        file.seek(stored.offset + start)
        digest.update(file.read(size if whole else BLOCK))
