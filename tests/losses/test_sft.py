"""Per-token losses: values, and gradients with respect to the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_near, assert_same_bits
from tolerances import FLOAT32_CPU

from jaxpost.losses import dft, eaft, nll


def logits_and_targets(seed, tokens=9, vocab=30):
    rng = np.random.default_rng(seed)
    return jnp.asarray(2 * rng.standard_normal((tokens, vocab)), jnp.float32), jnp.asarray(
        rng.integers(0, vocab, tokens)
    )


def logps(z, targets):
    return jnp.take_along_axis(jax.nn.log_softmax(z), targets[:, None], axis=-1)[:, 0]


def probabilities64(z, targets):
    """All probabilities, those of the targets, and onehot(target) - p, in float64."""
    z = np.asarray(z, np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    onehot = np.eye(z.shape[-1])[np.asarray(targets)]
    return p, (p * onehot).sum(-1), onehot - p


@pytest.mark.parametrize("seed", range(3))
def test_values(seed):
    z, targets = logits_and_targets(seed)
    _, p, _ = probabilities64(z, targets)
    h = jnp.asarray(np.random.default_rng(seed).random(9), jnp.float32)
    found = nll(logps(z, targets)), dft(logps(z, targets)), eaft(logps(z, targets), h)
    assert_near(found, (-np.log(p), -p * np.log(p), -np.asarray(h, np.float64) * np.log(p)), FLOAT32_CPU["same_maths"])
    assert_near(
        eaft(logps(z, targets), h, alpha=2.5),
        -(np.asarray(h, np.float64) ** 2.5) * np.log(p),
        FLOAT32_CPU["same_maths"],
    )


@pytest.mark.parametrize("seed", range(3))
def test_S8_the_gradient_of_dft_is_p_times_that_of_nll(seed):
    """By the logits: -(onehot - p_all), each token's times its own probability, held still.

    Mutation: jaxpost/losses/sft.py: `jax.lax.stop_gradient(jnp.exp(logps)) * nll(logps)` -> `jnp.exp(logps) * nll(logps)`
    """  # noqa: E501
    z, targets = logits_and_targets(seed)
    _, p, direction = probabilities64(z, targets)
    plain = jax.grad(lambda z: nll(logps(z, targets)).sum())(z)
    dynamic = jax.grad(lambda z: dft(logps(z, targets)).sum())(z)
    assert_near((plain, dynamic), (-direction, -p[:, None] * direction), FLOAT32_CPU["same_maths"])
    assert_near(dynamic, plain * jnp.exp(logps(z, targets))[:, None], FLOAT32_CPU["same_maths"])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_S12_the_weight_of_eaft_is_held_still(alpha):
    """The entropy depends on the logits too; the gradient is h^alpha times that of nll all the same.

    Mutation: jaxpost/losses/sft.py: `jax.lax.stop_gradient(top_entropy) ** alpha` -> `top_entropy ** alpha`
    """
    z, targets = logits_and_targets(4)

    def entropy(z):
        top = jax.nn.log_softmax(jax.lax.top_k(z, 20)[0])
        return -(jnp.exp(top) * top).sum(-1) / jnp.log(20.0)

    found = jax.grad(lambda z: eaft(logps(z, targets), entropy(z), alpha=alpha).sum())(z)
    direction = probabilities64(z, targets)[2]
    want = -(np.asarray(entropy(z), np.float64) ** alpha)[:, None] * direction
    assert_near(found, want, FLOAT32_CPU["same_maths"])


def test_S12_weight_one_is_sft():
    """Mutation: jaxpost/losses/sft.py: `** alpha * nll(logps)` -> `** alpha * nll(logps) * 0.5`"""
    z, targets = logits_and_targets(5)
    values = logps(z, targets)
    assert_same_bits(eaft(values, jnp.ones(9)), nll(values))
    assert_same_bits(eaft(values, jnp.full(9, 0.3), alpha=0.0), nll(values))
    assert_same_bits(dft(jnp.zeros(3)), nll(jnp.zeros(3)))


def test_a_token_of_probability_one_costs_a_positive_zero():
    for loss in (nll, dft):
        assert not np.signbit(loss(jnp.zeros(2))).any()


def test_no_gradient_is_lost_where_the_entropy_is_zero():
    """0 ** alpha has no infinite slope: the weight is not differentiated."""
    z, targets = logits_and_targets(6)
    gradient = jax.grad(lambda z: eaft(logps(z, targets), jnp.zeros(9), alpha=0.5).sum())(z)
    assert not np.any(gradient)


def test_losses_take_any_shape():
    for shape in ((), (4,), (2, 3, 5)):
        values = -jnp.ones(shape)
        assert nll(values).shape == dft(values).shape == eaft(values, values**2).shape == shape
