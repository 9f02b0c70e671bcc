"""Learning-rate schedules and the optimizer, in optax."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxpost.core.errors import InputError
from jaxpost.core.tree import path_string

SCHEDULES: Mapping[str, Callable] = {
    "constant": lambda left: jnp.ones_like(left),
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 * (1.0 + jnp.cos(jnp.pi * (1.0 - left))),
}


def schedule(name: str, peak: float, steps: int, warmup_ratio: float) -> Callable[[Any], Array]:
    """Learning rate of update n = 0, 1, ...: a linear warm-up, then `name` from `peak` to 0 after `steps`.

    The warm-up takes w = ceil(warmup_ratio * steps) updates with rates peak * (n + 1) / w, so that no update is
    made at rate 0; after it the part (steps - n) / (steps - w) is left.

    >>> [round(float(schedule("linear", 1.0, 10, 0.2)(n)), 3) for n in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    if name not in SCHEDULES:
        raise InputError(f"`schedule` must be one of {', '.join(SCHEDULES)}; got {name!r}.")
    warmup = math.ceil(warmup_ratio * steps)

    def rate(update: Any) -> Array:
        left = jnp.clip((steps - update) / max(1, steps - warmup), 0.0, 1.0)
        return peak * jnp.where(update < warmup, (update + 1) / max(1, warmup), SCHEDULES[name](left))

    return rate


def adamw(learning_rate: float | optax.Schedule, *, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """AdamW with the field's betas (0.9, 0.999) and epsilon 1e-8 (Loshchilov & Hutter 2019, algorithm 2).

    Norms and biases do not decay; which leaves they are is told by their names, as stacks have an axis more.
    """
    return optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=_decays)


def _decays(params: Any) -> Any:
    """Per leaf, whether weight decay acts on it."""

    def decays(path: tuple, _: Any) -> bool:
        name = path_string(path)
        return "norm" not in name and not name.endswith("bias")

    return jax.tree_util.tree_map_with_path(decays, params)
