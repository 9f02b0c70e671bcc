"""Everything that changes from step to step."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "updates", "skipped", "trainable", "opt_state", "key"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """What a step takes and gives.

    Attributes:
      step: batches seen.   updates: optimizer updates made.   skipped: batches in a row that gave no update.
      trainable: what is trained, float32.   opt_state: of the optimizer.   key: the run's PRNG key.
    """

    # Any: jax rebuilds pytrees with placeholders, shardings or shapes as leaves.
    step: Any
    updates: Any
    skipped: Any
    trainable: Any
    opt_state: Any
    key: Any


def init_state(trainable: Any, optimizer: optax.GradientTransformation, seed: int = 0) -> TrainState:
    """A fresh state on a copy of `trainable`, since the step donates its state and thereby deletes what it was given.

    Leaves are made float32: bfloat16 masters lose updates below 2^-8 of their size.
    """
    wide = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trainable)
    zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731  three buffers: a donated one may not be shared
    return TrainState(zero(), zero(), zero(), wide, optimizer.init(wide), jax.random.key(seed))
