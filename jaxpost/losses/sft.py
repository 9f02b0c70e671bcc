"""Supervised losses per token, from the log-probability of the target."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def nll(logps: Float[Array, " *tokens"]) -> Float[Array, " *tokens"]:
    """Negative log-likelihood -log p of each target, in nats.

    >>> nll(jnp.log(jnp.array([0.5, 1.0])))
    Array([0.6931472, 0.       ], dtype=float32)
    """
    return jnp.negative(logps) + 0.0  # + 0.0: no token of probability 1 reads -0


def dft(logps: Float[Array, " *tokens"]) -> Float[Array, " *tokens"]:
    """Dynamic fine-tuning, -sg(p) log p: the gradient is p times that of `nll` (arXiv 2508.05629, eq. 9).

    >>> dft(jnp.log(jnp.array([0.5])))
    Array([0.3465736], dtype=float32)
    """
    return jax.lax.stop_gradient(jnp.exp(logps)) * nll(logps)


def eaft(
    logps: Float[Array, " *tokens"], top_entropy: Float[Array, " *tokens"], *, alpha: float = 1.0
) -> Float[Array, " *tokens"]:
    """Entropy-adaptive fine-tuning, -sg(h)^alpha log p (arXiv 2601.02151, eq. 5).

    Args:
      top_entropy: h = H_K / ln K in [0, 1], entropy of the renormalised K = 20 largest probabilities over its
        maximum; `over_vocab(metrics=("top_entropy",))` gives it. 1 everywhere makes this `nll`.
      alpha: how sharply confident tokens are left alone, >= 0.

    Differs from LLaMA-Factory in: it divides H_K by 3.0, not by ln 20 = 2.9957.
    """
    return jax.lax.stop_gradient(top_entropy) ** alpha * nll(logps)
