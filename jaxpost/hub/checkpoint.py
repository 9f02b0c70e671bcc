"""`load`: a Hugging Face checkpoint folder into a `Model`, one tensor at a time."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost.core.errors import InputError, suggestion
from jaxpost.hub.model import Model
from jaxpost.hub.names import EMBEDDING, HEAD, Leaf, leaves
from jaxpost.hub.safetensors_reader import Stored, open_folder
from jaxpost.hub.save import save, write
from jaxpost.hub.source import find_folder, read_config
from jaxpost.models.config import ModelConfig, abstract_params
from jaxpost.sharding import tree_shardings

__all__ = ["load", "save", "write"]

DTYPES = ("float32", "bfloat16", "float16")
# Buffers that old transformers saved: computed anew from the configuration, never trusted.
_ROTARY = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_ALIGNMENT = 64  # bytes; XLA on CPU takes over a buffer that is aligned so without a copy


def load(path: str | Path, dtype: Any = None, quantize: str | None = None, mesh: Any = None) -> Model:
    """Read a checkpoint: config.json, safetensors in one or many files, tokenizer (when asked for).

    Tensors are streamed into the stacks one by one, so that the host holds the result and little more; with a mesh,
    each device's part alone is read.

    Args:
      path: a folder, or a Hugging Face Hub id.
      dtype: "float32", "bfloat16" or "float16" for all parameters; "auto" is float32 on CPU and bfloat16 elsewhere;
        None keeps the checkpoint's own, the widest of each stack.
      quantize: None or "none".
      mesh: a mesh of `jaxpost.sharding.make_mesh`; None is the default device.

    Raises:
      InputError: what the folder holds is not exactly the model that config.json describes; the message names it.
        Harmless: rotary `inv_freq` buffers, and an `lm_head` that equals the tied embedding.
    """
    if quantize not in (None, "none"):
        raise InputError(f"`quantize` must be none; got {quantize!r}. 4-bit base weights are not supported yet.")
    target = _dtype(dtype)
    folder = find_folder(path)
    hf, config = read_config(folder)
    stored = open_folder(folder)
    found, structure = leaves(config)
    _check(found, stored, config, folder)
    shardings = None if mesh is None else _shardings(config, mesh)
    arrays = []
    for i, leaf in enumerate(found):
        tensors = [stored[name] for name in leaf.names]
        widest = functools.reduce(jnp.promote_types, [t.dtype for t in tensors])
        arrays.append(_array(tensors, leaf, np.dtype(target or widest), shardings and shardings[i]))
    dtypes = {name: stored[name].dtype.name for leaf in found for name in leaf.names}
    params = jax.tree.unflatten(structure, arrays)
    return Model(config=config, params=params, folder=folder, hf_config=hf, checkpoint_dtypes=dtypes)


def _dtype(dtype: Any) -> np.dtype | None:
    if dtype is None:
        return None
    if isinstance(dtype, str) and dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise InputError(f"`dtype` must be auto, {', '.join(DTYPES)}; got {dtype!r}.{suggestion(name, DTYPES)}")
    return jnp.dtype(name)


def _shardings(config: ModelConfig, mesh: Any) -> list[Any]:
    return jax.tree.leaves(tree_shardings(abstract_params(config), mesh, config.num_kv_heads, config.num_heads))


def _array(tensors: Sequence[Stored], leaf: Leaf, dtype: np.dtype, sharding: Any) -> jax.Array:
    if sharding is None:
        whole = tuple(slice(0, n) for n in leaf.shape)
        # Waiting bounds the host's memory by one leaf where the device has its own.
        return jax.block_until_ready(jax.device_put(_part(tensors, leaf, dtype, whole)))
    parts: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        """A device's part; what is replicated is read once."""
        assert index is not None, "jax asks for parts of what it puts on a mesh"
        bounds = tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, leaf.shape, strict=True))
        key = tuple((s.start, s.stop) for s in bounds)
        if key not in parts:
            parts[key] = _part(tensors, leaf, dtype, bounds)
        return parts[key]

    return jax.make_array_from_callback(leaf.shape, sharding, part, dtype=dtype)


def _part(tensors: Sequence[Stored], leaf: Leaf, dtype: np.dtype, bounds: tuple[slice, ...]) -> np.ndarray:
    """The part of a leaf within `bounds`, each tensor cast once from its own dtype."""
    out = _aligned_empty(tuple(s.stop - s.start for s in bounds), dtype)
    if not leaf.stacked:
        out[...] = tensors[0].read(bounds)
        return out
    for row, tensor in zip(out, tensors[bounds[0]], strict=True):
        row[...] = tensor.read(bounds[1:])
    return out


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _check(found: Sequence[Leaf], stored: dict[str, Stored], config: ModelConfig, folder: Path) -> None:
    """InputError unless the tensors are exactly those of the model, in its shapes."""
    expected = {name: leaf.tensor_shape for leaf in found for name in leaf.names}
    missing = [name for name in expected if name not in stored]
    extra = [name for name in stored if name not in expected and not _ROTARY.fullmatch(name)]
    if config.tie_word_embeddings and HEAD in extra and not missing:
        _check_tied_head(stored, folder)
        extra.remove(HEAD)
    if missing:
        also = f" It holds {_listed(extra)} instead." if extra else " Is the checkpoint whole?"
        raise InputError(f"{_listed(missing)} must be in the checkpoint; got no such tensor at {folder}.{also}")
    if extra:
        raise InputError(
            f"{_listed(extra)} must not be in a {config.family} checkpoint of this config.json; got it at {folder}. "
            "The model would leave it out and give other results: check config.json (biases, tied embeddings, layers)."
        )
    wrong = [name for name, shape in expected.items() if stored[name].shape != shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{_listed(wrong)} must have shape {list(expected[name])} by config.json; got {list(stored[name].shape)} "
            f"at {stored[name].file}. Weights and config.json are of different models."
        )


def _check_tied_head(stored: dict[str, Stored], folder: Path) -> None:
    head, table = stored[HEAD], stored[EMBEDDING]
    same = head.shape == table.shape and all(
        np.array_equal(head.read((rows,)).astype(np.float32), table.read((rows,)).astype(np.float32))
        for rows in (slice(i, i + 4096) for i in range(0, head.shape[0], 4096))
    )
    if not same:
        raise InputError(
            f"`{HEAD}` must equal `{EMBEDDING}` where tie_word_embeddings is true; got another at {folder}. "
            "Set tie_word_embeddings to false in config.json if the head is meant."
        )


def _listed(names: Sequence[str]) -> str:
    """The first few names and how many there are.

    >>> _listed(["a", "b", "c", "d", "e"])
    '`a`, `b`, `c` (and 2 more)'
    """
    rest = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return ", ".join(f"`{name}`" for name in names[:3]) + rest
