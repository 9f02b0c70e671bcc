"""The verbs on a weight: products, lookups, their gradients and their dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_near, assert_same_bits
from tolerances import BFLOAT16_CPU, FLOAT32_CPU

from jaxpost.weights import Weight, along_last, contract, embed, linear, materialize

SHAPES = [((7,), 5, 3), ((2, 9), 3, 8), ((1,), 1, 1), ((2, 3, 5), 11, 11), ((), 4, 6)]  # batch, in, out


def arrays(batch, d_in, d_out, seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = ((*batch, d_in), (d_out, d_in), (*batch, d_out))
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


@pytest.mark.parametrize(("batch", "d_in", "d_out"), SHAPES)
@pytest.mark.parametrize("seed", range(2))
def test_linear_and_its_gradients(batch, d_in, d_out, seed):
    """y = x W^T; dx = dy W; dW = dy^T x, for wide and narrow weights alike."""
    x, w, dy = arrays(batch, d_in, d_out, seed)
    y, pull = jax.vjp(linear, x, w)
    x64, w64, dy64 = (np.asarray(a, np.float64) for a in (x, w, dy))
    want = (x64 @ w64.T, (dy64 @ w64, np.einsum("no,ni->oi", dy64.reshape(-1, d_out), x64.reshape(-1, d_in))))
    assert_near((y, pull(dy)), want, FLOAT32_CPU["same_maths"])


def test_a_product_in_bfloat16_sums_in_float32():
    """1024 + 1 + 1 + ... in bfloat16 would stay 1024; forward and both gradients ask for float32 sums.

    Mutation: jaxpost/weights.py: `preferred_element_type=wide` -> `preferred_element_type=out_dtype`
    """  # noqa: E501
    x = jnp.ones((1, 4096), jnp.bfloat16).at[0, 0].set(1024.0)
    w = jnp.ones((2, 4096), jnp.bfloat16)
    assert float(linear(x, w)[0, 0]) == 5120.0  # 1024 + 4095, rounded once
    text = jax.jit(lambda x, w, dy: jax.vjp(linear, x, w)[1](dy)).lower(x, w, linear(x, w)).as_text()
    dots = [line for line in (text + jax.jit(linear).lower(x, w).as_text()).splitlines() if "dot_general" in line]
    assert len(dots) == 3 and all(line.endswith("xf32>") for line in dots)


@pytest.mark.parametrize(("x_dtype", "w_dtype"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_each_gradient_comes_in_the_dtype_of_what_it_is_of(x_dtype, w_dtype):
    x, w, dy = arrays((6,), 5, 4, 0)
    x, w = x.astype(x_dtype), w.astype(w_dtype)
    y, pull = jax.vjp(linear, x, w)
    dx, dw = pull(dy.astype(y.dtype))
    assert (y.dtype, dx.dtype, dw.dtype) == (x.dtype, x.dtype, w.dtype)
    assert_near(dw, np.asarray(dy, np.float64).T @ np.asarray(x, np.float64), BFLOAT16_CPU["logits"])


def saved(function, *arguments):
    """Shapes of what the backward pass keeps, scalars aside."""
    return sorted(leaf.shape for leaf in jax.tree.leaves(jax.vjp(function, *arguments)[1]) if leaf.ndim)


def test_a_frozen_weight_saves_nothing_of_the_batch():
    """Mutation: jaxpost/weights.py: `x.value if w.perturbed else None` -> `x.value`"""
    x, w, _ = arrays((6,), 5, 4, 0)
    assert saved(lambda x: linear(x, w), x) == [w.shape]
    assert x.shape in saved(lambda x, w: linear(x, w), x, w)


def test_only_the_asked_gradient_is_made():
    x, w, dy = arrays((6,), 5, 4, 0)
    both = jax.vjp(linear, x, w)[1](dy)
    assert_same_bits(jax.vjp(lambda x: linear(x, w), x)[1](dy), both[:1])
    assert_same_bits(jax.vjp(lambda w: linear(x, w), w)[1](dy), both[1:])


def test_linear_under_vmap():
    x, _, _ = arrays((3, 6), 5, 4, 0)
    w = jnp.asarray(np.random.default_rng(1).standard_normal((3, 4, 5)), jnp.float32)
    want = jnp.stack([linear(x[i], w[i]) for i in range(3)])
    assert_near(jax.vmap(linear)(x, w), want, FLOAT32_CPU["same_maths"])


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_embed_takes_rows(dtype):
    _, table, _ = arrays((), 5, 9, 0)
    ids = jnp.array([[0, 8], [3, 3]])
    want = np.asarray(table)[np.asarray(ids)]
    assert_same_bits(embed(ids, table, dtype), jnp.asarray(want, dtype or jnp.float32))


def test_the_gradient_of_a_lookup_adds_up_equal_ids():
    _, table, _ = arrays((), 5, 9, 0)
    gradient = jax.grad(lambda w: (embed(jnp.array([3, 3, 1]), w) * jnp.array([[1.0], [2.0], [4.0]])).sum())(table)
    want = np.zeros((9, 5))
    want[3], want[1] = 3.0, 4.0
    assert_near(gradient, want, FLOAT32_CPU["same_maths"])


def test_an_id_past_the_table_gives_nan():
    """XLA alone would take the last row in silence.

    Mutation: jaxpost/weights.py: `jnp.where(tokens < 0, w.shape[0], tokens)` -> `tokens`
    Mutation: jaxpost/weights.py: `mode="fill", fill_value=jnp.nan` -> `mode="clip"`
    """
    table = jnp.ones((9, 5))
    assert np.isnan(embed(jnp.array([9, -1, -9]), table)).all()
    assert np.isfinite(embed(jnp.array([8, 0]), table)).all()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_ids_may_be_of_any_integer_type(dtype):
    """Mutation: jaxpost/weights.py: `tokens = tokens.astype(jnp.int32)` -> `pass`"""
    table = jnp.arange(70_000.0).reshape(-1, 1)
    assert embed(jnp.array([3, 120], dtype), table).tolist() == [[3.0], [120.0]]


def test_an_array_is_no_weight_object():
    seen = []
    jax.jit(lambda w: seen.append(isinstance(w, Weight)))(jnp.ones((2, 2)))
    assert seen == [False] and not isinstance(jnp.ones((2, 2)), Weight)
    assert not isinstance(jax.ShapeDtypeStruct((2, 2), jnp.float32), Weight)


class Halves:
    """A weight that no one knows: half of a matrix."""

    def __init__(self, w):
        self.w, self.shape, self.dtype = w, w.shape, w.dtype

    def matmul(self, x):
        return x @ self.w.T / 2

    def take(self, ids, dtype):
        return self.w[ids] / 2

    def materialize(self, dtype):
        return self.w.astype(dtype) / 2


def test_any_object_with_the_methods_is_a_weight():
    x, w, _ = arrays((6,), 5, 4, 0)
    assert_near(linear(x, Halves(w)), linear(x, w / 2), FLOAT32_CPU["same_maths"])
    assert_same_bits(embed(jnp.array([2]), Halves(w)), embed(jnp.array([2]), w / 2))
    assert_same_bits(materialize(Halves(w), jnp.float32), materialize(w / 2, jnp.float32))


def test_a_vector_meets_the_last_axis():
    x = jnp.zeros((2, 3, 4))
    assert_same_bits(x + along_last(jnp.arange(4.0), x), jnp.broadcast_to(jnp.arange(4.0), x.shape))


@pytest.mark.parametrize("size", [64, 65, 1000, 4096])
@pytest.mark.parametrize("axes", [(1, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_highest_precision_sums_in_parts(size, axes, dtype):
    """Errors of 64 terms however many there are, and nearer where many parts even them out; the default is one dot.

    Mutation: jaxpost/weights.py: `part(rest + n * PARTIAL_SUM, PARTIAL_SUM) - excess` -> `part(n * PARTIAL_SUM, PARTIAL_SUM) - excess`
    Mutation: jaxpost/weights.py: `part(rest + n * PARTIAL_SUM, PARTIAL_SUM) - excess` -> `part(rest + n * PARTIAL_SUM, PARTIAL_SUM) + excess`
    Mutation: jaxpost/weights.py: `return asked in ("highest", "float32")` -> `return False`
    Mutation: jaxpost/weights.py: `return asked in ("highest", "float32")` -> `return True`
    """  # noqa: E501
    rng = np.random.default_rng(size)
    x, w = (jnp.asarray(rng.uniform(0.5, 1.0, (n, size)), dtype) for n in (3, 5))
    a, b = (m if axis else m.T for m, axis in zip((x, w), axes, strict=True))
    want = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    program = lambda: str(jax.make_jaxpr(lambda a, b: contract(a, b, axes, dtype))(a, b))  # noqa: E731
    assert program().count("dot_general[") == 1 and "scan" not in program()
    with jax.default_matmul_precision("highest"):
        assert ("scan" in program()) == (size > 64)
        found = np.asarray(contract(a, b, axes, jnp.float32))
    assert found.dtype == np.float32
    assert np.abs(found - want).max() <= (2.0**-22 if size == 4096 else 2.0**-21) * want.max()
