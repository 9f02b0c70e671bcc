"""The Linen view: a module whose `{"params": ...}` is the core's parameter tree."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxpost.core.errors import InputError
from jaxpost.flax import calls
from jaxpost.hub.model import Model
from jaxpost.models.config import ModelConfig
from jaxpost.models.init import random_params


class LinenModel(nn.Module):
    """A decoder as a Linen module; `variables["params"]` goes wherever jaxpost's `params` go, and the other way.

    The tree is that of `models.config.abstract_params`: weights are [out, in] as in torch and Hugging Face (a Linen
    `Dense` kernel is [in, out]), each layer's leaf is stacked, [repeats, ...]. Trees on which adapters are bound
    (`jaxpost.bind`) are applied alike. `init` draws `random_params`.

    >>> import jax
    >>> from jaxpost.models.families import config_from_hf
    >>> hf = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 4,
    ...       "num_hidden_layers": 3, "num_attention_heads": 2}
    >>> module, tokens = LinenModel(config_from_hf(hf)), jax.numpy.arange(5)[None]
    >>> variables = module.init(jax.random.key(0), tokens)
    >>> variables["params"]["layers"][0][0]["mlp"]["up_proj"]["weight"].shape
    (3, 4, 8)
    >>> module.apply(variables, tokens).shape, module.apply(variables, tokens, method="token_logprobs").shape
    ((1, 5, 9), (1, 4))
    """

    config: ModelConfig

    def setup(self) -> None:
        if self.is_initializing():
            for name, part in random_params(self.make_rng("params"), self.config).items():
                self.param(name, lambda _, part=part: part)

    __call__ = calls.__call__
    hidden_states = calls.hidden_states
    token_logprobs = calls.token_logprobs

    def _tree(self) -> Mapping[str, Any]:
        # Not by `self.param`: it would compare shapes leaf by leaf, and a bound tree has others.
        if "params" not in self.variables:
            raise InputError("`variables` must be {'params': the parameter tree}; got none. Use `to_linen` or `init`.")
        return self.variables["params"]


def to_linen(model: Model) -> tuple[LinenModel, dict[str, Any]]:
    """The module of a loaded model and its variables, whose "params" is `model.params` itself: nothing is copied."""
    return LinenModel(model.config), {"params": model.params}
