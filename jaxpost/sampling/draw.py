"""Drawing a token from logits, and its log-probability."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

SMALLEST = 1e-30  # temperature; logits are below 1e8


def draw(
    logits: Float[Array, " B V"],
    keys: Array,
    temperature: Float[Array, " B"],
    allowed: Bool[Array, " V"],
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Tokens from softmax(logits / temperature), and their log-probabilities under it, in nats; all <= 0.

    Args:
      keys: one PRNG key a row: what is drawn depends on nothing but the row.
      temperature: 0 takes the largest logit (the first of equal ones); its log-probability is that of temperature 1.
        One below `SMALLEST`, whose quotients float32 could not hold, is 0.
      allowed: tokens that may be drawn. The others count in the softmax, as they do in training: they are rows of a
        padded table, whose probability a trained model has pressed to nothing.
    """
    drawn = (temperature >= SMALLEST)[:, None]
    # Differences first: the quotients of large logits and a small temperature would have nothing left of them.
    best = jnp.where(allowed[None], logits, -jnp.inf).max(-1, keepdims=True)
    z = (logits - best) / jnp.where(drawn, temperature[:, None], 1.0)
    # Gumbel's trick; the noise costs as much as the rest together, and greedy rows have no use for it.
    gumbel = lambda keys: jax.vmap(lambda key: jax.random.gumbel(key, z.shape[1:], jnp.float32))(keys)  # noqa: E731
    noise = jax.lax.cond(jnp.any(drawn), gumbel, lambda keys: jnp.zeros_like(z), keys)
    tokens = _argmax(jnp.where(allowed[None], z + jnp.where(drawn, noise, 0.0), -jnp.inf))
    top = z.max(-1)
    lse = jnp.log(jnp.exp(z - top[:, None]).sum(-1))
    return tokens, jnp.take_along_axis(z, tokens[:, None], axis=1)[:, 0] - top - lse


def _argmax(score: Float[Array, " B V"]) -> Int[Array, " B"]:
    """The first largest entry, as two plain reductions: XLA:CPU's own argmax is a scalar loop."""
    index = jnp.arange(score.shape[1], dtype=jnp.int32)[None]
    largest = score == score.max(-1, keepdims=True)
    # Not a number equals nothing: then the first token, and the log-probability tells.
    return jnp.where(largest, index, score.shape[1]).min(-1) % score.shape[1]


def row_keys(seed: int, prompts: Sequence[Sequence[int]], samples: Sequence[int]) -> Array:
    """A key for each row from the seed, the row's prompt and which of the prompt's completions it is: no more."""
    hashes = np.array([zlib.crc32(np.asarray(prompt, np.int32).tobytes()) for prompt in prompts], np.uint32)
    key = jax.random.key(seed)
    return jax.vmap(lambda h, n: jax.random.fold_in(jax.random.fold_in(key, h), n))(
        jnp.asarray(hashes), jnp.asarray(samples, jnp.uint32)
    )


def step_keys(keys: Array, counts: Int[Array, " B"]) -> Array:
    """The keys of each row's next token, `counts` tokens having been drawn."""
    return jax.vmap(jax.random.fold_in)(keys, counts)
