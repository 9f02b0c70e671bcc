"""Causal attention in blocks of queries: no [T, T] buffer, grouped heads, one mask type, a hand-written gradient.

Each block of queries meets just the keys it can see: the blocks and their key ranges are static. Long sequences are
cut into at most `MAX_TILES` tiles, and a tile's blocks run in a loop, so that neither program nor memory grows with
T beyond the activations.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

BLOCK = 128  # queries; on XLA:CPU 64 is as fast and compiles slower, 256 is slower
MAX_TILES = 16
MASKED = -1e30  # finite, so that no query gives NaN; exp(MASKED - m) is exactly 0


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["segment_ids", "positions", "prefix"],
    meta_fields=["window", "softcap"],
)
@dataclass(frozen=True)
class MaskSpec:
    """Who may see whom. Causal by index; every query sees at least itself, so no row of weights is empty.

    Attributes:
      segment_ids: [B, T], only equal ids see each other (0, padding, included); None is one segment.
      positions: [B, T] in tokens, what `window` counts in; None counts indices.
      prefix: [B, T], id of one further segment that the query sees (a shared prompt), 0 for none.
      window: tokens a query sees, itself included; None for all.
      softcap: scores s -> softcap * tanh(s / softcap), before masking.
    """

    # Any: jax rebuilds pytrees with placeholders, shardings or shapes as leaves.
    segment_ids: Any = None
    positions: Any = None
    prefix: Any = None
    window: int | None = None
    softcap: float | None = None


class Tile(NamedTuple):
    """`count` blocks of `size` queries from `start`, all of which see keys within [first_key, start + count * size)."""

    start: int
    count: int
    size: int
    first_key: int

    @property
    def stop(self) -> int:
        return self.start + self.count * self.size


def tiles(length: int, window: int | None) -> list[Tile]:
    """The tiles of a sequence; the last may be a shorter block.

    >>> [(tile.start, tile.stop) for tile in tiles(300, None)]
    [(0, 128), (128, 256), (256, 300)]
    """
    count = -(-length // (BLOCK * MAX_TILES))
    found, start = [], 0
    while start < length:
        blocks = min(count, (length - start) // BLOCK)
        first = 0 if window is None else max(0, start - window + 1)
        found.append(Tile(start, max(blocks, 1), BLOCK if blocks else length - start, first))
        start = found[-1].stop
    return found


def attention(
    q: Float[Array, " B T H D"],
    k: Float[Array, " B T K D"],
    v: Float[Array, " B T K D"],
    mask: MaskSpec,
    *,
    scale: float,
) -> Float[Array, " B T H D"]:
    """softmax(scale q k^T + mask) v with H a multiple of K; softmax in float32, the result in q's dtype."""
    batch, length, heads, dim = q.shape
    groups = heads // k.shape[2]
    q = q.reshape(batch, length, -1, groups, dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    # A weight known at trace time goes into q once, not into each block's scores.
    out = _attend((q.astype(jnp.promote_types(jnp.float32, q.dtype)) * scale).astype(q.dtype), k, v, mask)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)


def attend_cached(
    q: Float[Array, " B 1 H D"],
    k: Float[Array, " BK D S"],
    v: Float[Array, " BK S D"],
    visible: Bool[Array, " B S"],
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Array, " B 1 H D"]:
    """`attention` of one query a row over the slots of a cache that it may see; each row must see one at least.

    Rows and their K key heads are one axis. Both dots read the cache as it lies: transposing keys halves XLA:CPU's
    speed, and an axis of one row makes it copy the cache four times a token.
    """
    batch, _, heads, dim = q.shape
    q = (q.astype(jnp.promote_types(jnp.float32, q.dtype)) * scale).astype(q.dtype)
    s = jnp.einsum("ngd,nds->ngs", q.reshape(k.shape[0], -1, dim), k, preferred_element_type=jnp.float32)
    if softcap is not None:
        s = softcap * jnp.tanh(s / softcap)
    s = jnp.where(visible[:, None], s.reshape(batch, heads, -1), MASKED)
    p = jnp.exp(s - s.max(-1, keepdims=True))
    per_head = p.astype(v.dtype).reshape(k.shape[0], -1, v.shape[1])
    out = jnp.einsum("ngs,nsd->ngd", per_head, v, preferred_element_type=jnp.float32).reshape(batch, heads, dim)
    return (out / p.sum(-1, keepdims=True)).astype(q.dtype)[:, None]


class _Block(NamedTuple):
    """One block's share of the arrays; queries of all heads of a group are rows of one matrix."""

    q: Float[Array, " B K GQ D"]
    k: Float[Array, " B K S D"]
    v: Float[Array, " B K S D"]
    visible: Array  # bool [B or 1, 1, Q, S]


def _visible(mask: MaskSpec, queries: Array, first: int, stop: int) -> Array:
    """[B or 1, 1, Q, S]: may query (by index) see key?"""
    queries, keys = queries[:, None], jnp.arange(first, stop)[None]
    seen = (queries >= keys)[None]
    if mask.window is not None:
        if mask.positions is None:
            near = (queries - keys < mask.window)[None]
        else:
            at = jnp.take(mask.positions, queries, axis=1) - mask.positions[:, None, first:stop]
            near = at < mask.window
        seen = seen & near
    if mask.segment_ids is not None:
        theirs = mask.segment_ids[:, None, first:stop]
        same = jnp.take(mask.segment_ids, queries, axis=1) == theirs
        if mask.prefix is not None:
            shared = jnp.take(mask.prefix, queries, axis=1)
            same = same | ((shared == theirs) & (shared > 0))
        seen = seen & same
    return seen[:, None]


def _scores(block: _Block, softcap: float | None) -> Float[Array, " B K GQ S"]:
    s = jnp.einsum("bkqd,bksd->bkqs", block.q, block.k, preferred_element_type=jnp.float32)
    if softcap is not None:
        s = softcap * jnp.tanh(s / softcap)
    seen = jnp.tile(block.visible, (1, 1, s.shape[2] // block.visible.shape[2], 1))
    return jnp.where(seen, s, MASKED)


def _split(x: Array, tile: Tile) -> Array:
    """Queries of a tile, [B, K, G, T, ...] -> [count, B, K, G * size, ...]."""
    x = x[:, :, :, tile.start : tile.stop]
    batch, kv, groups, _, *rest = x.shape
    x = x.reshape(batch, kv, groups, tile.count, tile.size, *rest)
    return jnp.moveaxis(x, 3, 0).reshape(tile.count, batch, kv, groups * tile.size, *rest)


def _join(x: Array, groups: int) -> Array:
    """The way back of `_split`: [count, B, K, G * size, ...] -> [B, K, G, count * size, ...]."""
    count, batch, kv, rows, *rest = x.shape
    x = jnp.moveaxis(x.reshape(count, batch, kv, groups, rows // groups, *rest), 0, 3)
    return x.reshape(batch, kv, groups, -1, *rest)


def _map(function: Callable, tile: Tile, *arrays: Array) -> Any:
    """`function(index of block, block of each array)` for each block of the tile, results stacked."""
    if tile.count == 1:
        return jax.tree.map(lambda x: x[None], function(0, *[a[0] for a in arrays]))
    return jax.lax.map(lambda args: function(*args), (jnp.arange(tile.count), *arrays))


def _block(mask: MaskSpec, tile: Tile, index: Any, q: Array, k: Array, v: Array) -> _Block:
    # The barrier ties the mask to q: known without it, JAX would make the masks of all blocks before the layers and
    # keep them for the backward pass, T x T bytes for each row of the batch and head of a group.
    index, q = jax.lax.optimization_barrier((index, q))
    queries = tile.start + index * tile.size + jnp.arange(tile.size)
    keys = slice(tile.first_key, tile.stop)
    return _Block(q, k[:, :, keys], v[:, :, keys], _visible(mask, queries, tile.first_key, tile.stop))


def _tiles(mask: MaskSpec, length: int) -> list[Tile]:
    # A shared prefix may be near by position and far by index: then no key is left out by index.
    return tiles(length, None if mask.prefix is not None else mask.window)


def _forward(q: Array, k: Array, v: Array, mask: MaskSpec) -> tuple[Array, Array]:
    """Output [B, K, G, T, D] and logsumexp of the scores [B, K, G, T]."""
    groups = q.shape[2]

    def one(tile: Tile) -> tuple[Array, Array]:
        def attend(index: Any, q: Array) -> tuple[Array, Array]:
            block = _block(mask, tile, index, q, k, v)
            s = _scores(block, mask.softcap)
            top = s.max(-1, keepdims=True)
            p = jnp.exp(s - top)
            total = p.sum(-1, keepdims=True)
            out = jnp.einsum("bkqs,bksd->bkqd", p.astype(v.dtype), block.v, preferred_element_type=jnp.float32)
            return (out / total).astype(q.dtype), (top + jnp.log(total))[..., 0]

        out, lse = _map(attend, tile, _split(q, tile))
        return _join(out, groups), _join(lse, groups)

    parts = [one(tile) for tile in _tiles(mask, q.shape[3])]
    out, lse = (jnp.concatenate(part, axis=3) for part in zip(*parts, strict=True))
    return checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, mask: MaskSpec) -> Array:
    return _forward(q, k, v, mask)[0]


def _attend_forward(q: Array, k: Array, v: Array, mask: MaskSpec) -> tuple[Array, tuple]:
    out, lse = _forward(q, k, v, mask)
    return out, (q, k, v, mask, out, lse)


def _attend_backward(saved: tuple, d_out: Array) -> tuple:
    """Recomputes each block's weights from the saved logsumexp (Dao 2023, algorithm 2)."""
    q, k, v, mask, out, lse = saved
    groups = q.shape[2]
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1)
    # Gradients of k and v are kept [B, K, D, S]: so the narrow operand stands on the left of their dots.
    dk = jnp.zeros((*k.shape[:2], k.shape[3], k.shape[2]), jnp.float32)
    dv = jnp.zeros_like(dk)
    dq = []

    def one(tile: Tile, dk: Array, dv: Array) -> tuple[Array, Array, Array]:
        def back(index: Any, q: Array, d_out: Array, lse: Array, delta: Array) -> tuple[Array, Array, Array]:
            block = _block(mask, tile, index, q, k, v)
            s = _scores(block, mask.softcap)
            p = jnp.exp(s - lse[..., None])
            dp = jnp.einsum("bkqd,bksd->bkqs", d_out, block.v, preferred_element_type=jnp.float32)
            ds = p * (dp - delta[..., None])
            if mask.softcap is not None:
                ds = ds * jnp.where(s == MASKED, 0.0, 1.0 - (s / mask.softcap) ** 2)
            ds, p = ds.astype(q.dtype), p.astype(q.dtype)
            dq = jnp.einsum("bkqs,bksd->bkqd", ds, block.k, preferred_element_type=jnp.float32)
            dk = jnp.einsum("bkqd,bkqs->bkds", q, ds, preferred_element_type=jnp.float32)
            dv = jnp.einsum("bkqd,bkqs->bkds", d_out, p, preferred_element_type=jnp.float32)
            return dq.astype(q.dtype), dk, dv

        parts = [_split(x, tile) for x in (q, d_out, lse, delta)]
        keys = slice(tile.first_key, tile.stop)
        if tile.count == 1:
            dq, dk_tile, dv_tile = back(0, *[part[0] for part in parts])
            return _join(dq[None], groups), dk.at[..., keys].add(dk_tile), dv.at[..., keys].add(dv_tile)

        def add(sums: tuple[Array, Array], args: tuple) -> tuple[tuple[Array, Array], Array]:
            dq, dk_block, dv_block = back(*args)
            return (sums[0] + dk_block, sums[1] + dv_block), dq

        zeros = jnp.zeros((*dk.shape[:3], tile.stop - tile.first_key), jnp.float32)
        (dk_tile, dv_tile), dq = jax.lax.scan(add, (zeros, zeros), (jnp.arange(tile.count), *parts))
        return _join(dq, groups), dk.at[..., keys].add(dk_tile), dv.at[..., keys].add(dv_tile)

    for tile in _tiles(mask, q.shape[3]):
        part, dk, dv = one(tile, dk, dv)
        dq.append(part)
    dk, dv = (jnp.swapaxes(d, 2, 3).astype(k.dtype) for d in (dk, dv))
    return jnp.concatenate(dq, axis=3), dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)
