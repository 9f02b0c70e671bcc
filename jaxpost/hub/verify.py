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
    """RunError unless each tensor of the folder is, bit for bit, its part of `params` in the tensor's own dtype.

    One tensor at a time is held on the host.
    """
    stored = open_folder(folder)
    arrays = {path_string(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for leaf in leaves(config)[0]:
        for row, name in enumerate(leaf.names):
            array = arrays[leaf.path]
            want = np.asarray(array[row] if leaf.stacked else array)
            if not np.array_equal(stored[name].read(), want.astype(stored[name].dtype), equal_nan=True):
                raise RunError(f"`{name}` read back from {folder} is not what was written; nothing was kept.")


def changed_tensors(folder: Path, base: Path) -> set[str]:
    """Names of the tensors whose values in `folder` are not those of `base`, in the dtype of `folder`."""
    new, old = open_folder(folder), open_folder(base)
    return {
        name
        for name, tensor in new.items()
        if name not in old or not np.array_equal(tensor.read(), old[name].read().astype(tensor.dtype))
    }
