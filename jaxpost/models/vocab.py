"""From hidden states to per-token statistics, without the [tokens, vocab] logits.

`over_vocab` walks over the tokens in chunks, with its own gradient. Scored tokens come first, so that chunks without
any are skipped. Where the head is frozen the gradient of the hidden state is made in the forward pass: the logits are
computed once and no [vocab, hidden] gradient exists.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from jaxpost.sharding import batch_shards, gather_table
from jaxpost.weights import AnyWeight, along_last, materialize

STATS = ("logp", "logsumexp", "entropy")
METRICS = ("correct", "entropy", "top_entropy")
CHUNK_ELEMENTS = 2**22  # of the logits of one chunk: 16 MiB in float32
TOP_K = 20  # of the renormalised entropy, as EAFT has it


@dataclass(frozen=True)
class _Static:
    """What the pass computes; hashable, for custom_vjp."""

    stats: tuple[str, ...]
    metrics: tuple[str, ...]
    softcap: float | None
    logit_scale: float


def over_vocab(
    hidden: Float[Array, " B T D"],
    head: AnyWeight,
    targets: Int[Array, " B T"],
    scored: Bool[Array, " B T"] | None = None,
    *,
    bias: Float[Array, " V"] | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    stats: Sequence[str] = ("logp",),
    metrics: Sequence[str] = (),
    chunk: int | None = None,
) -> dict[str, Float[Array, " B T"]]:
    """Statistics of softmax(z), z = softcap(logit_scale * (hidden head^T) + bias), of each scored token.

    Args:
      targets: the token to score at each place, in [0, V).
      scored: where statistics are wanted; elsewhere they are 0 and cost nothing. None: everywhere.
      stats: differentiated, of "logp" (log-probability of the target), "logsumexp", "entropy", in nats.
      metrics: not differentiated, of "correct" (1 where the target is the argmax), "entropy", and "top_entropy"
        (entropy of the renormalised `TOP_K` largest, over its maximum ln K; arXiv 2601.02151, eq. 5).
      chunk: tokens at a time; None chooses about `CHUNK_ELEMENTS` logits.

    Returns:
      float32 arrays by name; a metric that is also a statistic comes once, differentiated.

    Raises:
      ValueError: an unknown name.
    """
    if unknown := [*(set(stats) - set(STATS)), *(set(metrics) - set(METRICS))]:
        raise ValueError(f"`stats` must be of {STATS} and `metrics` of {METRICS}; got {unknown}.")
    static = _Static(tuple(stats), tuple(m for m in metrics if m not in stats), softcap, logit_scale)
    weight = gather_table(materialize(head, hidden.dtype))
    bias = jnp.zeros(weight.shape[0], jnp.float32) if bias is None else bias.astype(jnp.float32)
    scored = jnp.ones(targets.shape, bool) if scored is None else scored
    layout = _Layout.of(scored, weight.shape[0], chunk)
    rows = [layout.chunks(x) for x in (hidden, targets, scored)]
    found: Any = _pass(static, rows[0], weight, bias, *rows[1:])
    return {name: layout.restore(x) for part in found for name, x in part.items()}


class _Layout(NamedTuple):
    """How [B, T] lies as chunks [n, S, C]: S shards of the batch, in each the scored tokens first."""

    order: Int[Array, " S M"]
    shape: tuple[int, int]
    chunk: int

    @classmethod
    def of(cls, scored: Bool[Array, " B T"], vocab_size: int, chunk: int | None) -> "_Layout":
        batch, length = scored.shape
        shards = batch_shards() if batch % batch_shards() == 0 else 1
        tokens = scored.size // shards
        chunk = chunk or max(128, CHUNK_ELEMENTS // (vocab_size * shards))
        # Sorting within each shard only: across them it would move hidden states between devices.
        order = jnp.argsort(~scored.reshape(shards, tokens), axis=1, stable=True)
        return cls(order, (batch, length), min(chunk, tokens))

    def chunks(self, x: Array) -> Array:
        """[B, T, ...] -> [n, S, C, ...], padded with zeros at the end."""
        shards, tokens = self.order.shape
        x = jax.vmap(lambda rows, order: rows[order])(x.reshape(shards, tokens, *x.shape[2:]), self.order)
        pad = -tokens % self.chunk
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(shards, -1, self.chunk, *x.shape[2:]), 1, 0)

    def restore(self, x: Float[Array, " n S C"]) -> Float[Array, " B T"]:
        shards, tokens = self.order.shape
        x = jnp.moveaxis(x, 0, 1).reshape(shards, -1)[:, :tokens]
        back = jnp.argsort(self.order, axis=1)
        return jnp.take_along_axis(x, back, axis=1).reshape(self.shape)


def _logits(static: _Static, h: Float[Array, " S C D"], weight: Array, bias: Array) -> Float[Array, " S C V"]:
    z = jnp.einsum("scd,vd->scv", h, weight, preferred_element_type=jnp.float32) * static.logit_scale
    z = z + along_last(bias, z)
    return z if static.softcap is None else static.softcap * jnp.tanh(z / static.softcap)


def _measure(static: _Static, z: Float[Array, " S C V"], targets: Int[Array, " S C"]) -> dict[str, Array]:
    """Every asked statistic and metric of a chunk, and its logsumexp."""
    top = z.max(-1)
    exp = jnp.exp(z - top[..., None])
    total = exp.sum(-1)
    lse = top + jnp.log(total)
    target = jnp.take_along_axis(z, targets[..., None], axis=-1)[..., 0]
    found: dict[str, Array] = {"logp": target - lse, "logsumexp": lse}
    asked = static.stats + static.metrics
    if "entropy" in asked:
        found["entropy"] = lse - _sum_of_products(exp, z) / total
    if "correct" in asked:
        found["correct"] = (target >= top).astype(jnp.float32)
    if "top_entropy" in asked:
        size = min(TOP_K, z.shape[-1])
        log_p = jax.nn.log_softmax(jax.lax.top_k(z, size)[0])
        found["top_entropy"] = -(jnp.exp(log_p) * log_p).sum(-1) / jnp.log(size)
    return found


def _sum_of_products(a: Float[Array, " S C V"], b: Float[Array, " S C V"]) -> Float[Array, " S C"]:
    """As a dot: XLA:CPU sums products in a scalar loop, 20 times slower (a tenth of a whole step).

    In full precision, since accelerators round a dot's float32 operands to 11 or 8 bits by default.
    """
    return jnp.einsum("scv,scv->sc", a, b, precision="highest")


def _logit_gradient(static: _Static, z: Array, targets: Array, cotangents: dict[str, Array]) -> Array:
    """d(sum over stats of cotangent * stat) / d(hidden head^T), float32 [S, C, V].

    With p = softmax(z): logp gives onehot - p, logsumexp p, entropy -p (log p + entropy).
    """
    log_p = z - jax.scipy.special.logsumexp(z, axis=-1, keepdims=True)
    p = jnp.exp(log_p)
    d = jnp.zeros_like(z)
    for name, ct in cotangents.items():
        if name == "logp":
            d += ct[..., None] * (jax.nn.one_hot(targets, z.shape[-1]) - p)
        elif name == "logsumexp":
            d += ct[..., None] * p
        else:
            entropy = -_sum_of_products(p, log_p)[..., None]
            d -= ct[..., None] * p * (log_p + entropy)
    if static.softcap is not None:
        d *= 1.0 - (z / static.softcap) ** 2
    return d * static.logit_scale


Chunk = tuple[Array, Array, Array]  # hidden [S, C, D], targets [S, C], scored [S, C]


def _walk(static: _Static, chunks: Chunk, weight: Array, bias: Array, with_gradient: bool) -> tuple[dict, dict]:
    """Statistics of all chunks, and, where asked, the gradient of each statistic's sum by the hidden state."""

    def run(h: Array, targets: Array, scored: Array) -> tuple[dict, dict]:
        z = _logits(static, h, weight, bias)
        found = _measure(static, z, targets)
        values = {name: jnp.where(scored, found[name], 0.0) for name in static.stats + static.metrics}
        gradients = {}
        for name in static.stats if with_gradient else ():
            d = _logit_gradient(static, z, targets, {name: scored.astype(jnp.float32)})
            gradients[name] = _dot(d.astype(h.dtype), weight, h.dtype)
        return values, gradients

    return jax.lax.map(functools.partial(_skip_if_unscored, run), chunks)


def _skip_if_unscored(run: Callable, chunk: Chunk) -> Any:
    zeros = lambda *args: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(run, *args))  # noqa: E731
    return jax.lax.cond(jnp.any(chunk[2]), run, zeros, *chunk)


def _dot(d: Float[Array, " S C V"], weight: Float[Array, " V D"], dtype: Any) -> Float[Array, " S C D"]:
    return jnp.einsum("scv,vd->scd", d, weight, preferred_element_type=jnp.float32).astype(dtype)


def _split(static: _Static, values: dict[str, Array]) -> tuple[dict, dict]:
    return {k: values[k] for k in static.stats}, {k: values[k] for k in static.metrics}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pass(
    static: _Static, hidden: Array, weight: Array, bias: Array, targets: Array, scored: Array
) -> tuple[dict, dict]:
    return _split(static, _walk(static, (hidden, targets, scored), weight, bias, False)[0])


def _pass_forward(static: _Static, hidden: Any, weight: Any, bias: Any, targets: Any, scored: Any) -> tuple:
    chunks = (hidden.value, targets.value, scored.value)
    if weight.perturbed or bias.perturbed:
        out = _pass(static, hidden.value, weight.value, bias.value, *chunks[1:])
        return out, (chunks, weight.value, bias.value)
    values, gradients = _walk(static, chunks, weight.value, bias.value, True)
    return _split(static, values), gradients


def _pass_backward(static: _Static, saved: Any, cotangents: tuple[dict, dict]) -> tuple:
    given = {name: ct for name, ct in cotangents[0].items() if not isinstance(ct, SymbolicZero)}
    if isinstance(saved, dict):  # a frozen head: rows of the gradients made in the forward pass, scaled
        parts = [saved[name] * ct[..., None].astype(saved[name].dtype) for name, ct in given.items()]
        return sum(parts[1:], parts[0]) if parts else None, None, None, None, None
    chunks, weight, bias = saved
    return *_recompute(static, chunks, weight, bias, given), None, None


def _recompute(static: _Static, chunks: Chunk, weight: Array, bias: Array, cotangents: dict) -> tuple:
    """Gradients of hidden, weight and bias, the logits of each chunk made again."""

    def run(h: Array, targets: Array, scored: Array, cts: dict) -> tuple[Array, Array, Array]:
        masked = {name: jnp.where(scored, ct, 0.0) for name, ct in cts.items()}
        d = _logit_gradient(static, _logits(static, h, weight, bias), targets, masked)
        d_bias = d.sum((0, 1)) / static.logit_scale
        d = d.astype(h.dtype)
        # [D, V], the narrow operand on the left: see weights._weight_gradient.
        return _dot(d, weight, h.dtype), jnp.einsum("scd,scv->dv", h, d, preferred_element_type=jnp.float32), d_bias

    def step(sums: tuple, chunk: tuple) -> tuple[tuple, Array]:
        def add(sums: tuple, chunk: tuple) -> tuple[tuple, Array]:
            dh, *parts = run(*chunk)
            return tuple(s + p for s, p in zip(sums, parts, strict=True)), dh

        return jax.lax.cond(jnp.any(chunk[2]), add, lambda sums, chunk: (sums, jnp.zeros_like(chunk[0])), sums, chunk)

    zeros = (jnp.zeros(weight.shape[::-1], jnp.float32), jnp.zeros(bias.shape, jnp.float32))
    (d_weight, d_bias), d_hidden = jax.lax.scan(step, zeros, (*chunks, cotangents))
    return d_hidden, d_weight.T.astype(weight.dtype), d_bias


_pass.defvjp(_pass_forward, _pass_backward, symbolic_zeros=True)
