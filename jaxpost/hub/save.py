"""`save`: a model as a Hugging Face folder: config.json, safetensors, generation settings, tokenizer, template."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost.core.errors import InputError, suggestion
from jaxpost.core.files import new_folder
from jaxpost.core.tree import path_string
from jaxpost.hub.model import Model
from jaxpost.hub.names import EMBEDDING, HEAD, Leaf, in_file_order, leaves
from jaxpost.hub.safetensors_reader import DTYPES
from jaxpost.hub.safetensors_writer import MAX_SHARD_BYTES, Unwritten, write_folder
from jaxpost.hub.tokenizer_files import write_stop_ids, write_tokenizer
from jaxpost.models.config import ModelConfig
from jaxpost.models.families import config_from_hf

# Copied byte for byte: stop ids differ between these files and config.json, and each is kept as it was.
COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
_DTYPE_NAMES = {dtype.name: dtype for dtype in DTYPES.values()}


def save(
    folder: str | Path,
    model: Model,
    params: Any = None,
    dtype: str | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `model` (with `params` in place of its own, if given) as a folder that transformers loads.

    The folder is built aside and renamed, so that it is there whole or not at all.

    Args:
      folder: new or empty.
      params: a plain parameter tree; adapters are merged before (`jaxpost.adapters.merge`).
      dtype: of all tensors; None keeps each tensor's dtype of the checkpoint that the model was loaded from.
      max_shard_bytes: more than this is written as several files and an index.

    Raises:
      InputError: a folder that holds something, a tree that is not the model's, values that float16 cannot hold.
    """
    with new_folder(folder) as aside:
        write(aside, model, params, dtype, max_shard_bytes=max_shard_bytes)


def write(
    folder: Path, model: Model, params: Any = None, dtype: str | None = None, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """`save` into an existing folder, not atomic: for callers who build a folder aside themselves."""
    if dtype is not None and dtype not in _DTYPE_NAMES:
        known = sorted(_DTYPE_NAMES)
        raise InputError(f"`dtype` must be one of {', '.join(known)}; got {dtype!r}.{suggestion(dtype, known)}")
    params = model.params if params is None else params
    config = _written_config(model, params)
    arrays, found = _matched(config, params)
    dtypes = _dtypes(model, found, arrays, dtype)
    tensors = [
        Unwritten(name, dtypes[name], leaf.tensor_shape, functools.partial(_row, arrays, leaf, r, name, dtypes[name]))
        for name, leaf, r in in_file_order(found)
    ]
    write_folder(folder, tensors, max_shard_bytes)
    hf = _hf_config(model, config, dtype or (None if model.checkpoint_dtypes else _common(dtypes)))
    (folder / "config.json").write_text(json.dumps(hf, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if model.folder is not None:
        _copy(model.folder, folder)
    if model.given_tokenizer is not None:
        write_tokenizer(folder, model.given_tokenizer)
        write_stop_ids(folder, model.stop_ids)


def _written_config(model: Model, params: Any) -> ModelConfig:
    """The configuration of the tree to write: untied where it has a head of its own."""
    if not model.hf_config:
        raise InputError("`model.hf_config` must hold the settings to write as config.json; got none.")
    tied = not (isinstance(params, Mapping) and "lm_head" in params)
    if tied and not model.config.tie_word_embeddings:
        raise InputError("`params` must have `lm_head/weight`, because the embeddings are not tied; got none.")
    config = dataclasses.replace(model.config, tie_word_embeddings=tied)
    described = config_from_hf(model.hf_config, "model.hf_config")
    if dataclasses.replace(described, tie_word_embeddings=tied) != config:
        raise InputError("`model.hf_config` must describe model.config; they differ, so the folder would be wrong.")
    return config


def _matched(config: ModelConfig, params: Any) -> tuple[dict[str, Any], list[Leaf]]:
    """The arrays of `params` by leaf path, checked against the configuration."""
    found, _ = leaves(config)
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: hasattr(x, "materialize"))
    arrays = {path_string(keys): leaf for keys, leaf in flat}
    shapes = {leaf.path: leaf.shape for leaf in found}
    for path in [*shapes, *arrays]:
        if path not in arrays:
            raise InputError(f"`params` must have `{path}`; got a tree without it.")
        if path not in shapes:
            raise InputError(f"`params` must not have `{path}`; a {config.family} model has no such leaf.")
        if hasattr(arrays[path], "materialize"):
            hint = "Fold adapters in first: jaxpost.adapters.merge."
            raise InputError(f"`params` must hold arrays; got {type(arrays[path]).__name__} at `{path}`. {hint}")
        shape, dtype = tuple(arrays[path].shape), jnp.dtype(arrays[path].dtype).name
        if shape != shapes[path]:
            raise InputError(f"`{path}` of `params` must have shape {list(shapes[path])}; got {list(shape)}.")
        if dtype not in _DTYPE_NAMES:
            raise InputError(f"`{path}` of `params` must be one of {', '.join(_DTYPE_NAMES)}; got {dtype}.")
    return arrays, found


def _dtypes(model: Model, found: Sequence[Leaf], arrays: Mapping[str, Any], dtype: str | None) -> dict[str, np.dtype]:
    """What each tensor is written in: `dtype`, or that of the checkpoint, or (made in memory) the array's own."""

    def written(name: str, leaf: Leaf) -> np.dtype:
        source = model.checkpoint_dtypes.get(name)
        if source is None and name == HEAD:  # a head that was untied here follows the embedding
            source = model.checkpoint_dtypes.get(EMBEDDING)
        return _DTYPE_NAMES[dtype or source or jnp.dtype(arrays[leaf.path].dtype).name]

    return {name: written(name, leaf) for leaf in found for name in leaf.names}


def _row(arrays: Mapping[str, Any], leaf: Leaf, repeat: int, name: str, dtype: np.dtype) -> np.ndarray:
    """One tensor on the host in the dtype to write."""
    array = arrays[leaf.path]
    row = np.asarray(array[repeat] if leaf.stacked else array)
    with np.errstate(over="ignore"):
        cast = row.astype(dtype)
    if dtype == np.float16 and not np.array_equal(np.isfinite(cast), np.isfinite(row)):
        raise InputError(f"`{name}` must fit into float16 (65504); it does not. Save with dtype bfloat16 or float32.")
    return cast


def _common(dtypes: Mapping[str, np.dtype]) -> str | None:
    names = {dtype.name for dtype in dtypes.values()}
    return names.pop() if len(names) == 1 else None


def _hf_config(model: Model, config: ModelConfig, dtype: str | None) -> dict[str, Any]:
    """config.json as read, but for what the new folder makes untrue."""
    hf = dict(model.hf_config)
    hf.pop("auto_map", None)  # names code files, which are never followed and not copied
    if config.tie_word_embeddings != config_from_hf(hf).tie_word_embeddings:
        hf["tie_word_embeddings"] = config.tie_word_embeddings
    if dtype is not None:
        spelling = (
            "torch_dtype" if "torch_dtype" in hf or "rope_parameters" not in hf and "dtype" not in hf else "dtype"
        )
        hf[spelling] = dtype
    return hf


def _copy(source: Path, target: Path) -> None:
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).exists():
            shutil.copyfile(source / name, target / name)
