"""The NNX view: the core's parameter tree with an `nnx.Variable` at each leaf.

No transform of NNX is inside: layers are scanned and rematerialised by the core, over plain arrays. So gradients of a
part of the state, with the rest frozen, and `remat` work under `nnx.jit`, `nnx.grad` and `jax.grad` alike.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpost.core.errors import InputError
from jaxpost.core.tree import path_string
from jaxpost.flax import calls
from jaxpost.hub.model import Model
from jaxpost.models.config import ModelConfig
from jaxpost.models.init import random_params


class NNXModel(nnx.Module):
    """A decoder as an NNX module; `nnx.state(view)` has the paths of the core's tree, and `view.params` is that tree.

    Weights are [out, in] as in torch and Hugging Face (an `nnx.Linear` kernel is [in, out]), each layer's leaf is
    stacked, [repeats, ...]. Weights are `nnx.Param`. On a tree with bound adapters (`jaxpost.bind`) their factors are
    `nnx.LoRAParam`, so that `nnx.Optimizer(view, tx, wrt=nnx.LoRAParam)` with `nnx.DiffState(0, nnx.LoRAParam)`
    trains them alone; what no gradient is meant for (their scale, integer codes) is a plain `nnx.Variable`.
    A state becomes a tree by `nnx.merge(graphdef, state).params`, a tree a state by
    `nnx.state(NNXModel(config, params))`.

    >>> from jaxpost.models.families import config_from_hf
    >>> hf = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 4,
    ...       "num_hidden_layers": 3, "num_attention_heads": 2}
    >>> view = NNXModel(config_from_hf(hf), rngs=nnx.Rngs(0))
    >>> view.layers[0][0]["mlp"]["up_proj"]["weight"].shape
    (3, 4, 8)
    >>> tokens = jnp.arange(5)[None]
    >>> view(tokens).shape, view.token_logprobs(tokens).shape
    ((1, 5, 9), (1, 4))
    """

    def __init__(self, config: ModelConfig, params: Mapping[str, Any] | None = None, *, rngs: nnx.Rngs | None = None):
        """Takes `params`, a core tree or one with bound adapters; or draws `random_params` from `rngs`."""
        if (params is None) == (rngs is None):
            raise InputError("`NNXModel` must get either `params` or `rngs`; got both or none of them.")
        if params is None:
            assert rngs is not None
            params = random_params(rngs.params(), config)
        self.config = config
        self.parts = tuple(params)
        for name in self.parts:
            setattr(self, name, nnx.data(jax.tree_util.tree_map_with_path(_variable, params[name])))

    @property
    def params(self) -> dict[str, Any]:
        """The plain tree of arrays, for jaxpost's functions."""
        value = lambda leaf: leaf.get_value()  # noqa: E731
        is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
        return {name: jax.tree.map(value, getattr(self, name), is_leaf=is_variable) for name in self.parts}

    __call__ = calls.__call__
    hidden_states = calls.hidden_states
    token_logprobs = calls.token_logprobs

    def _tree(self) -> Mapping[str, Any]:
        return self.params


def to_nnx(model: Model, params: Any = None) -> NNXModel:
    """The view of a loaded model, or of `params` in place of its own (a tree with bound adapters, say).

    The variables hold the very arrays of the tree: nothing is copied, and training replaces them in the view alone.

    Raises:
      InputError: adapters bound with a dropout key: a stored key would drop the same inputs at every step.
    """
    return NNXModel(model.config, model.params if params is None else params)


def _variable(keys: Any, leaf: Any) -> nnx.Variable:
    """A leaf as what it is for: an adapter's factor, a weight, or neither."""
    name = path_string(keys).split("/")[-1]
    if name == "key":
        raise InputError(
            "`params` must have adapters bound without `dropout_key`; a view would keep one mask for ever."
        )
    if name in ("lora_A", "lora_B"):
        return nnx.LoRAParam(leaf)
    trained = name != "gain" and jnp.issubdtype(leaf.dtype, jnp.floating)
    return nnx.Param(leaf) if trained else nnx.Variable(leaf)
