"""Decoding with a cache is the forward pass: every kind of layer, beyond windows, rows of unlike length."""

import re

import decoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_near, assert_same_bits
from tolerances import FLOAT32_CPU

from jaxpost.adapters import Adapters, bind, init
from jaxpost.models.cache import decode, grow, layer_kinds, prefill, slots_kept, unstack
from jaxpost.models.decoder import forward, logits_of

CONFIGS = {"llama": decoders.llama(), "gemma": decoders.gemma()}
BUCKET = 4  # a ring of 8 slots for a window of 5: it comes round within a few tokens


def cached_logits(config, params, rows, prompt, dtype=None, spare=None):
    """Logits at each row's tokens from `prompt` of them on, one token at a time; row b has its last len(b) tokens.

    The prompt's layers run on places for its tokens and `spare` more, or on all slots.
    """
    length = max(map(len, rows))
    tokens, starts = np.zeros((len(rows), length), np.int32), [length - len(row) for row in rows]
    for line, row, start in zip(tokens, rows, starts, strict=True):
        line[start:] = row
    starts, weights = jnp.array(starts), unstack(config, params)
    cut = length - (max(map(len, rows)) - prompt)
    places = None if spare is None else int((cut - starts).sum()) + spare
    h, cache = jax.jit(lambda w, t, s: prefill(config, w, t, s, bucket=BUCKET, places=places, dtype=dtype))(
        weights, jnp.array(tokens[:, :cut]), starts
    )
    size = -(-length // BUCKET) * BUCKET
    cache = grow(config, cache, size, BUCKET)
    step = jax.jit(lambda w, c, t, slot: decode(config, w, c, t, slot, starts, dtype=dtype))
    found = [logits_of(config, weights, h)]
    for slot in range(cut, length):
        h, cache = step(weights, cache, jnp.array(tokens[:, slot]), jnp.int32(slot))
        found.append(logits_of(config, weights, h))
    return jnp.stack(found, axis=1), cache


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("spare", [None, 0, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_G13_decoding_with_a_cache_is_the_full_forward(name, seed, spare):
    """Three rows of unlike length, the prompt shorter and longer than the window of 5, padding run through or not.

    Mutation: jaxpost/models/cache.py: `seen = held >= starts[:, None]` -> `seen = held >= 0 * starts[:, None]`
    Mutation: jaxpost/models/cache.py: `positions = jnp.maximum(index - starts[:, None], 0)` -> `positions = index - 0 * starts[:, None]`
    Mutation: jaxpost/models/cache.py: `h = _run(config, params, h, (slot - starts)[:, None],` -> `h = _run(config, params, h, (slot - 0 * starts)[:, None],`
    Mutation: jaxpost/models/cache.py: `else seen & (slot - held < window)` -> `else seen`
    Mutation: jaxpost/models/cache.py: `pack(positions)` -> `positions[:1]`
    Mutation: jaxpost/models/cache.py: `.reshape(real.shape) - 1, places)` -> `.reshape(real.shape), places)`
    Mutation: jaxpost/models/cache.py: `jnp.nonzero(real.reshape(-1)` -> `jnp.nonzero(~real.reshape(-1)`
    Mutation: jaxpost/models/cache.py: `(jnp.roll(x[:, length - size :], length % size, axis=1) for x in (k, v))` -> `(x[:, length - size :] for x in (k, v))`
    """  # noqa: E501
    config = CONFIGS[name]
    params = decoders.params(config, seed)
    rng = np.random.default_rng(seed)
    for lengths, prompt in (((25, 19, 24), 13), ((12, 11), 2)):
        rows = [rng.integers(0, config.vocab_size, n) for n in lengths]
        found, _ = cached_logits(config, params, rows, prompt, spare=spare)
        for row, got in zip(rows, found, strict=True):
            want = forward(config, params, jnp.array(row)[None])[0, prompt - max(lengths) - 1 :]
            assert_near(got, want, FLOAT32_CPU["packed"])


@pytest.mark.parametrize(("places", "rows"), [(None, 192), (64, 64)])
def test_layers_run_on_no_more_tokens_than_there_are_places(places, rows):
    """Of 6 rows of 32 slots with 60 tokens in all: the left side of every product but attention's.

    Mutation: jaxpost/models/cache.py: `if places is None:` -> `if True:`
    """
    config = CONFIGS["llama"]
    weights = unstack(config, decoders.params(config))
    run = jax.jit(lambda w, t, s: prefill(config, w, t, s, bucket=BUCKET, places=places))
    text = run.lower(weights, jnp.zeros((6, 32), jnp.int32), jnp.full(6, 22)).as_text()
    assert set(re.findall(r"dot_general.*: \(tensor<(\d+)x\d+xf32>", text)) == {str(rows)}


@pytest.mark.parametrize("spare", [None, 3])
def test_a_bound_adapter_decodes_as_it_trains(spare):
    """Factors stay factors: each block has its own slice of them."""
    config = CONFIGS["gemma"]
    params = decoders.params(config)
    adapters = init(jax.random.key(0), params, rank=3, alpha=4.0)
    factors = jax.tree.map(lambda x: x + 0.2, adapters.factors)
    bound = bind(params, Adapters(factors, adapters.spec))
    row = np.arange(20) % config.vocab_size
    found, _ = cached_logits(config, bound, [row], 6, spare=spare)
    assert_near(found[0], forward(config, bound, jnp.array(row)[None])[0, 5:], FLOAT32_CPU["packed"])
    plain, _ = cached_logits(config, params, [row], 6)
    assert np.abs(plain - found).max() > 0.1


def test_a_window_keeps_a_ring_of_its_slots_only():
    """Mutation: jaxpost/models/cache.py: `min(size, -(-kind.window // bucket) * bucket)` -> `size`"""
    config = CONFIGS["gemma"]
    _, cache = cached_logits(config, decoders.params(config), [np.arange(40) % config.vocab_size], 30)
    sizes = [layer.v.shape[1] for layer in cache]
    assert sizes == [8 if kind.window else 40 for kind in layer_kinds(config)]
    assert [layer.k.shape[2] for layer in cache] == sizes


def test_blocks_are_in_layer_order_and_whole():
    """Every leaf of every layer of the stacks, once."""
    config = CONFIGS["gemma"]
    params = decoders.params(config)
    blocks = unstack(config, params)["layers"]
    assert len(blocks) == config.num_layers
    want = [params["layers"][0][p]["self_attn"]["q_proj"]["weight"][r] for r in range(2) for p in range(2)]
    want.append(params["layers"][1][0]["self_attn"]["q_proj"]["weight"][0])
    assert_same_bits([block["self_attn"]["q_proj"]["weight"] for block in blocks], want)
    assert sum(x.size for x in jax.tree.leaves(blocks)) == sum(x.size for x in jax.tree.leaves(params["layers"]))


def test_growing_keeps_every_slot():
    config = CONFIGS["gemma"]
    _, cache = cached_logits(config, decoders.params(config), [np.arange(12) % config.vocab_size], 4)
    grown = grow(config, cache, 24, BUCKET)
    for kind, before, after in zip(layer_kinds(config), cache, grown, strict=True):
        assert after.v.shape[1] == slots_kept(kind, 24, BUCKET)
        assert_same_bits(after.v[:, : before.v.shape[1]], before.v)
        assert_same_bits(after.k[..., : before.k.shape[2]], before.k)
