"""More rows for the vocabulary: tokens that a checkpoint's embedding does not have."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.hub.model import Model


def grow_vocabulary(model: Model, new_ids: Sequence[int]) -> Model:
    """The model with rows for new tokens in the embedding, and in the head where it has one of its own.

    Each new row is the mean of the rows of the tokens before the new ones, the centre from which transformers'
    `resize_token_embeddings` draws. Rows that pad the vocabulary are used where there are any; else `vocab_size` grows.

    Args:
      new_ids: ids of the new tokens, none of them in use.
    """
    if not new_ids:
        return model
    size = max(model.config.vocab_size, max(new_ids) + 1)
    used = min(new_ids)
    names = [name for name in ("embed_tokens", "lm_head") if name in model.params]
    grown = {name: {"weight": _grown(model.params[name]["weight"], new_ids, used, size)} for name in names}
    return dataclasses.replace(
        model,
        config=dataclasses.replace(model.config, vocab_size=size),
        hf_config={**model.hf_config, "vocab_size": size},
        params={**model.params, **grown},
    )


def _grown(table: jax.Array, new_ids: Sequence[int], used: int, size: int) -> Any:
    mean = jnp.mean(table[:used].astype(jnp.float32), axis=0).astype(table.dtype)
    extra = jnp.zeros((size - table.shape[0], table.shape[1]), table.dtype)
    return jnp.concatenate([table, extra]).at[jnp.asarray(new_ids)].set(mean)
