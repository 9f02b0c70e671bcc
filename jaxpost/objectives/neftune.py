"""Noise on the embeddings while training (NEFTune)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

STREAM = 0x4E4546  # of the step's key: far from the small numbers by which adapters fold their dropout keys


def neftune_noise(
    key: Array, segment_ids: Int[Array, " B T"], features: int, alpha: float
) -> Float[Array, " B T features"]:
    """alpha / sqrt(L d) * e with e ~ Uniform(-1, 1), float32; 0 at padding.

    L is the number of tokens of the document that a token belongs to, d is `features`. So a document gets noise of the
    same size alone, beside padding and packed with others. Jain et al. 2023, "NEFTune", Algorithm 1. Their L is the
    length of a row, which held one document; the Trainer of transformers keeps the row's length, padding and packed
    neighbours included, so its noise on packed rows of k equal documents is smaller by sqrt(k).

    Args:
      key: of one micro-batch.
      segment_ids: document of each token, 0 padding; documents are contiguous.
      features: of the embedding.
      alpha: size; the paper uses 5 to 15.
    """
    noise = jax.random.uniform(
        jax.random.fold_in(key, STREAM), (*segment_ids.shape, features), jnp.float32, minval=-1.0, maxval=1.0
    )
    length = document_lengths(segment_ids).astype(jnp.float32)
    scale = jnp.where(segment_ids > 0, alpha / jnp.sqrt(length * features), 0.0)
    return scale[..., None] * noise


def document_lengths(segment_ids: Int[Array, " B T"]) -> Int[Array, " B T"]:
    """Tokens of the contiguous document that each token belongs to.

    >>> document_lengths(jnp.array([[1, 1, 2, 2, 2, 0]]))
    Array([[2, 2, 3, 3, 3, 1]], dtype=int32)
    """
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]
    change = segment_ids[:, 1:] != segment_ids[:, :-1]
    edge = jnp.ones_like(segment_ids[:, :1], bool)
    starts, ends = jnp.concatenate([edge, change], axis=1), jnp.concatenate([change, edge], axis=1)
    first = jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, index, segment_ids.shape[1]), axis=1, reverse=True)
    return last - first + 1
