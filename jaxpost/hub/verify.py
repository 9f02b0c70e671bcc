"""Reading back what was written: a folder holds the given parameters, and differs from its base where it should."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpost.core.errors import RunError
from jaxpost.core.tree import path_string
from jaxpost.hub.names import leaves
from jaxpost.hub.safetensors_reader import open_folder
from jaxpost.models.config import ModelConfig


def check_written(folder: Path, config: ModelConfig, params: Any) -> None:
    """RunError unless the folder holds exactly `params`: each tensor, bit for bit in its own dtype, and no other.

    One tensor at a time is held on the host.
    """
    stored = open_folder(folder)
    arrays = {path_string(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    wanted = {name: (leaf, row) for leaf in leaves(config)[0] for row, name in enumerate(leaf.names)}
    wrong = sorted(wanted.keys() ^ stored.keys())
    for name, (leaf, row) in wanted.items() if not wrong else ():
        array = arrays[leaf.path]
        want = np.asarray(array[row] if leaf.stacked else array)
        if not _same_bits(stored[name].read(), want.astype(stored[name].dtype)):
            wrong.append(name)
    if wrong:
        raise RunError(f"`{wrong[0]}` read back from {folder} is not what was written; nothing was kept.")


def changed_tensors(folder: Path, base: Path) -> set[str]:
    """Names of the tensors whose values in `folder` are not those of `base`, in the dtype of `folder`."""
    new, old = open_folder(folder), open_folder(base)
    return {
        name
        for name, tensor in new.items()
        if name not in old or not _same_bits(tensor.read(), old[name].read().astype(tensor.dtype))
    }


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))
