"""The training step: accumulate, clip, guard, update. One factory for every algorithm."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxpost.train.state import TrainState

Objective: TypeAlias = Callable[..., tuple[dict[str, Array], dict[str, tuple[Array, Array]]]]
Batch: TypeAlias = Mapping[str, Any]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    max_grad_norm: float | None = 1.0,
    state_shardings: Any = None,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Any]]]:
    """A jitted step(state, frozen, batch) -> (state, metrics); `state` is donated, `frozen` never is.

    Args:
      objective: (trainable, frozen, rows, totals, key) -> (terms {name: sum / total}, metrics {name: (sum, count)}).
        Totals are of the whole global batch, so terms and gradients of micro-batches and devices simply add.
      optimizer: any optax transformation.
      max_grad_norm: global norm to which gradients are clipped, None for no clipping.
      state_shardings: of the new state, a tree like it; None leaves them to the compiler. On a mesh, those of the
        old state: then each step can run the same executable.

    `batch` is {"rows": leaves [accumulate, micro, ...], "totals": {name: scalar}}. A step whose loss or gradient is
    not finite, or whose totals are all 0, leaves trainable and optimizer state bit-identical and counts as skipped.

    Metrics: each term, their sum "total_loss" where there are several, "grad_norm" (before clipping), "updates"
    (made before this step: the argument of the learning-rate schedule), "skipped", and (sum, count) pairs.
    """

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(state.key, state.step)
        gradients, terms, metrics = accumulate(objective, state.trainable, frozen, batch, key)
        norm = optax.tree.norm(gradients)
        loss = sum(terms.values())
        some = sum(jnp.asarray(t, jnp.float32) for t in batch["totals"].values()) > 0
        take = jnp.isfinite(norm) & jnp.isfinite(loss) & some
        if max_grad_norm is not None:
            gradients = _clip(gradients, norm, max_grad_norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        keep = lambda new, old: jnp.where(take, new, old)  # noqa: E731
        took = take.astype(jnp.int32)
        new = TrainState(
            step=state.step + 1,
            updates=state.updates + took,
            skipped=(state.skipped + 1) * (1 - took),
            trainable=jax.tree.map(keep, trainable, state.trainable),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            key=state.key,
        )
        report = {**terms, **metrics, "grad_norm": norm, "updates": state.updates, "skipped": new.skipped}
        return new, report if len(terms) == 1 else {**report, "total_loss": loss}

    return jax.jit(step, donate_argnums=0, out_shardings=None if state_shardings is None else (state_shardings, None))


def accumulate(objective: Objective, trainable: Any, frozen: Any, batch: Batch, key: Array) -> tuple:
    """Sums over the micro-batches, in one traced loop: what a step clips and gives to the optimizer.

    Args:
      objective, batch: as in `make_step`.
      key: each micro-batch takes a fold of it.

    Returns:
      gradients like `trainable`, terms {name: value}, metrics {name: (sum, count)}.
    """
    rows, totals = batch["rows"], batch["totals"]
    count = jax.tree.leaves(rows)[0].shape[0]

    def one(index: Any, rows: Any) -> tuple:
        def total(trainable: Any) -> tuple[Array, tuple]:
            terms, metrics = objective(trainable, frozen, rows, totals, jax.random.fold_in(key, index))
            return jnp.asarray(sum(terms.values())), (terms, metrics)

        gradients, (terms, metrics) = jax.grad(total, has_aux=True)(trainable)
        return gradients, terms, metrics

    if count == 1:
        return one(0, jax.tree.map(lambda x: x[0], rows))
    shapes = jax.eval_shape(one, 0, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add = lambda sums, xs: (jax.tree.map(jnp.add, sums, one(*xs)), None)  # noqa: E731
    return jax.lax.scan(add, zeros, (jnp.arange(count), rows))[0]


def _clip(gradients: Any, norm: Float[Array, ""], max_norm: float) -> Any:
    """Scale by min(1, max_norm / norm), as torch's clip_grad_norm_ does (its 1e-6 included)."""
    factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: g * factor, gradients)
