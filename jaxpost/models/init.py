"""Random parameters of a configuration: a model that no checkpoint holds yet."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxpost.core.tree import path_string
from jaxpost.models.config import ModelConfig, abstract_params

STD = 0.02  # transformers' `initializer_range` where config.json is silent


def random_params(key: Array, config: ModelConfig, *, dtype: Any = jnp.float32, std: float = STD) -> dict[str, Any]:
    """A parameter tree to train from nothing: matrices ~ N(0, std^2), biases 0, norms the identity.

    Args:
      key: a PRNG key; each leaf draws from its own fold of it.
      std: transformers' `initializer_range`.

    Returns:
      the tree of `abstract_params(config, dtype)`; a norm's weight is 1, or 0 where the family multiplies by 1 + it.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(abstract_params(config, dtype))

    def leaf(index: int, path: str, shape: tuple[int, ...]) -> Array:
        if path.endswith("/bias"):
            return jnp.zeros(shape, dtype)
        if "norm" in path.split("/")[-2]:
            return jnp.full(shape, 1.0 - config.norm_offset, dtype)
        return (std * jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)).astype(dtype)

    return jax.tree.unflatten(
        structure, [leaf(i, path_string(keys), found.shape) for i, (keys, found) in enumerate(flat)]
    )
