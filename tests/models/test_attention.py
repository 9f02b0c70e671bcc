"""Blockwise attention against the definition in float64: every mask, every block layout, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_near, assert_same_bits
from tolerances import BFLOAT16_CPU, FLOAT32_CPU, Tolerance

from jaxpost.models import attention as room
from jaxpost.models.attention import MaskSpec, attention, tiles

SCALE = 0.37


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of four queries and at most three tiles, so that short sequences have every kind of tile."""
    monkeypatch.setattr(room, "BLOCK", 4)
    monkeypatch.setattr(room, "MAX_TILES", 3)


def visible(mask, batch, length):
    """[B, T, T]: may query i see key j? Straight from the words of `MaskSpec`."""
    at = np.arange(length)
    seen = np.broadcast_to(at[:, None] >= at, (batch, length, length)).copy()
    if mask.window is not None:
        places = np.broadcast_to(at, (batch, length)) if mask.positions is None else np.asarray(mask.positions)
        seen &= places[:, :, None] - places[:, None] < mask.window
    if mask.segment_ids is not None:
        ids = np.asarray(mask.segment_ids)
        same = ids[:, :, None] == ids[:, None]
        if mask.prefix is not None:
            prefix = np.asarray(mask.prefix)
            same |= (prefix[:, :, None] == ids[:, None]) & (prefix[:, :, None] > 0)
        seen &= same
    return seen


def by_definition(q, k, v, d_out, mask):
    """softmax(scale q k^T) v and its gradients in float64, the whole [T, T] matrix at once."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    groups = q.shape[2] // k.shape[2]
    wide_k, wide_v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    raw = np.einsum("bqhd,bkhd->bhqk", q, wide_k) * SCALE
    s = raw if mask.softcap is None else mask.softcap * np.tanh(raw / mask.softcap)
    s = np.where(visible(mask, *q.shape[:2])[:, None], s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("bqhd,bkhd->bhqk", d_out, wide_v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * SCALE
    if mask.softcap is not None:
        ds *= 1 - np.tanh(raw / mask.softcap) ** 2
    narrow = lambda x: x.reshape(*k.shape[:3], groups, -1).sum(3)  # noqa: E731
    out = np.einsum("bhqk,bkhd->bqhd", p, wide_v)
    dq = np.einsum("bhqk,bkhd->bqhd", ds, wide_k)
    dk, dv = np.einsum("bhqk,bqhd->bkhd", ds, q), np.einsum("bhqk,bqhd->bkhd", p, d_out)
    return out, (dq, narrow(dk), narrow(dv))


def arrays(batch, length, heads, kv_heads, dim, seed, dtype=jnp.float32):
    """q, k, v and a cotangent."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, n, dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def blockwise(q, k, v, d_out, mask):
    out, pull = jax.vjp(functools.partial(attention, mask=mask, scale=SCALE), q, k, v)
    return out, pull(d_out)


def segments(batch, length, seed):
    """Documents in their order, with padding before, between and after."""
    rng = np.random.default_rng(seed)
    rows = [np.repeat(rng.permutation(5), rng.multinomial(length, [0.2] * 5)) for _ in range(batch)]
    return jnp.asarray(np.stack(rows), jnp.int32)


@pytest.mark.parametrize(
    ("length", "window", "softcap", "heads", "kv_heads"),
    [
        (1, None, None, 3, 1),  # one token
        (4, 3, 2.0, 5, 5),  # one block
        (11, None, None, 7, 1),  # blocks in tiles of one, the last shorter
        (11, 1, 2.0, 3, 1),  # a token sees itself only
        (25, 7, None, 6, 2),  # tiles of several blocks, a window within them
        (38, 3, 2.0, 3, 3),  # a window shorter than a block
        (38, 100, 2.0, 3, 1),  # a window longer than the row
        (39, None, 0.5, 6, 2),  # a soft-cap that bends every score
    ],
)
def test_every_block_layout(small_blocks, length, window, softcap, heads, kv_heads):
    mask = MaskSpec(segments(2, length, length), None, None, window, softcap)
    given = arrays(2, length, heads, kv_heads, 5, seed=length)
    (out, (dq, dk, dv)), want = jax.jit(blockwise)(*given, mask), by_definition(*given, mask)
    assert_near((out, dv), (want[0], want[1][2]), FLOAT32_CPU["same_maths"])
    alone = length == 1 or window == 1  # the weight of a single key is constant: gradients of q and k are 0
    tolerance = Tolerance(absolute=1e-6) if alone else FLOAT32_CPU["same_maths"]
    assert_near((dq, dk), want[1][:2], tolerance)


@pytest.mark.parametrize(("length", "window"), [(129, None), (300, 70), (2200, 131)])
def test_the_real_block_size(length, window):
    """One block and a token; a window that starts inside a block; more blocks than tiles."""
    mask = MaskSpec(segments(1, length, length), None, None, window, 3.0)
    given = arrays(1, length, 2, 1, 4, seed=length)
    assert_near(jax.jit(blockwise)(*given, mask), by_definition(*given, mask), FLOAT32_CPU["same_maths"])


@pytest.mark.parametrize("window", [2, 4])
def test_a_window_counts_positions(small_blocks, window):
    """Positions with gaps: near by index is not near by position.

    Mutation: jaxpost/models/attention.py: `near = at < mask.window` -> `near = at <= mask.window`
    """
    positions = jnp.asarray([[0, 1, 2, 5, 6, 9, 10, 11, 12, 20, 21], [0, 3, 6, 9, 12, 15, 16, 17, 18, 19, 22]])
    mask = MaskSpec(None, positions, None, window)
    given = arrays(2, 11, 3, 1, 4, seed=window)
    assert_near(jax.jit(blockwise)(*given, mask), by_definition(*given, mask), FLOAT32_CPU["same_maths"])


@pytest.mark.parametrize("window", [None, 5])
def test_a_shared_prefix_is_seen_by_its_answers_only(small_blocks, window):
    """Three answers (2, 3, 4) to the prompt 1, each as if it stood right behind it; 5 is on its own.

    Mutation: jaxpost/models/attention.py: `None if mask.prefix is not None else mask.window` -> `mask.window`
    """
    ids = jnp.asarray([[1] * 5 + [2] * 4 + [3] * 4 + [4] * 3 + [5] * 3])
    prefix = jnp.asarray([[0] * 5 + [1] * 11 + [0] * 3])
    positions = jnp.asarray([[*range(5), *range(5, 9), *range(5, 9), *range(5, 8), *range(3)]])
    mask = MaskSpec(ids, positions, prefix, window)
    given = arrays(1, 19, 3, 1, 4, seed=0)
    found = jax.jit(blockwise)(*given, mask)
    assert_near(found, by_definition(*given, mask), FLOAT32_CPU["same_maths"])
    alone = [*range(5), *range(9, 13)]  # the second answer in a row of its own
    want = by_definition(*[x[:, alone] for x in given], MaskSpec(window=window))[0]
    assert_near(found[0][:, 9:13], want[:, 5:], FLOAT32_CPU["same_maths"])


def test_no_token_sees_a_later_one(small_blocks):
    """The gradient of output t is exactly zero at every later key and value, and at every other query.

    Mutation: jaxpost/models/attention.py: `seen = (queries >= keys)[None]` -> `seen = (queries + 1 >= keys)[None]`
    """
    given = arrays(1, 13, 3, 1, 4, seed=0)

    @jax.jit
    def pull(cotangents):
        _, back = jax.vjp(functools.partial(attention, mask=MaskSpec(window=6), scale=SCALE), *given[:3])
        return [jnp.abs(g).sum((1, 3, 4)) for g in jax.vmap(back)(cotangents)]

    each = jnp.broadcast_to(jnp.eye(13)[:, None, :, None, None], (13, *given[3].shape))
    dq, dk, dv = (np.asarray(g) for g in pull(each))  # [output t, token]
    at = np.arange(13)
    assert not dq[at[:, None] != at].any() and dq[at[1:], at[1:]].all()
    near = (at[:, None] >= at) & (at[:, None] - at < 6)
    assert np.array_equal(dv > 0, near)
    assert not dk[~near].any() and dk[near & (at[:, None] > 0)].all()


def test_other_segments_change_no_bit(small_blocks):
    """Mutation: jaxpost/models/attention.py: `same = same | ((shared` -> `same = same & ((shared`
    Mutation: jaxpost/models/attention.py: `seen = seen & same` -> `seen = seen`
    """
    ids = jnp.asarray([[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0]])
    q, k, v, _ = arrays(1, 13, 3, 1, 4, seed=0)
    other = arrays(1, 13, 3, 1, 4, seed=1)
    inside = (ids == 2)[..., None, None]
    for prefix in (None, jnp.zeros_like(ids)):
        run = jax.jit(functools.partial(attention, mask=MaskSpec(ids, None, prefix), scale=SCALE))
        changed = run(*(jnp.where(inside, a, b) for a, b in zip((q, k, v), other[:3], strict=True)))
        assert_same_bits(changed[:, 6:11], run(q, k, v)[:, 6:11])
        assert not np.array_equal(changed[:, 2:6], run(q, k, v)[:, 2:6])


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_large_scores_and_masked_ones_stay_finite(small_blocks, softcap):
    """Scores of +-1e4 and softcapped masked ones, whose slope is infinite when it is asked for.

    Mutation: jaxpost/models/attention.py: `jnp.where(s == MASKED, 0.0, 1.0 - (s / mask.softcap) ** 2)` -> `(1.0 - (s / mask.softcap) ** 2)`
    Mutation: jaxpost/models/attention.py: `p = jnp.exp(s - top)` -> `p = jnp.exp(s)`
    """  # noqa: E501
    q, k, v, d_out = arrays(2, 13, 3, 1, 4, seed=0)
    mask = MaskSpec(segments(2, 13, 0), None, None, 3, softcap)
    given = (q * 100, k * 100, v, d_out)
    found = jax.jit(blockwise)(*given, mask)
    assert_near(found[0], by_definition(*given, mask)[0], FLOAT32_CPU["logits"])
    assert all(np.isfinite(g).all() for g in found[1])


def test_bfloat16_keeps_the_softmax_in_float32(small_blocks):
    given = arrays(2, 29, 6, 2, 8, seed=0, dtype=jnp.bfloat16)
    mask = MaskSpec(segments(2, 29, 0), None, None, 9, 2.0)
    out, gradients = jax.jit(blockwise)(*given, mask)
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype("bfloat16")}
    want = by_definition(*given, mask)
    assert_near((out, gradients), want, BFLOAT16_CPU["logits"])


@pytest.mark.parametrize("window", [None, 1, 100, 5000])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 2048, 2049, 4095, 4096, 10_000, 33_000])
def test_tiles_cover_all_that_is_visible_and_stay_few(length, window):
    found = tiles(length, window)
    assert found[0].start == 0 and found[-1].stop == length
    assert all(a.stop == b.start for a, b in zip(found, found[1:], strict=False))
    assert len(found) <= room.MAX_TILES + 1  # the one more is a part of a block
    for tile in found:
        assert tile.size == room.BLOCK or tile.count == 1
        assert tile.first_key == (0 if window is None else max(0, tile.start - window + 1))
