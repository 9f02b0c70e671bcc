"""The core's functions as both views call them, with no logits unless they are asked for."""

from typing import Any

from jaxtyping import Array, Float, Int

from jaxpost.models import decoder
from jaxpost.models.config import ModelConfig
from jaxpost.objectives import token_logprobs

__all__ = ["hidden_states", "logits", "token_logprobs"]

logits = decoder.forward


def hidden_states(
    config: ModelConfig,
    params: decoder.Params,
    tokens: Int[Array, " B T"],
    segment_ids: Int[Array, " B T"] | None = None,
    positions: Int[Array, " B T"] | None = None,
    *,
    dtype: Any = None,
    remat: str = "none",
) -> Float[Array, " B T D"]:
    """Final-norm hidden states: see `models.decoder.hidden_states`."""
    return decoder.hidden_states(config, params, tokens, segment_ids, positions, dtype=dtype, remat=remat)
