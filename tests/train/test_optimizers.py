"""Schedules value by value, and AdamW against its algorithm in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numerics import assert_near
from refusals import refused
from tolerances import FLOAT32_CPU

from jaxpost.core.tree import path_string
from jaxpost.train import adamw, schedule


def by_definition(name, peak, steps, warmup_ratio, n):
    warmup = math.ceil(warmup_ratio * steps)
    if n < warmup:
        return peak * (n + 1) / warmup
    left = max(0.0, (steps - n) / max(1, steps - warmup))
    return peak * {"constant": 1.0, "linear": left, "cosine": (1 + math.cos(math.pi * (1 - left))) / 2}[name]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("steps", "warmup_ratio"), [(1, 0.0), (1, 0.03), (7, 0.0), (50, 0.03), (10, 0.25), (4, 1.0)])
def test_schedules(name, steps, warmup_ratio):
    rate = schedule(name, 3e-4, steps, warmup_ratio)
    found = [float(rate(n)) for n in range(steps)]
    np.testing.assert_allclose(
        found, [by_definition(name, 3e-4, steps, warmup_ratio, n) for n in range(steps)], rtol=1e-5
    )
    assert min(found) > 0, "no update is made at rate 0"
    assert max(found) <= 3e-4 * (1 + 1e-6)
    if name != "constant":
        np.testing.assert_allclose([float(rate(n)) for n in (steps, steps + 5)], 0.0, atol=1e-10)


def test_a_schedule_reads_a_traced_count():
    rate = schedule("linear", 1.0, 10, 0.2)
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(jnp.arange(10)), [float(rate(n)) for n in range(10)], rtol=1e-6)


def test_an_unknown_schedule_is_refused():
    refused(lambda: schedule("lineer", 1.0, 10, 0.0), "`schedule`", "lineer", "linear")


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw(weight_decay):
    """Loshchilov & Hutter 2019, algorithm 2, five updates at a rate that changes."""
    rng = np.random.default_rng(0)
    rate = schedule("linear", 1e-2, 5, 0.4)
    optimizer = adamw(rate, weight_decay=weight_decay)
    w = rng.standard_normal(6)
    params = jnp.asarray(w, jnp.float32)
    state, m, v = optimizer.init(params), np.zeros(6), np.zeros(6)
    for n in range(5):
        g = rng.standard_normal(6)
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = (m / (1 - 0.9 ** (n + 1))) / (np.sqrt(v / (1 - 0.999 ** (n + 1))) + 1e-8)
        w = w - float(rate(n)) * (step + weight_decay * w)
    assert_near(params, w, FLOAT32_CPU["same_maths"])


def test_norms_and_biases_do_not_decay():
    """Stacked too, where their axes tell nothing; a factor decays.

    Mutation: jaxpost/train/optimizers.py: `return "norm" not in name and not name.endswith("bias")` -> `return True`
    """
    params = {
        "layers": (
            ({"input_layernorm": {"weight": jnp.ones((3, 4))}, "q_proj": {"weight": jnp.ones(4), "bias": jnp.ones(4)}},)
        ),
        "norm": {"weight": jnp.ones(4)},
        "layers/0/0/self_attn/q_proj": {"lora_A": jnp.ones((2, 4)), "lora_B": jnp.ones((4, 2))},
    }
    optimizer = adamw(0.5, weight_decay=0.5)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = {path_string(path) for path, x in jax.tree_util.tree_leaves_with_path(updates) if float(jnp.abs(x).max())}
    factor = "layers/0/0/self_attn/q_proj"
    assert moved == {"layers/0/q_proj/weight", f"{factor}/lora_A", f"{factor}/lora_B"}
