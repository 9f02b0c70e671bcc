"""Fresh adapters."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxpost.adapters.targets import matrices, select
from jaxpost.adapters.types import Adapters, AdapterSpec
from jaxpost.core.errors import InputError

VARIANTS = ("lora",)


def init(
    key: Array,
    model_or_params: Any,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    targets: str | tuple[str, ...] = "all-linear",
    dropout: float = 0.0,
    variant: str = "lora",
) -> Adapters:
    """A fresh LoRA: A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0, so that the bound model is the base, bit for bit.

    Args:
      key: a PRNG key; each module draws from its own fold of it.
      model_or_params: anything with `.params`, or a parameter tree (arrays or shapes).
      rank: of each adapted matrix, >= 1.   alpha: scaling is alpha / rank.   dropout: in [0, 1).
      targets: see `targets.select`.

    Returns:
      Adapters with float32 factors, whatever the base's dtype.

    Raises:
      InputError: a value out of range, an unknown variant, targets that select nothing.
    """
    params = getattr(model_or_params, "params", model_or_params)
    if rank < 1:
        raise InputError(f"`lora.rank` must be at least 1; got {rank}.")
    if not 0.0 <= dropout < 1.0:
        raise InputError(f"`lora.dropout` must be in [0, 1); got {dropout}.")
    if not math.isfinite(alpha) or alpha <= 0:
        raise InputError(f"`lora.alpha` must be a positive number; got {alpha}.")
    if variant not in VARIANTS:
        raise InputError(f"`lora.variant` must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    shapes = {path: leaf.shape for path, leaf in matrices(params).items()}
    factors, scale, mask = {}, {}, {}
    for index, (path, hit) in enumerate(select(params, targets).items()):
        *stack, d_out, d_in = shapes[path]
        bound = 1.0 / math.sqrt(d_in)
        a = jax.random.uniform(jax.random.fold_in(key, index), (*stack, rank, d_in), jnp.float32, -bound, bound)
        on = jnp.array(hit, jnp.float32).reshape(stack)
        factors[path] = {"lora_A": a * on[..., None, None], "lora_B": jnp.zeros((*stack, d_out, rank), jnp.float32)}
        scale[path] = on * (alpha / rank)
        mask[path] = jnp.broadcast_to(on[..., None], (*stack, rank))
    return Adapters(factors, AdapterSpec(scale=scale, rank_mask=mask, dropout=dropout, variant=variant))
