"""Drawing: the distribution, log-probabilities of what is drawn, keys that depend on the row alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.sampling.draw import draw, row_keys, step_keys


def logits(seed, rows, size):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, size)) * 2, jnp.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_G12_tokens_come_from_the_softmax_at_the_temperature_and_so_do_their_log_probabilities(temperature):
    """Chi-square of 8,000 draws over 7 tokens: beyond 30 once in 25,000 times.

    Mutation: jaxpost/sampling/draw.py: ` / jnp.where(drawn, temperature[:, None], 1.0)` -> ``
    Mutation: jaxpost/sampling/draw.py: `jnp.where(drawn, noise, 0.0)` -> `jnp.where(drawn, 0.5 * noise, 0.0)`
    """
    count, z = 8000, logits(3, 1, 7)
    keys = jax.random.split(jax.random.key(1), count)
    tokens, logps = draw(jnp.tile(z, (count, 1)), keys, jnp.full(count, temperature, jnp.float32), jnp.ones(7, bool))
    want = jax.nn.log_softmax(z[0] / temperature)
    np.testing.assert_allclose(logps, want[tokens], atol=1e-6)
    expected = np.exp(np.asarray(want, np.float64)) * count
    assert (((np.bincount(tokens, minlength=7) - expected) ** 2) / expected).sum() < 30


@pytest.mark.parametrize("temperature", [1e-30, 1e-12, 1e-9, 1e-6])
def test_G12_log_probabilities_are_right_at_tiny_temperatures(temperature):
    """Of the best, of one of two equal ones, and where what may not be drawn is better: never above 0, never infinite.

    Mutation: jaxpost/sampling/draw.py: `z = (logits - best) / jnp.where(` -> `z = logits / jnp.where(`
    Mutation: jaxpost/sampling/draw.py: `    top = z.max(-1)` -> `    top = jnp.zeros(len(z))`
    """
    z = np.array(logits(5, 3, 11) + 1000)
    z[1, 3] = z[1, 8] = z[1].max() + 1
    z[2, 7] = z[2].max() + 1
    allowed = np.arange(11) != 7
    count = 40
    keys = jax.random.split(jax.random.key(1), 3 * count)
    table, t = np.repeat(z, count, axis=0), jnp.full(3 * count, temperature, jnp.float32)
    tokens, logps = (np.asarray(x) for x in draw(jnp.asarray(table), keys, t, jnp.asarray(allowed)))
    assert set(tokens[:count]) == {z[0].argmax()} and set(tokens[count : 2 * count]) == {3, 8}
    assert set(tokens[2 * count :]) == {np.where(allowed, z[2], -np.inf).argmax()}
    wide = (z.astype(np.float64) - z.max(-1, keepdims=True)) / np.float64(np.float32(temperature))
    want = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    np.testing.assert_allclose(logps, want[np.arange(3 * count) // count, tokens], rtol=1e-5, atol=1e-6)
    assert (logps <= 0).all() and np.isfinite(logps).all()


@pytest.mark.parametrize("temperature", [9e-31, 1e-38, 1e-39, 1e-45])
def test_a_temperature_too_small_for_float32_is_0(temperature):
    """Mutation: jaxpost/sampling/draw.py: `(temperature >= SMALLEST)[:, None]` -> `(temperature > 0)[:, None]`"""
    z, keys, allowed = logits(6, 5, 13), jax.random.split(jax.random.key(0), 5), jnp.ones(13, bool)
    got, want = (draw(z, keys, jnp.full(5, t, jnp.float32), allowed) for t in (temperature, 0.0))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_temperature_0_takes_the_largest_of_those_allowed():
    """Its log-probability is that of temperature 1; rows of both kinds stand side by side.

    Mutation: jaxpost/sampling/draw.py: `_argmax(jnp.where(allowed[None], ` -> `_argmax(jnp.where(True, `
    """
    z, allowed = logits(0, 6, 11), np.ones(11, bool)
    allowed[np.bincount(np.asarray(z.argmax(-1))).argmax()] = False
    temperature = jnp.array([0, 0, 0, 1, 0, 0.0], jnp.float32)
    tokens, logps = draw(z, jax.random.split(jax.random.key(0), 6), temperature, jnp.asarray(allowed))
    greedy = np.asarray(temperature == 0)
    want = np.where(allowed, z, -np.inf).argmax(-1)
    np.testing.assert_array_equal(np.asarray(tokens)[greedy], want[greedy])
    np.testing.assert_allclose(logps, jax.nn.log_softmax(z)[np.arange(6), tokens], atol=1e-6)


def test_D18_what_is_not_allowed_is_never_drawn():
    """Mutation: jaxpost/sampling/draw.py: `jnp.where(allowed[None], z + jnp.where(drawn, noise, 0.0), -jnp.inf)` -> `z + jnp.where(drawn, noise, 0.0)`"""  # noqa: E501
    z = jnp.zeros((500, 5)).at[:, 3].set(20.0)
    keys = jax.random.split(jax.random.key(0), 500)
    tokens, _ = draw(z, keys, jnp.ones(500), jnp.array([True, True, True, False, True]))
    assert set(np.asarray(tokens).tolist()) == {0, 1, 2, 4}


def test_a_rows_keys_follow_from_seed_prompt_sample_and_token_alone():
    """Mutation: jaxpost/sampling/draw.py: `jax.random.fold_in(jax.random.fold_in(key, h), n))(` -> `jax.random.fold_in(key, n))(`
    Mutation: jaxpost/sampling/draw.py: `return jax.vmap(jax.random.fold_in)(keys, counts)` -> `return keys`
    """  # noqa: E501
    data = lambda keys: [tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()]  # noqa: E731
    many = data(row_keys(7, [[1, 2], [1, 2], [2, 1], [3]], [0, 1, 0, 0]))
    assert len(set(many)) == 4
    assert data(row_keys(7, [[2, 1]], [0])) == many[2:3] and data(row_keys(8, [[2, 1]], [0])) != many[2:3]
    keys = row_keys(7, [[1], [1]], [0, 0])
    first, second = data(step_keys(keys, jnp.array([0, 1])))
    assert first != second
