"""The methods of both views: the core's functions on a view's tree, with no logits unless they are asked for.

A view has a `config`, gives its parameter tree by `_tree()`, and takes these functions as its methods.
"""

from typing import Any

from jaxtyping import Array, Float, Int

from jaxpost import objectives
from jaxpost.models import decoder


def __call__(  # Flax calls intermediates by a method's own name
    self: Any,
    tokens: Int[Array, " B T"],
    segment_ids: Int[Array, " B T"] | None = None,
    positions: Int[Array, " B T"] | None = None,
) -> Float[Array, " B T V"]:
    """Logits in float32: `jaxpost.forward`. For training, `token_logprobs` needs far less memory."""
    return decoder.forward(self.config, self._tree(), tokens, segment_ids, positions)


def hidden_states(
    self: Any,
    tokens: Int[Array, " B T"],
    segment_ids: Int[Array, " B T"] | None = None,
    positions: Int[Array, " B T"] | None = None,
    *,
    dtype: Any = None,
    remat: str = "none",
) -> Float[Array, " B T D"]:
    """Final-norm hidden states: `models.decoder.hidden_states`, for heads of one's own."""
    return decoder.hidden_states(self.config, self._tree(), tokens, segment_ids, positions, dtype=dtype, remat=remat)


def token_logprobs(
    self: Any,
    tokens: Int[Array, " B T"],
    segment_ids: Int[Array, " B T"] | None = None,
    positions: Int[Array, " B T"] | None = None,
    *,
    dtype: Any = None,
    remat: str = "none",
) -> Float[Array, " B T_minus_1"]:
    """log p of each next token in nats, never forming the logits: `jaxpost.token_logprobs`."""
    return objectives.token_logprobs(
        self.config, self._tree(), tokens, segment_ids, positions, dtype=dtype, remat=remat
    )
