"""Rotary position embedding (Su et al. 2021, eq. 34) in Hugging Face's half-split layout, always in float32."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpost.models.config import Rope

RopeTables = tuple[Float[Array, " B T half"], Float[Array, " B T half"]]


def frequencies(rope: Rope, head_dim: int) -> Float[np.ndarray, " half"]:
    """theta_i = base^(-2i / d) in radians a token, with the scaling that `rope` names."""
    inv = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        inv = inv / rope.factor
    if rope.kind == "llama3":
        inv = _llama3(inv, rope)
    return inv.astype(np.float32)


def _llama3(inv: np.ndarray, rope: Rope) -> np.ndarray:
    """Slow frequencies divided by `factor`, fast ones kept, between them a linear blend."""
    turns = rope.original_max_positions * inv / (2 * np.pi)  # full turns over the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return (1 - blend) * inv / rope.factor + blend * inv


def tables(rope: Rope, head_dim: int, positions: Int[Array, " B T"]) -> RopeTables:
    """cos and sin of every position's angles, made once and used by all layers of the kind."""
    angles = positions[..., None].astype(jnp.float32) * frequencies(rope, head_dim)[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, " B T H D"], table: RopeTables) -> Float[Array, " B T H D"]:
    """Rotate the pairs (x_i, x_{i + D/2}) of each head by the position's angles; computed in float32."""
    cos, sin = (t[:, :, None, :] for t in table)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
