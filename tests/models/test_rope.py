"""Rotary embedding: frequencies of every kind, rotation in float32, dependence on distance alone."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_near, assert_same_bits
from tolerances import FLOAT32_CPU

from jaxpost.models.config import Rope
from jaxpost.models.rope import frequencies, rotate, tables

LLAMA3 = Rope(
    theta=500.0, kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64
)


def by_wavelength(rope, head_dim):
    """One frequency after the other, as the Llama 3.1 model card spells the scaling: by wavelength, in tokens."""
    found = []
    for i in range(head_dim // 2):
        frequency = rope.theta ** (-2.0 * i / head_dim)
        if rope.kind == "linear":
            frequency /= rope.factor
        if rope.kind == "llama3":
            wavelength = 2 * math.pi / frequency
            longest = rope.original_max_positions / rope.low_freq_factor
            shortest = rope.original_max_positions / rope.high_freq_factor
            if wavelength > longest:
                frequency /= rope.factor
            elif wavelength >= shortest:
                smooth = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
                    rope.high_freq_factor - rope.low_freq_factor
                )
                frequency = (1 - smooth) * frequency / rope.factor + smooth * frequency
        found.append(frequency)
    return np.array(found)


@pytest.mark.parametrize(
    "rope",
    [
        Rope(),
        Rope(theta=37.0),
        Rope(theta=500.0, kind="linear", factor=2.5),
        LLAMA3,
        Rope(theta=5e5, kind="llama3", factor=32.0, high_freq_factor=3.0, original_max_positions=8192),
    ],
)
@pytest.mark.parametrize("head_dim", [2, 6, 14, 64])
def test_frequencies(rope, head_dim):
    found = frequencies(rope, head_dim)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_wavelength(rope, head_dim), rtol=1e-6)


def test_llama3_has_all_three_ranges():
    """The oracle above meets fast, blended and slow frequencies."""
    ratio = by_wavelength(Rope(theta=500.0), 14) / by_wavelength(LLAMA3, 14)
    assert ratio[0] == 1.0 and math.isclose(ratio[-1], 8.0) and any(1.01 < r < 7.9 for r in ratio)


def heads(seed, batch=2, length=5, count=3, dim=6):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, length, count, dim)), jnp.float32)


def rotated64(x, positions, rope):
    """Each pair (x_i, x_{i + D/2}) as a complex number times exp(i angle)."""
    half = x.shape[-1] // 2
    z = np.asarray(x[..., :half], np.float64) + 1j * np.asarray(x[..., half:], np.float64)
    z = z * np.exp(1j * np.asarray(positions)[..., None, None] * by_wavelength(rope, x.shape[-1]))
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize("seed", range(3))
def test_rotation_is_multiplication_by_a_phase(seed):
    positions = jnp.asarray(np.random.default_rng(seed).integers(0, 60, (2, 5)), jnp.int32)
    x = heads(seed)
    assert_near(rotate(x, tables(LLAMA3, 6, positions)), rotated64(x, positions, LLAMA3), FLOAT32_CPU["same_maths"])


def test_scores_depend_on_the_distance_alone():
    q, k = heads(0), heads(1)
    positions = jnp.asarray([[0, 3, 4, 9, 11], [5, 6, 7, 8, 9]], jnp.int32)
    scores = [
        jnp.einsum("bqhd,bkhd->bhqk", rotate(q, table), rotate(k, table))
        for table in (tables(Rope(theta=50.0), 6, positions + shift) for shift in (0, 17))
    ]
    assert_near(scores[0], scores[1], FLOAT32_CPU["same_maths"])


def test_position_zero_is_left_alone():
    x = heads(0)
    assert_same_bits(rotate(x, tables(Rope(), 6, jnp.zeros((2, 5), jnp.int32))), x)


def test_bfloat16_heads_are_rotated_in_float32():
    """One rounding, at the end: position 4001 in bfloat16 would be 4000.

    Mutation: jaxpost/models/rope.py: `positions[..., None].astype(jnp.float32)` -> `positions[..., None].astype(jnp.bfloat16)`
    """  # noqa: E501
    x = heads(0).astype(jnp.bfloat16)
    positions = jnp.full((2, 5), 4001, jnp.int32)
    table = tables(Rope(), 6, positions)
    found = rotate(x, table)
    assert found.dtype == jnp.bfloat16 and table[0].dtype == jnp.float32
    want = rotated64(x.astype(jnp.float32), positions, Rope())
    np.testing.assert_allclose(np.asarray(found, np.float64), want, atol=2**-7 * np.abs(want).max())
