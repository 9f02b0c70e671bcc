"""Log-probabilities of given tokens: the logits' own, whatever the layout of the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import GLOBAL, LOCAL, adapted, documents, gemma, llama, params, random_rows, row, stack
from numerics import assert_near, assert_same_bits
from tolerances import BFLOAT16_CPU, FLOAT32_CPU

from jaxpost.adapters import bind
from jaxpost.models.decoder import forward
from jaxpost.objectives import adapter_policy, full_policy, make_score, token_logprobs

CONFIGS = {"llama": llama(), "gemma": gemma([LOCAL, GLOBAL])}
logps_of = jax.jit(token_logprobs, static_argnums=0)
logits_of = jax.jit(forward, static_argnums=0)


def from_logits(logits, tokens):
    """log p(token t + 1 | up to t) in float64, [B, T - 1]."""
    z = np.asarray(logits, np.float64)
    log_p = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
    return np.take_along_axis(log_p[:, :-1], np.asarray(tokens)[:, 1:, None], axis=-1)[..., 0]


@pytest.mark.parametrize("name", CONFIGS)
def test_they_are_those_of_the_logits(name):
    """And 0 where the target is padding or a document's first token."""
    config = CONFIGS[name]
    tree, rows = params(config), random_rows(config, 4, 14)
    found = logps_of(config, tree, rows["tokens"], rows["segment_ids"])
    assert found.shape == (4, 13) and found.dtype == jnp.float32
    want = from_logits(logits_of(config, tree, rows["tokens"], rows["segment_ids"]), rows["tokens"])
    inside = rows["loss_mask"][:, 1:] > 0
    assert_near(found, np.where(inside, want, 0.0), FLOAT32_CPU["same_maths"])
    assert np.all(np.asarray(found)[inside] < 0)


def test_without_segments_all_but_the_first_token_count():
    config = CONFIGS["llama"]
    tree, tokens = params(config), np.stack(documents(config, [14] * 4))
    found = logps_of(config, tree, tokens)
    assert_near(found, from_logits(logits_of(config, tree, tokens), tokens), FLOAT32_CPU["same_maths"])


def alone(config, tree, document, length=14):
    """Log-probabilities of one document in a row of its own."""
    r = stack([row([document], length)] * 4)
    return np.asarray(logps_of(config, tree, r["tokens"], r["segment_ids"])[0, : len(document) - 1])


@pytest.mark.parametrize("name", CONFIGS)
def test_S4_packed_equals_unpacked(name):
    """Each document's log-probabilities are those it has by itself; no document's first token has any.

    Mutation: jaxpost/models/attention.py: `same = jnp.take(mask.segment_ids, queries, axis=1) == theirs` -> `same = jnp.take(mask.segment_ids, queries, axis=1) >= theirs`
    Mutation: jaxpost/objectives/score.py: `mask = ~first & (ids > 0)` -> `mask = ids > 0`
    """  # noqa: E501
    config = CONFIGS[name]
    tree, lengths = params(config), [3, 1, 7, 2]
    parts = documents(config, lengths, seed=7)
    r = stack([row(parts, 14), row(parts[::-1], 14), row(parts[:2], 14), row(parts, 14)])
    found = np.asarray(logps_of(config, tree, r["tokens"], r["segment_ids"]))
    want = np.zeros((4, 13))
    for line, order in enumerate((parts, parts[::-1], parts[:2], parts)):
        start = 0
        for part in order:
            want[line, start : start + len(part) - 1] = alone(config, tree, part)
            start += len(part)
    assert_near(found, want, FLOAT32_CPU["packed"])
    assert np.array_equal(found != 0, r["loss_mask"][:, 1:] > 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_J8_padding_buckets_and_packing_change_nothing(name):
    """Left padding, right padding, a longer bucket, behind another document: the same log-probabilities.

    Mutation: jaxpost/models/decoder.py: `mask = MaskSpec(segment_ids=segment_ids, positions=positions)` -> `mask = MaskSpec(positions=positions)`
    """  # noqa: E501
    config = CONFIGS[name]
    tree, (document, other) = params(config), documents(config, [8, 5], seed=3)
    want = alone(config, tree, document)
    for left, before, length in ((0, [], 14), (6, [], 14), (3, [], 14), (0, [other], 14), (0, [], 29), (21, [], 29)):
        r = stack([row([*before, document], length, left=left)] * 4)
        start = left + sum(len(part) for part in before)
        found = logps_of(config, tree, r["tokens"], r["segment_ids"])[:, start : start + len(document) - 1]
        assert_near(found, np.stack([want] * 4), FLOAT32_CPU["packed"])


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_lie_at_their_tokens(name):
    """`make_score` gives token t's log-probability at place t, through the bound adapter, without dropout."""
    config = CONFIGS[name]
    tree, rows = params(config), random_rows(config, 4, 14)
    found = adapted(tree, dropout=0.5)
    score = make_score(config, adapter_policy)
    stats = score(found.factors, {"params": tree, "spec": found.spec}, rows)
    logits = logits_of(config, bind(tree, found), rows["tokens"], rows["segment_ids"])
    trained = rows["loss_mask"] > 0
    want = np.pad(from_logits(logits, rows["tokens"]), ((0, 0), (1, 0)))
    assert_near(stats["logp"], np.where(trained, want, 0.0), FLOAT32_CPU["same_maths"])
    best = np.pad(np.asarray(logits).argmax(-1)[:, :-1] == rows["tokens"][:, 1:], ((0, 0), (1, 0)))
    assert_same_bits(np.asarray(stats["correct"]), np.where(trained, best, False).astype(np.float32))


def test_scores_of_all_weights_and_of_part_of_a_row():
    config = CONFIGS["llama"]
    tree, rows = params(config), random_rows(config, 4, 14)
    half = {**rows, "loss_mask": rows["loss_mask"] * (np.arange(14) % 2 == 0)}
    whole, part = (make_score(config, full_policy)(tree, {}, r)["logp"] for r in (rows, half))
    assert_same_bits(np.asarray(part), np.where(half["loss_mask"] > 0, whole, 0.0).astype(np.float32))


@pytest.mark.parametrize("function", ["token_logprobs", "make_score"])
def test_the_dtype_of_the_activations(function):
    """A float32 tree scored in bfloat16, as training in bfloat16 sees it, is near float32's numbers and not them.

    Mutation: jaxpost/objectives/score.py: `rows, dtype=dtype, remat=remat)[0]` -> `rows, remat=remat)[0]`
    Mutation: jaxpost/objectives/score.py: `metrics=("correct",), dtype=dtype` -> `metrics=("correct",)`
    """
    config = CONFIGS["llama"]
    tree, rows = params(config), random_rows(config, 4, 14)
    given = [jnp.asarray(rows[name]) for name in ("tokens", "segment_ids")]
    found = {
        "token_logprobs": lambda dtype: token_logprobs(config, tree, *given, dtype=dtype),
        "make_score": lambda dtype: make_score(config, full_policy, dtype=dtype)(tree, {}, rows)["logp"],
    }[function]
    narrow, wide = np.asarray(found(jnp.bfloat16)), np.asarray(found(None))
    assert narrow.dtype == np.float32 and np.abs(narrow - wide).max() > 1e-4
    assert_near(narrow, wide, BFLOAT16_CPU["logps"])
