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

    Mutation: jaxpost/sampling/draw.py: `z = logits / jnp.where(drawn, temperature[:, None], 1.0)` -> `z = logits`
    Mutation: jaxpost/sampling/draw.py: `jnp.where(drawn, noise, 0.0)` -> `jnp.where(drawn, 0.5 * noise, 0.0)`
    """
    count, z = 8000, logits(3, 1, 7)
    keys = jax.random.split(jax.random.key(1), count)
    tokens, logps = draw(jnp.tile(z, (count, 1)), keys, jnp.full(count, temperature, jnp.float32), jnp.ones(7, bool))
    want = jax.nn.log_softmax(z[0] / temperature)
    np.testing.assert_allclose(logps, want[tokens], atol=1e-6)
    expected = np.exp(np.asarray(want, np.float64)) * count
    assert (((np.bincount(tokens, minlength=7) - expected) ** 2) / expected).sum() < 30


def test_temperature_0_takes_the_largest_of_those_allowed():
    """Its log-probability is that of temperature 1; rows of both kinds stand side by side.

    Mutation: jaxpost/sampling/draw.py: `score = jnp.where(allowed[None], ` -> `score = jnp.where(True, `
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
