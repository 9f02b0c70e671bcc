"""What the backward pass keeps and how the layers are written out changes memory, never a number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import PLAIN, adapted, llama, params, random_rows
from numerics import assert_near
from refusals import refused
from tolerances import FLOAT32_CPU

from jaxpost.adapters import Adapters, bind
from jaxpost.models.decoder import REMAT_SAVES, hidden_states

CONFIG = llama([PLAIN, PLAIN])
MODES = ["none", *REMAT_SAVES]
TREE, ROWS = params(CONFIG), random_rows(CONFIG, 2, 11)
FOUND = adapted(TREE, dropout=0.3)


def loss(trainable, remat, unroll):
    """Of base weights and factors, with dropout on."""
    tree, factors = trainable
    bound = bind(tree, Adapters(factors, FOUND.spec), jax.random.key(4))
    tokens, segments = (jnp.asarray(ROWS[name]) for name in ("tokens", "segment_ids"))
    h = hidden_states(CONFIG, bound, tokens, segments, remat=remat, unroll=unroll)
    return (h * jnp.asarray(np.random.default_rng(0).standard_normal(h.shape), h.dtype)).sum()


@functools.cache
def gradients(remat, unroll=False):
    return jax.jit(jax.value_and_grad(functools.partial(loss, remat=remat, unroll=unroll)))((TREE, FOUND.factors))


def test_an_unknown_mode_is_refused():
    refused(lambda: gradients("ful"), "`remat`", "full", "'ful'")


@pytest.mark.parametrize("remat", MODES)
def test_R6_saved_or_made_again(remat):
    """Loss and gradients of every weight and factor, and of the dropout masks with them (L-16).

    Mutation: jaxpost/models/decoder.py: `h = constrain_batch(run(layer, h, ropes[kind.rope], mask))` -> `h = constrain_batch(run(layer, h, ropes[kind.rope], mask)) * (1.0 if remat == "none" else 1.01)`
    """  # noqa: E501
    assert_near(gradients(remat), gradients("none"), FLOAT32_CPU["same_maths"])


def test_R6_scanned_or_written_out():
    """Mutation: jaxpost/models/decoder.py: `unroll=stage.repeats if unroll else 1)` -> `unroll=1, length=1 if unroll else None)`"""  # noqa: E501
    assert_near(gradients("qkv", unroll=True), gradients("none"), FLOAT32_CPU["same_maths"])


def test_L16_the_masks_are_those_of_the_forward_pass_when_made_again():
    """Dropout is on above: with other masks in the backward pass no gradient would agree. Here it is felt.

    Mutation: jaxpost/adapters/bind.py: `if dropout_key is not None and spec.dropout > 0.0:` -> `if False:`
    """
    off = loss((TREE, FOUND.factors), "none", False)
    without = Adapters(FOUND.factors, adapted(TREE).spec)
    plain = hidden_states(CONFIG, bind(TREE, without), jnp.asarray(ROWS["tokens"]), jnp.asarray(ROWS["segment_ids"]))
    weights = np.random.default_rng(0).standard_normal(plain.shape)
    assert abs(float(off) - float((np.asarray(plain) * weights).sum())) > 1e-2
    assert_near(gradients("full")[0], off, FLOAT32_CPU["same_maths"])


def saved_bytes(remat):
    """Bytes of what the layers keep from the forward for the backward pass, weights aside."""
    wide = llama([PLAIN] * 2, hidden_size=20)
    tree = params(wide)
    found = adapted(tree)
    tokens = jnp.zeros((2, 40), jnp.int32)

    def run(factors):
        return hidden_states(wide, bind(tree, Adapters(factors, found.spec)), tokens, remat=remat).sum()

    kept = jax.tree.leaves(jax.eval_shape(lambda factors: jax.vjp(run, factors)[1], found.factors))
    return sum(leaf.size * 4 for leaf in kept if 40 in leaf.shape and leaf.shape[0] == 2)


def test_each_mode_keeps_more_than_the_one_before():
    """Mutation: jaxpost/models/decoder.py: `"full": (),` -> `"full": ("attention_out", "attention_lse"),`"""
    kept = [saved_bytes(remat) for remat in ("full", "attention", "qkv", "mlp", "none")]
    assert kept == sorted(set(kept)) and kept[0] > 0
