"""Log-probabilities of given tokens: the same forward as training, without a loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpost.models.config import ModelConfig
from jaxpost.models.decoder import Params, head_weight, hidden_states
from jaxpost.models.vocab import over_vocab
from jaxpost.objectives.policy import Policy
from jaxpost.objectives.sft import shift


def token_logprobs(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, " B T"],
    segment_ids: Int[Array, " B T"] | None = None,
    positions: Int[Array, " B T"] | None = None,
) -> Float[Array, " B T_minus_1"]:
    """log p(token t+1 | tokens up to t) in nats at place t, [batch, time - 1]; the logits are never formed.

    0 where the target is padding (segment 0) or the first token of a document.
    """
    stats = _token_statistics(config, params, tokens, segment_ids, positions, ())
    return stats["logp"][:, :-1]


def _token_statistics(
    config: ModelConfig, params: Params, tokens: Array, segment_ids: Any, positions: Any, metrics: tuple[str, ...]
) -> dict[str, Array]:
    ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
    first = jnp.concatenate([jnp.ones_like(ids[:, :1], bool), ids[:, 1:] != ids[:, :-1]], axis=1)
    targets, scored = shift(tokens, ~first & (ids > 0))
    h = hidden_states(config, params, tokens, segment_ids, positions)
    return over_vocab(h, head_weight(params), targets, scored, softcap=config.logit_softcap, metrics=metrics)


def make_score(config: ModelConfig, policy: Policy) -> Callable[..., dict[str, Array]]:
    """A jitted score(trainable, frozen, rows) -> {"logp", "correct"}, label-aligned [B, T]: of token t, at place t.

    `rows` are one micro-batch, [B, T] leaves; untrained tokens (loss_mask 0) are 0 in both.
    """

    @jax.jit
    def score(trainable: Any, frozen: Any, rows: Mapping[str, Any]) -> dict[str, Array]:
        params = policy(trainable, frozen, None)
        h = hidden_states(config, params, rows["tokens"], rows["segment_ids"], rows["positions"])
        targets, scored = shift(rows["tokens"], rows["loss_mask"])
        stats = over_vocab(h, head_weight(params), targets, scored, softcap=config.logit_softcap, metrics=("correct",))
        return {name: jnp.pad(value[:, :-1], ((0, 0), (1, 0))) for name, value in stats.items()}

    return score
