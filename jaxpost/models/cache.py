"""Decoding with a cache: the model's own layers, fed one token a row, their keys and values kept in slots.

Rows are right-aligned: all of them write to the same slot at the same time, and a row that begins at slot `start` has
position `slot - start`. So one number a row says what is padding, and a window counts slots. A layer with a window
keeps a ring of its last slots only; which slot a place of the ring holds follows from the newest slot.

Parameters are per layer (`unstack`) and arguments of the programs: slices of a stack would be copied at every token.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpost.models.attention import MaskSpec, attend_cached
from jaxpost.models.config import LayerKind, ModelConfig
from jaxpost.models.decoder import Params, attend_row, embed_tokens, rms_norm, rope_tables, run_layer
from jaxpost.sharding import constrain_batch
from jaxpost.stages import slots


class LayerCache(NamedTuple):
    """Rotated keys [B * K, D, S] and values [B * K, S, D] of one layer, in the order that decoding's dots read them."""

    k: Any
    v: Any


Cache: TypeAlias = tuple[LayerCache, ...]  # in layer order


def layer_kinds(config: ModelConfig) -> list[LayerKind]:
    """The kind of each layer, in layer order."""
    return [config.stages[slot.stage].kinds[slot.position] for slot in slots(config.stages)]


def unstack(config: ModelConfig, params: Params, split: Callable[[Array], Sequence[Array]] = tuple) -> dict[str, Any]:
    """The tree with `layers` as one block per layer, in layer order; bound adapters stay factors. A copy of the stacks.

    Every leaf of a stack, those of a bound weight too, has the stack as its first axis; `split` cuts one leaf.
    """
    stacks = [[_blocks(stack, split) for stack in period] for period in params["layers"]]
    return {**params, "layers": tuple(stacks[s][position][repeat] for s, position, repeat in slots(config.stages))}


def _blocks(stack: Params, split: Callable[[Array], Sequence[Array]]) -> list[Any]:
    leaves, structure = jax.tree.flatten(stack)
    return [structure.unflatten(parts) for parts in zip(*map(split, leaves), strict=True)]


def slots_kept(kind: LayerKind, size: int, bucket: int) -> int:
    """Slots of one layer's cache when full layers have `size`: a window needs no more than itself.

    >>> from jaxpost.models.config import Rope
    >>> slots_kept(LayerKind(rope=Rope(), window=70), 512, 64)
    128
    """
    return size if kind.window is None else min(size, -(-kind.window // bucket) * bucket)


def prefill(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, " B T"],
    starts: Int[Array, " B"],
    *,
    bucket: int,
    places: int | None = None,
    dtype: Any = None,
) -> tuple[Float[Array, " B D"], Cache]:
    """Hidden state of each row's last token, and the cache of T slots.

    With `places` all but attention runs on the rows' tokens laid end to end, without the padding between them.

    Args:
      params: of `unstack`.
      tokens: right-aligned rows; what stands before `starts` is padding and may be anything in the vocabulary.
      bucket: rings are multiples of it.
      places: for the tokens of all rows together, as many as they are or more; None runs on all B * T.
      dtype: of activations and cache; None takes the embedding's.
    """
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    positions = jnp.maximum(index - starts[:, None], 0)
    real = index >= starts[:, None]
    mask = MaskSpec(segment_ids=real.astype(jnp.int32), positions=positions)
    pack, unpack = _packing(real, places)
    kept: list[LayerCache] = []

    def attend(kind: LayerKind, q: Array, k: Array, v: Array) -> Array:
        q, k, v = map(unpack, (q, k, v))
        kept.append(_keep(k, v, slots_kept(kind, k.shape[1], bucket)))
        return pack(attend_row(config, mask, kind, q, k, v))

    h = embed_tokens(config, params, pack(tokens), dtype)
    h = unpack(_run(config, params, h, pack(positions), [attend] * config.num_layers))
    return _last(config, params, h), tuple(kept)


Move: TypeAlias = Callable[[Array], Array]


def _packing(real: Bool[Array, " B T"], places: int | None) -> tuple[Move, Move]:
    """[B, T, ...] -> [1, places, ...], the real tokens end to end, and back, zeros as padding; None moves nothing."""
    if places is None:
        return (lambda x: x), (lambda x: x)
    taken = jnp.nonzero(real.reshape(-1), size=places, fill_value=real.size)[0]
    held = jnp.where(real, jnp.cumsum(real.reshape(-1)).reshape(real.shape) - 1, places)
    # Gathers both ways: XLA:CPU scatters row by row. An index beyond the end gives 0.
    pack = lambda x: x.reshape(-1, *x.shape[2:]).at[taken].get(mode="fill", fill_value=0)[None]  # noqa: E731
    return pack, lambda x: x[0].at[held].get(mode="fill", fill_value=0)


def decode(
    config: ModelConfig,
    params: Params,
    cache: Cache,
    tokens: Int[Array, " B"],
    slot: Int[Array, ""],
    starts: Int[Array, " B"],
    *,
    dtype: Any = None,
) -> tuple[Float[Array, " B D"], Cache]:
    """Writes `tokens` at `slot` of the cache; their hidden states, and the cache with them."""
    written: list[LayerCache] = []

    def attend(layer: LayerCache, kind: LayerKind, q: Array, k: Array, v: Array) -> Array:
        layer = _write(layer, k, v, slot)
        written.append(layer)
        seen = visible(layer.v.shape[1], slot, starts, kind.window)
        return attend_cached(q, layer.k, layer.v, seen, scale=config.attention_scale, softcap=kind.softcap)

    h = embed_tokens(config, params, tokens[:, None], dtype)
    h = _run(config, params, h, (slot - starts)[:, None], [functools.partial(attend, layer) for layer in cache])
    return _last(config, params, h), tuple(written)


def visible(size: int, slot: Int[Array, ""], starts: Int[Array, " B"], window: int | None) -> Bool[Array, " B S"]:
    """Which places of a ring of `size`, `slot` being the newest, a row sees: its own slots, no older than the window.

    >>> visible(4, jnp.int32(5), jnp.array([0, 3]), 3)[0].tolist()  # the places hold slots 4, 5, 2, 3
    [True, True, False, True]
    """
    place = jnp.arange(size, dtype=jnp.int32)[None]
    held = slot - (slot - place) % size  # below 0 where nothing was written yet
    seen = held >= starts[:, None]
    return seen if window is None else seen & (slot - held < window)


def grow(config: ModelConfig, cache: Cache, size: int, bucket: int) -> Cache:
    """The cache with room for `size` slots; rings that are whole stay as they are.

    A ring grows only while it has not come round, so every slot keeps its place.
    """

    def one(kind: LayerKind, layer: LayerCache) -> LayerCache:
        none, more = (0, 0), (0, slots_kept(kind, size, bucket) - layer.v.shape[1])
        return LayerCache(jnp.pad(layer.k, [none, none, more]), jnp.pad(layer.v, [none, more, none]))

    return tuple(one(kind, layer) for kind, layer in zip(layer_kinds(config), cache, strict=True))


def _run(config: ModelConfig, params: Params, h: Array, positions: Array, attends: list) -> Float[Array, " B T D"]:
    """All layers, each with its own `attend`."""
    ropes = rope_tables(config, positions)
    h = constrain_batch(h)
    for kind, layer, attend in zip(layer_kinds(config), params["layers"], attends, strict=True):
        h = constrain_batch(run_layer(config, kind, layer, h, ropes[kind.rope], attend))
    return h


def _last(config: ModelConfig, params: Params, h: Float[Array, " B T D"]) -> Float[Array, " B D"]:
    """The final norm of each row's last token."""
    return rms_norm(h[:, -1], params["norm"]["weight"], config)


def _keep(k: Float[Array, " B T K D"], v: Float[Array, " B T K D"], size: int) -> LayerCache:
    """The last `size` slots of a row's keys and values, each at its place of the ring."""
    length = k.shape[1]
    # Slot s lies at place s % size, so the cut-out slots turn by the first one's place.
    k, v = (jnp.roll(x[:, length - size :], length % size, axis=1) for x in (k, v))
    return _laid(k, v)


def _laid(k: Float[Array, " B T K D"], v: Float[Array, " B T K D"]) -> LayerCache:
    """Keys and values of T tokens as a cache has them."""
    k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    return LayerCache(k.reshape(-1, *k.shape[2:]), v.reshape(-1, *v.shape[2:]))


def _write(cache: LayerCache, k: Float[Array, " B 1 K D"], v: Float[Array, " B 1 K D"], slot: Array) -> LayerCache:
    new, place = _laid(k, v), slot % cache.v.shape[1]
    zero = jnp.zeros_like(place)
    return LayerCache(
        jax.lax.dynamic_update_slice(cache.k, new.k, (zero, zero, place)),
        jax.lax.dynamic_update_slice(cache.v, new.v, (zero, place, zero)),
    )


def take_rows(cache: Cache, rows: Int[Array, " C"], count: int) -> Cache:
    """Row `rows[c]` of a cache of `count` rows, for each c."""

    def one(x: Array) -> Array:
        return x.reshape(count, -1, *x.shape[1:])[rows].reshape(-1, *x.shape[1:])

    return jax.tree.map(one, cache)
