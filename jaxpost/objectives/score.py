"""Log-probabilities of given tokens: the same forward as training, without a loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpost.models.config import ModelConfig
from jaxpost.models.decoder import Params
from jaxpost.objectives.policy import Policy
from jaxpost.objectives.targets import target_statistics


def token_logprobs(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, " B T"],
    segment_ids: Int[Array, " B T"] | None = None,
    positions: Int[Array, " B T"] | None = None,
    *,
    dtype: Any = None,
    remat: str = "none",
) -> Float[Array, " B T_minus_1"]:
    """log p(token t+1 | tokens up to t) in nats at place t, [batch, time - 1]; the logits are never formed.

    0 where the target is padding (segment 0) or the first token of a document. `dtype` is of the activations, None
    takes the embedding's; `remat` is what a backward pass keeps, see `hidden_states`.
    """
    ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
    first = jnp.concatenate([jnp.ones_like(ids[:, :1], bool), ids[:, 1:] != ids[:, :-1]], axis=1)
    mask = ~first & (ids > 0)
    rows = {"tokens": tokens, "segment_ids": segment_ids, "positions": positions, "loss_mask": mask}
    return target_statistics(config, params, rows, dtype=dtype, remat=remat)[0]["logp"][:, :-1]


def make_score(config: ModelConfig, policy: Policy, *, dtype: Any = None) -> Callable[..., dict[str, Array]]:
    """A jitted score(trainable, frozen, rows) -> {"logp", "correct"}, label-aligned [B, T]: of token t, at place t.

    `rows` are one micro-batch, [B, T] leaves; untrained tokens (loss_mask 0) are 0 in both. `dtype` is of the
    activations: give the training's, so that both compute the same.
    """

    @jax.jit
    def score(trainable: Any, frozen: Any, rows: Mapping[str, Any]) -> dict[str, Array]:
        params = policy(trainable, frozen, None)
        stats, _ = target_statistics(config, params, rows, metrics=("correct",), dtype=dtype)
        return {name: jnp.pad(value[:, :-1], ((0, 0), (1, 0))) for name, value in stats.items()}

    return score
