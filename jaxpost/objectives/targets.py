"""What training and scoring share: the shift from tokens to targets, and the statistics of the targets."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpost.models.config import ModelConfig
from jaxpost.models.decoder import Params, head_weight, hidden_states
from jaxpost.models.vocab import over_vocab


def shift(tokens: Int[Array, " B T"], loss_mask: Array) -> tuple[Int[Array, " B T"], Bool[Array, " B T"]]:
    """Targets and scored places: place t predicts token t + 1, each trained token exactly once; the last nothing."""
    last = jnp.zeros_like(tokens[:, :1])
    targets = jnp.concatenate([tokens[:, 1:], last], axis=1)
    scored = jnp.concatenate([loss_mask[:, 1:] > 0, last > 0], axis=1)
    return targets, scored


def target_statistics(
    config: ModelConfig,
    params: Params,
    rows: Mapping[str, Any],
    *,
    metrics: tuple[str, ...] = (),
    dtype: Any = None,
    remat: str = "none",
    embed_noise: Float[Array, " B T D"] | None = None,
) -> tuple[dict[str, Array], Bool[Array, " B T"]]:
    """`over_vocab` of each scored target, at the place that predicts it, and which places those are.

    Args:
      rows: one micro-batch, [B, T] leaves: `tokens`, `segment_ids`, `positions` (both may be None), `loss_mask`.
      metrics: of `over_vocab`.
      dtype, remat, embed_noise: see `hidden_states`.
    """
    ids = (rows["tokens"], rows["segment_ids"], rows["positions"])
    h = hidden_states(config, params, *ids, dtype=dtype, remat=remat, embed_noise=embed_noise)
    targets, scored = shift(rows["tokens"], rows["loss_mask"])
    found = over_vocab(h, head_weight(params), targets, scored, softcap=config.logit_softcap, metrics=metrics)
    return found, scored
