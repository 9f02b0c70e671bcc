"""From a view back to what jaxpost saves: a `Model`, or an adapter's factors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax.core import FrozenDict

from jaxpost.core.errors import InputError
from jaxpost.core.tree import path_string
from jaxpost.flax.nnx import NNXModel
from jaxpost.hub.model import Model
from jaxpost.models.families import config_from_hf


def to_model(view: NNXModel | Mapping[str, Any], like: Model | Mapping[str, Any]) -> Model:
    """The trained view as a `Model`, for `jaxpost.save`, `export` and the rest.

    Args:
      view: an NNX view, Linen's variables `{"params": tree}`, or the tree (`state.params` of a `TrainState`).
      like: the model that the view was made from, whose folder (tokenizer, template), config.json and dtypes are kept;
        or, for a model made from a configuration, the contents of its config.json.
    """
    tree = _tree(view)
    if isinstance(like, Model):
        return dataclasses.replace(like, params=tree)
    return Model(config=config_from_hf(like), params=tree, hf_config=dict(like))


def lora_factors(view: NNXModel | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The factors of the adapter that is bound on a view, by module path: `Adapters(lora_factors(view), spec)`.

    `spec` is that of the adapter that was bound; its scale and ranks are not trained.

    Raises:
      InputError: no adapter is bound, or several on top of each other.
    """
    is_lora = lambda x: hasattr(x, "lora_A")  # noqa: E731
    flat, _ = jax.tree_util.tree_flatten_with_path(_tree(view), is_leaf=is_lora)
    found = {path_string(keys).removesuffix("/weight"): leaf for keys, leaf in flat if is_lora(leaf)}
    if not found:
        raise InputError("`view` must hold a bound adapter; got a plain tree. Bind one first: jaxpost.bind.")
    for path, leaf in found.items():
        if is_lora(leaf.base):
            raise InputError(f"`view` must hold one adapter; got several on `{path}`. Merge the inner one first.")
    return {path: {"lora_A": leaf.lora_A, "lora_B": leaf.lora_B} for path, leaf in found.items()}


def _tree(view: NNXModel | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(view, NNXModel):
        return view.params
    tree = view.unfreeze() if isinstance(view, FrozenDict) else dict(view)
    return tree["params"] if set(tree) == {"params"} else tree
