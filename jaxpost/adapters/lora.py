"""LoRA: a frozen weight plus a scaled low-rank product (Hu et al. 2021, eq. 3)."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpost.weights import along_last, embed, linear, materialize


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "lora_A", "lora_B", "gain", "key"],
    meta_fields=["dropout"],
)
@dataclass(frozen=True)
class LoraWeight:
    """W + B diag(gain) A as a weight; stacks of it are sliced by scan like any other.

    Attributes:
      base: the weight underneath, which may itself carry an adapter.
      lora_A, lora_B: [*stack, R, in] and [*stack, out, R].
      gain: [*stack, R], scale times rank mask.
      key: dropout key [*stack], None in evaluation and for the reference.
    """

    # Any: jax rebuilds pytrees with placeholders, shardings or shapes as leaves.
    base: Any
    lora_A: Any
    lora_B: Any
    gain: Any
    key: Any = None
    dropout: float = 0.0

    @property
    def dtype(self) -> Any:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def matmul(self, x: Float[Array, " *batch d_in"]) -> Float[Array, " *batch d_out"]:
        """x W^T + gain * (drop(x) A^T) B^T; the dropout is in the low-rank branch only."""
        low = linear(self._drop(x), self.lora_A)
        wide = low.astype(jnp.promote_types(jnp.float32, x.dtype))
        low = (wide * along_last(self.gain, low)).astype(x.dtype)  # as `materialize` has it
        return linear(x, self.base) + linear(low, self.lora_B)

    def take(self, ids: Array, dtype: Any = None) -> Array:
        """Rows of the sum; an adapter [V, R] x [R, D] on an embedding table."""
        rows = embed(ids, self.base, dtype)
        return rows + linear(embed(ids, self.lora_B * self.gain[None], rows.dtype), self.lora_A.T)

    def materialize(self, dtype: Any) -> Array:
        """The sum as one matrix (or stack), added in float32 and cast once."""
        # In full precision: accelerators round a dot's float32 operands to 11 or 8 bits by default.
        low = jnp.einsum("...or,...r,...ri->...oi", self.lora_B, self.gain, self.lora_A, precision="highest")
        return (materialize(self.base, jnp.float32) + low).astype(dtype)

    def _drop(self, x: Array) -> Array:
        if self.key is None or self.dropout == 0.0:
            return x
        kept = jax.random.bernoulli(self.key, 1.0 - self.dropout, x.shape)
        return jnp.where(kept, x / jnp.asarray(1.0 - self.dropout, x.dtype), 0)
