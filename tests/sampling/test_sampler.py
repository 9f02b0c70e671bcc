"""The sampler: the trainer's log-probabilities, rows that do not feel each other, few programs."""

import decoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_near
from tolerances import FLOAT32_CPU

from jaxpost.adapters import Adapters, bind, init
from jaxpost.models.config import abstract_params
from jaxpost.objectives import token_logprobs
from jaxpost.sampling import Sampler, programs
from jaxpost.sampling.draw import row_keys
from jaxpost.sampling.sampler import places_for
from jaxpost.sharding import make_mesh
from jaxpost.train.programs import Program

CONFIGS = {"llama": decoders.llama(), "gemma": decoders.gemma()}
PROMPTS = [[5, 9, 11], [7] * 9, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]]


def sampled(sampler, params, prompts=PROMPTS, rows=None, samples=None, seed=0, before=None, **options):
    rows = list(range(len(prompts))) if rows is None else rows
    keys = row_keys(seed, [prompts[row] for row in rows], samples or [0] * len(rows))
    options = {"limits": 12, "temperature": 1.0, "stop_ids": (), **options}
    return sampler.sample(sampler.prepare(params, before), prompts, rows, keys, **options)


@pytest.fixture(scope="module")
def gemma():
    """A sampler with small buckets, so that rings come round and caches grow."""
    return Sampler(CONFIGS["gemma"], bucket=8), decoders.params(CONFIGS["gemma"])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("bound", [False, True])
def test_G13_its_log_probabilities_are_the_trainers(name, bound):
    """Prompts of unlike length, into the third cache size, with and without an adapter."""
    config = CONFIGS[name]
    params = decoders.params(config, 2)
    if bound:
        adapters = init(jax.random.key(0), params, rank=3, alpha=4.0)
        params = bind(params, Adapters(jax.tree.map(lambda x: x + 0.1, adapters.factors), adapters.spec))
    made = sampled(Sampler(config, bucket=8), params)
    for prompt, tokens, logps in zip(PROMPTS, made.tokens, made.logps, strict=True):
        whole = jnp.array([*prompt, *tokens])[None]
        want = token_logprobs(config, params, whole)[0, len(prompt) - 1 :]
        assert_near(logps, want, FLOAT32_CPU["packed"])


def test_a_row_does_not_feel_what_else_is_in_the_batch(gemma):
    """The same prompt and seed: alone, among others, in another place, in a batch that is filled up, as sample 2 of 3.

    Mutation: jaxpost/sampling/state.py: `draw(logits, step_keys(state.keys, state.counts),` -> `draw(logits, step_keys(state.keys[::-1], state.counts),`
    """  # noqa: E501
    sampler, params = gemma
    alone = sampled(sampler, params, PROMPTS[1:2])
    among = sampled(sampler, params, [PROMPTS[2], [8], PROMPTS[1]])
    filled = sampled(sampler, params, PROMPTS, rows=[0, 1, 2, 1, 1], samples=[0, 0, 0, 1, 2], batch_size=3)
    assert filled.tokens.shape == (5, 12)
    np.testing.assert_array_equal(among.tokens[2], alone.tokens[0])
    np.testing.assert_array_equal(filled.tokens[1], alone.tokens[0])
    assert len({tuple(filled.tokens[row].tolist()) for row in (1, 3, 4)}) == 3, "samples of one prompt differ"
    np.testing.assert_array_equal(sampled(sampler, params).tokens[2], filled.tokens[2])
    assert (sampled(sampler, params, seed=1).tokens != filled.tokens[:3]).any()


def test_G10_a_stop_id_ends_its_row_is_in_it_and_nothing_follows(gemma):
    """Several stop ids; rows end apart, and the loop with the last of them.

    Mutation: jaxpost/sampling/state.py: `done=state.done | rules.stop[token] | (counts >= rules.limits),` -> `done=state.done | (counts >= rules.limits),`
    Mutation: jaxpost/sampling/state.py: `(state.slot < last) & ~jnp.all(state.done)` -> `(state.slot < last)`
    """  # noqa: E501
    sampler, params = gemma
    free = sampled(sampler, params, limits=40)
    stops = {int(free.tokens[0][2]), int(free.tokens[1][6]), int(free.tokens[2][9])}
    made = sampled(sampler, params, limits=40, stop_ids=[*stops, 10_000])
    ends = [next((i + 1 for i, t in enumerate(row) if t in stops), 40) for row in free.tokens.tolist()]
    assert made.lengths.tolist() == ends and len(set(ends)) > 1
    assert made.stopped.tolist() == [row[end - 1] in stops for row, end in zip(free.tokens.tolist(), ends, strict=True)]
    for row, want, end in zip(made.tokens, free.tokens, ends, strict=True):
        np.testing.assert_array_equal(row[:end], want[:end])
        assert not row[end:].any()
    assert max(ends) < 16, "the loop ends before the cache does, of 16 + 16 slots"
    assert made.iterations == max(ends) - 1
    assert np.count_nonzero(made.logps) == sum(ends)


def test_every_row_has_its_own_limit(gemma):
    """Mutation: jaxpost/sampling/sampler.py: `limits=rules.limits[at])` -> `limits=rules.limits)`"""
    sampler, params = gemma
    assert sampled(sampler, params, limits=[1, 9, 4]).lengths.tolist() == [1, 9, 4]
    assert sampled(sampler, params, rows=[2, 0, 1], limits=[1, 9, 4], batch_size=2).lengths.tolist() == [1, 9, 4]


def test_J13_a_sampled_pad_token_is_a_token_like_any_other():
    """Only id 0 may be drawn, and prompts hold it: attention goes by lengths."""
    config = CONFIGS["llama"]
    params, only = decoders.params(config, 1), np.arange(config.vocab_size) == 0
    prompts = [[0, 0, 5], [4, 0]]
    made = sampled(Sampler(config, bucket=8), params, prompts, allowed=only, limits=6)
    assert not made.tokens.any() and made.lengths.tolist() == [6, 6]
    for prompt, logps in zip(prompts, made.logps, strict=True):
        want = token_logprobs(config, params, jnp.array([*prompt, *[0] * 6])[None])[0, len(prompt) - 1 :]
        assert_near(logps, want, FLOAT32_CPU["packed"])


def test_each_program_is_compiled_once_whatever_is_sampled():
    """Temperatures, limits, stop ids and weights are arguments; the prompt is prefilled once for all its rows.

    Mutation: jaxpost/sampling/sampler.py: `size += max(bucket, size // 4 // bucket * bucket) if size >= FINE * bucket else bucket` -> `size += 1`
    """  # noqa: E501
    config = CONFIGS["llama"]
    sampler = Sampler(config, bucket=8)
    for seed, (limits, temperature, stops) in enumerate([(20, 0.0, ()), (3, 1.0, (4,)), ([9, 2, 17], 0.7, (1, 2))]):
        params = decoders.params(config, seed)
        sampled(
            sampler,
            params,
            PROMPTS,
            rows=[1, 1, 1],
            samples=[0, 1, 2],
            limits=limits,
            temperature=temperature,
            stop_ids=stops,
        )
    assert set(sampler.traces.values()) == {1}
    prefills = [key for key in sampler.traces if key[0] == "prefill"]
    assert prefills == [("prefill", 3, 16, None)]
    assert {key for key in sampler.traces if key[0] == "advance"} == {
        ("advance", 3, 24),
        ("advance", 3, 32),
        ("advance", 3, 40),
    }


def test_prompts_are_prefilled_without_the_padding_between_them(monkeypatch):
    """Where that spares a step of tokens; the samples stay the same. Not where a mesh cuts the rows.

    Mutation: jaxpost/sampling/sampler.py: `self.run_prefill(places, weights` -> `self.run_prefill(None, weights`
    Mutation: jaxpost/sampling/sampler.py: `if places < slots and batch_shards() == 1 else None` -> `if places < slots else None`
    """  # noqa: E501
    config = CONFIGS["gemma"]
    params, whole, packed = decoders.params(config), Sampler(config, bucket=8), Sampler(config, bucket=8)
    want = sampled(whole, params)
    monkeypatch.setattr("jaxpost.sampling.sampler.STEP", 8)
    found = sampled(packed, params)
    shapes = [[key for key in sampler.traces if key[0] == "prefill"] for sampler in (whole, packed)]
    assert shapes == [[("prefill", 3, 16, None)], [("prefill", 3, 16, 24)]]  # 3 + 9 + 12 tokens
    assert (found.tokens == want.tokens).all()
    assert_near(found.logps, want.logps, FLOAT32_CPU["packed"])
    assert (places_for(24, 48), places_for(41, 48)) == (24, None)
    with jax.set_mesh(make_mesh("data=8")):
        assert places_for(24, 48) is None


def test_G14_new_weights_are_sampled_at_once_and_frozen_ones_are_not_copied_again():
    """Mutation: jaxpost/sampling/sampler.py: `cuts[id(stack)] = known or (stack,` -> `cuts[id(stack)] = (stack,`"""
    config = CONFIGS["llama"]
    params = decoders.params(config)
    adapters = init(jax.random.key(0), params, rank=3, alpha=8.0)
    sampler = Sampler(config, bucket=8)
    before = sampler.prepare(bind(params, adapters))
    moved = Adapters(jax.tree.map(lambda x: x + 0.3, adapters.factors), adapters.spec)
    after = sampler.prepare(bind(params, moved), before)
    same = {id(x) for x in jax.tree.leaves(before.params)} & {id(x) for x in jax.tree.leaves(after.params)}
    assert len(same) >= len(jax.tree.leaves(params["layers"]))
    base, tuned = (sampled(sampler, bind(params, a), temperature=0.0).tokens for a in (adapters, moved))
    assert (base != tuned).any()


def test_the_programs_that_are_planned_are_those_that_run():
    """Their memory: decoding makes no copy of the weights, whose form is a program of its own in the plan."""
    config = decoders.llama(hidden_size=60, intermediate_size=160)
    params = decoders.params(config)
    sampler = Sampler(config, bucket=8)
    planned = programs(sampler, params, num_prompts=3, num_rows=3, prompt_length=12, max_new_tokens=20)
    assert list(planned) == [
        "unstack",
        "prefill",
        "begin",
        "advance 24",
        "enlarge 24",
        "advance 32",
        "enlarge 32",
        "advance 40",
    ]
    before = set(sampler.traces)
    sampled(sampler, params, limits=20)
    run = {f"advance {size}" for name, _, size in set(sampler.traces) - before if name == "advance"}
    assert run == {name for name in planned if name.startswith("advance")} and set(sampler.traces.values()) == {1}
    layers = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"]))
    memory = {name: Program(function=f, arguments=a).compile().memory for name, (f, a) in planned.items()}
    assert memory["advance 40"].temp_bytes < layers / 4 < layers <= memory["unstack"].output_bytes


@pytest.mark.parametrize("rows", [1, 2])
def test_decoding_writes_into_the_cache_and_makes_no_copy_of_it(rows):
    """Also for one row: XLA:CPU copies a cache [1, K, ...] at every token, as it drops the axis of one for the dots.

    Mutation: jaxpost/sampling/sampler.py: `donate_argnums=1,` -> `donate_argnums=(),`
    Mutation: jaxpost/models/attention.py: `s = jnp.einsum("ngd,nds->ngs", q.reshape(k.shape[0], -1, dim), k,` -> `s = jnp.einsum("bngd,bnds->bngs", q.reshape(batch, k.shape[0] // batch, -1, dim), k.reshape(batch, -1, *k.shape[1:]),`
    """  # noqa: E501
    config = decoders.llama(num_heads=6, num_kv_heads=3, head_dim=16)
    sampler = Sampler(config)
    shape = {"num_prompts": rows, "num_rows": rows, "prompt_length": 300, "max_new_tokens": 8}
    planned = programs(sampler, abstract_params(config), **shape)
    function, arguments = planned["advance 384"]
    memory = Program(function=function, arguments=arguments).compile().memory
    cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arguments[1].cache))
    assert cache == 2 * rows * 3 * 384 * 16 * 4 * 2
    assert memory.temp_bytes < cache / 4 and memory.alias_bytes >= cache
