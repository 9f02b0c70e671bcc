"""The adapted weight: products, lookups, the sum as one matrix, dropout in the low-rank branch only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_near, assert_same_bits, numeric_gradient
from tolerances import BFLOAT16_CPU, FLOAT32_CPU

from jaxpost.adapters import LoraWeight
from jaxpost.weights import Weight, embed, linear, materialize

GAIN = np.array([0.5, 2.0, 0.0])  # scale times mask; the last rank is masked


def lora(d_in=5, d_out=7, seed=0, dtype=jnp.float32, **fields):
    """A weight and its matrix in float64."""
    rng = np.random.default_rng(seed)
    base = jnp.asarray(rng.standard_normal((d_out, d_in)), dtype)
    a, b = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, d_in), (d_out, 3)))
    whole = np.asarray(base, np.float64) + (np.asarray(b, np.float64) * GAIN) @ np.asarray(a, np.float64)
    return LoraWeight(base, a, b, jnp.asarray(GAIN, jnp.float32), **fields), whole


def inputs(shape, seed=1, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("batch", [(4,), (2, 3), (2, 3, 4)])
def test_L2_a_product_with_base_and_factors_is_one_with_their_sum(batch):
    """Mutation: jaxpost/adapters/lora.py: `wide * along_last(self.gain, low)` -> `low.astype(jnp.float32)`"""  # noqa: E501
    w, whole = lora()
    x = inputs((*batch, 5))
    assert isinstance(w, Weight) and w.shape == (7, 5)
    assert_near(linear(x, w), np.asarray(x, np.float64) @ whole.T, FLOAT32_CPU["same_maths"])
    assert_near(linear(x, materialize(w, jnp.float32)), linear(x, w), FLOAT32_CPU["same_maths"])


def test_rows_of_an_adapted_table():
    w, whole = lora(d_in=5, d_out=9)
    ids = jnp.array([[0, 8, 3], [3, 3, 1]])
    assert_near(embed(ids, w), whole[np.asarray(ids)], FLOAT32_CPU["same_maths"])
    narrow = embed(ids, w, jnp.bfloat16)
    assert narrow.dtype == jnp.bfloat16
    assert_near(narrow, whole[np.asarray(ids)], BFLOAT16_CPU["logits"])


def test_gradients_of_factors():
    """Of x (W + B g A)^T by A and B, in float64; those of the masked rank are exactly zero."""
    w, _ = lora()
    x, dy = inputs((4, 5)), inputs((4, 7), seed=2)
    value = lambda a, b: (linear(x, dataclasses.replace(w, lora_A=a, lora_B=b)) * dy).sum()  # noqa: E731
    found = jax.grad(value, (0, 1))(w.lora_A, w.lora_B)
    base, a, b = (np.asarray(v, np.float64) for v in (w.base, w.lora_A, w.lora_B))
    value64 = lambda a, b: ((np.asarray(x, np.float64) @ (base + b * GAIN @ a).T) * np.asarray(dy)).sum()  # noqa: E731
    want = numeric_gradient(lambda a: value64(a, b), a), numeric_gradient(lambda b: value64(a, b), b)
    assert_near(found, want, FLOAT32_CPU["same_maths"])
    assert not np.any(found[0][2]) and not np.any(found[1][:, 2])


def test_a_bfloat16_base_keeps_float32_factors_and_gradients():
    w, whole = lora(dtype=jnp.bfloat16)
    x = inputs((4, 5), dtype=jnp.bfloat16)
    y = linear(x, w)
    assert y.dtype == jnp.bfloat16
    assert_near(y, np.asarray(x, np.float64) @ whole.T, BFLOAT16_CPU["logits"])
    gradient = jax.grad(lambda a: linear(x, dataclasses.replace(w, lora_A=a)).astype(jnp.float32).sum())(w.lora_A)
    assert gradient.dtype == jnp.float32


def test_the_sum_is_rounded_once():
    """W + low is added in float32: a step smaller than bfloat16's grid near W still counts with its neighbour.

    Mutation: jaxpost/adapters/lora.py: `materialize(self.base, jnp.float32) + low` -> `materialize(self.base, jnp.bfloat16) + low.astype(jnp.bfloat16)`
    """  # noqa: E501
    one = jnp.ones((1, 1), jnp.bfloat16)
    step = jnp.full((1, 1), 2.0**-9)  # a quarter of bfloat16's grid at 1
    inner = LoraWeight(one, step, jnp.ones((1, 1)), jnp.ones(1))
    assert float(LoraWeight(inner, step, jnp.ones((1, 1)), jnp.ones(1)).materialize(jnp.float32)[0, 0]) == 1 + 2.0**-8
    assert float(inner.materialize(jnp.bfloat16)[0, 0]) == 1.0


KEY = jax.random.key(3)


@pytest.mark.parametrize("dropout", [0.2, 0.7])
def test_L16_dropout_is_in_the_low_rank_branch_only(dropout):
    """With a zero base nothing but the branch is left; with zero factors nothing is dropped.

    Mutation: jaxpost/adapters/lora.py: `return linear(x, self.base) + linear(low, self.lora_B)` -> `return linear(self._drop(x), self.base) + linear(low, self.lora_B)`
    """  # noqa: E501
    w, _ = lora(key=KEY, dropout=dropout)
    x = inputs((40, 5))
    without = dataclasses.replace(w, lora_B=jnp.zeros_like(w.lora_B))
    assert_same_bits(linear(x, without), linear(x, w.base))
    branch = dataclasses.replace(w, base=jnp.zeros_like(w.base))
    assert not np.allclose(linear(x, branch), linear(x, dataclasses.replace(branch, key=None)))


def test_L16_dropout_keeps_the_mean():
    """Kept inputs are divided by the share that is kept, whatever their dtype.

    Mutation: jaxpost/adapters/lora.py: `jnp.where(kept, x / jnp.asarray(1.0 - self.dropout, x.dtype), 0)` -> `jnp.where(kept, x, 0)`
    """  # noqa: E501
    for dtype in (jnp.float32, jnp.bfloat16):
        identity = LoraWeight(jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1), KEY, 0.25)
        y = np.asarray(linear(jnp.ones((20_000, 1), dtype), identity), np.float64)
        np.testing.assert_allclose(np.unique(y), [0.0, 4 / 3], rtol=2.0**-8)
        np.testing.assert_allclose(y.mean(), 1.0, atol=0.02)  # standard error 0.004
        np.testing.assert_allclose((y == 0).mean(), 0.25, atol=0.015)


def test_L16_no_key_is_evaluation():
    """Mutation: jaxpost/adapters/lora.py: `if self.key is None or self.dropout == 0.0:` -> `if self.dropout == 0.0:`"""
    w, whole = lora(dropout=0.9)
    x = inputs((4, 5))
    assert_near(linear(x, w), np.asarray(x, np.float64) @ whole.T, FLOAT32_CPU["same_maths"])
    plain, _ = lora(key=KEY, dropout=0.0)
    assert_near(linear(x, plain), np.asarray(x, np.float64) @ whole.T, FLOAT32_CPU["same_maths"])
