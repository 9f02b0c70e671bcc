"""Supervised fine-tuning: forward, statistics of the targets, loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxpost.losses import dft, eaft, nll
from jaxpost.models.config import ModelConfig
from jaxpost.models.decoder import head_weight, hidden_states
from jaxpost.models.vocab import over_vocab
from jaxpost.objectives.policy import Policy

# What each loss reads of the statistics of a token; its name -> the value per token.
LOSSES: Mapping[str, Callable[[Mapping[str, Array]], Array]] = {
    "nll": lambda s: nll(s["logp"]),
    "dft": lambda s: dft(s["logp"]),
    "eaft": lambda s: eaft(s["logp"], s["top_entropy"]),
}
METRICS = ("correct", "entropy")


def shift(tokens: Int[Array, " B T"], loss_mask: Array) -> tuple[Int[Array, " B T"], Bool[Array, " B T"]]:
    """Targets and scored places: place t predicts token t + 1, each trained token exactly once; the last nothing."""
    last = jnp.zeros_like(tokens[:, :1])
    targets = jnp.concatenate([tokens[:, 1:], last], axis=1)
    scored = jnp.concatenate([loss_mask[:, 1:] > 0, last > 0], axis=1)
    return targets, scored


def sft(
    config: ModelConfig,
    policy: Policy,
    *,
    loss: str = "nll",
    dtype: Any = None,
    remat: str = "none",
    metrics: tuple[str, ...] = METRICS,
) -> Callable[..., tuple[dict, dict]]:
    """The objective of `make_step`: sum of the per-token loss over `totals["tokens"]`.

    Args:
      policy: how trainable and frozen make the parameters.
      loss: a key of `LOSSES`.
      dtype: of the activations; None takes the embedding's.
      remat: see `hidden_states`.
      metrics: of `over_vocab`, reported as means over the scored tokens.

    Returns:
      objective(trainable, frozen, rows, totals, key) -> ({"loss": value}, {name: (sum, count)}).
    """
    asked = (*metrics, "top_entropy") if loss == "eaft" else metrics

    def objective(trainable: Any, frozen: Any, rows: Mapping[str, Any], totals: Mapping[str, Any], key: Any):
        params = policy(trainable, frozen, key)
        h = hidden_states(
            config, params, rows["tokens"], rows["segment_ids"], rows["positions"], dtype=dtype, remat=remat
        )
        targets, scored = shift(rows["tokens"], rows["loss_mask"])
        stats = over_vocab(h, head_weight(params), targets, scored, softcap=config.logit_softcap, metrics=asked)
        values = jnp.where(scored, LOSSES[loss](stats), 0.0)
        count = scored.sum().astype(jnp.float32)
        measured = {_FIELD_NAMES[name]: (stats[name].sum(), count) for name in metrics}
        return {"loss": values.sum() / jnp.maximum(totals["tokens"], 1.0)}, measured

    return objective


_FIELD_NAMES = {"correct": "mean_token_accuracy", "entropy": "entropy"}
