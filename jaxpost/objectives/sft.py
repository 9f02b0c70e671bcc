"""Supervised fine-tuning: forward, statistics of the targets, loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxpost.core.errors import InputError, suggestion
from jaxpost.losses import dft, eaft, nll
from jaxpost.models.config import ModelConfig
from jaxpost.objectives.neftune import neftune_noise
from jaxpost.objectives.policy import Policy
from jaxpost.objectives.targets import target_statistics

# What each loss reads of the statistics of a token; its name -> the value per token.
LOSSES: Mapping[str, Callable[[Mapping[str, Array]], Array]] = {
    "nll": lambda s: nll(s["logp"]),
    "dft": lambda s: dft(s["logp"]),
    "eaft": lambda s: eaft(s["logp"], s["top_entropy"]),
}
METRICS = ("correct", "entropy")


def sft(
    config: ModelConfig,
    policy: Policy,
    *,
    loss: str = "nll",
    dtype: Any = None,
    remat: str = "none",
    metrics: tuple[str, ...] = METRICS,
    neftune_alpha: float = 0.0,
) -> Callable[..., tuple[dict, dict]]:
    """The objective of `make_step`: sum of the per-token loss over `totals["tokens"]`.

    Args:
      policy: how trainable and frozen make the parameters.
      loss: a key of `LOSSES`.
      dtype: of the activations; None takes the embedding's.
      remat: see `hidden_states`.
      metrics: of `over_vocab`, reported as means over the scored tokens.
      neftune_alpha: of `neftune_noise`; there is none at 0 or without a key.

    Returns:
      objective(trainable, frozen, rows, totals, key) -> ({"loss": value}, {name: (sum, count)}). The key None is
      evaluation: no dropout and no noise.

    Raises:
      InputError: an unknown loss.
    """
    if loss not in LOSSES:
        raise InputError(f"`loss` must be one of {', '.join(LOSSES)}; got {loss!r}.{suggestion(loss, LOSSES)}")
    asked = (*metrics, "top_entropy") if loss == "eaft" else metrics

    def objective(trainable: Any, frozen: Any, rows: Mapping[str, Any], totals: Mapping[str, Any], key: Any):
        params = policy(trainable, frozen, key)
        noise = None
        if neftune_alpha and key is not None:
            noise = neftune_noise(key, rows["segment_ids"], config.hidden_size, neftune_alpha)
        stats, scored = target_statistics(
            config, params, rows, metrics=asked, dtype=dtype, remat=remat, embed_noise=noise
        )
        values = jnp.where(scored, LOSSES[loss](stats), 0.0)
        count = scored.sum().astype(jnp.float32)
        measured = {_FIELD_NAMES.get(name, name): (stats[name].sum(), count) for name in metrics}
        return {"loss": values.sum() / jnp.maximum(totals["tokens"], 1.0)}, measured

    return objective


_FIELD_NAMES = {"correct": "mean_token_accuracy", "entropy": "entropy"}
