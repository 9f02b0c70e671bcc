"""Fresh adapters: on any tree, float32, equal to the base until trained."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import LOCAL, gemma, llama, params
from numerics import assert_same_bits
from refusals import refused

from jaxpost import adapters
from jaxpost.models.config import abstract_params
from jaxpost.models.decoder import forward

KEY = jax.random.key(0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("config", [llama(), gemma([LOCAL], qkv_bias=True)], ids=["llama", "gemma"])
def test_L1_a_fresh_adapter_changes_no_bit(config, dtype):
    """Mutation: jaxpost/adapters/init.py: `jnp.zeros((*stack, d_out, rank), jnp.float32)` -> `jnp.ones((*stack, d_out, rank), jnp.float32)`"""  # noqa: E501
    tree = params(config, dtype=dtype)
    fresh = adapters.init(KEY, tree, rank=5)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (2, 7)), jnp.int32)
    run = jax.jit(lambda tree: forward(config, tree, tokens))
    assert_same_bits(run(adapters.bind(tree, fresh)), run(tree))
    assert all(np.any(f["lora_A"]) for f in fresh.factors.values())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_J6_factors_are_float32_on_any_base(dtype):
    """Mutation: jaxpost/adapters/init.py: `jnp.zeros((*stack, d_out, rank), jnp.float32)` -> `jnp.zeros((*stack, d_out, rank), jax.tree.leaves(params)[0].dtype)`"""  # noqa: E501
    fresh = adapters.init(KEY, abstract_params(llama(), dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("rank", "alpha"), [(1, 32.0), (5, 3.0), (16, 16.0)])
def test_L2_scaling_is_alpha_over_rank(rank, alpha):
    """Mutation: jaxpost/adapters/init.py: `scale[path] = on * (alpha / rank)` -> `scale[path] = on * alpha`"""
    fresh = adapters.init(KEY, params(llama()), rank=rank, alpha=alpha)
    for path, scale in fresh.spec.scale.items():
        np.testing.assert_allclose(scale, np.full(2, alpha / rank), rtol=1e-7)
        assert fresh.spec.rank_mask[path].shape == (2, rank) and fresh.spec.rank_mask[path].all()


def test_A_is_uniform_within_one_over_root_in():
    """And every module and layer draws its own; another key draws others."""
    fresh = adapters.init(KEY, params(llama(intermediate_size=800)), rank=40)
    for path, f in fresh.factors.items():
        a = np.asarray(f["lora_A"], np.float64)
        bound = a.shape[-1] ** -0.5
        assert np.abs(a).max() <= bound and np.abs(a).max() > 0.99 * bound
        np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.05, err_msg=path)
    q, k = (fresh.factors[f"layers/0/0/self_attn/{name}"]["lora_A"] for name in ("q_proj", "k_proj"))
    assert not np.array_equal(q, k) and not np.array_equal(q[0], q[1])
    again = adapters.init(KEY, params(llama(intermediate_size=800)), rank=40)
    assert_same_bits(again, fresh)
    other = adapters.init(jax.random.key(1), params(llama()), rank=40)
    assert not np.array_equal(other.factors["layers/0/0/self_attn/q_proj"]["lora_A"], q)


def test_L11_shapes_follow_the_matrices():
    """One key head for three query heads, an MLP of another width, no head and no embedding.

    Mutation: jaxpost/adapters/targets.py: `NOT_LINEAR = ("norm", "embed", "lm_head")` -> `NOT_LINEAR = ("norm", "embed")`
    """  # noqa: E501
    fresh = adapters.init(KEY, params(gemma(tie_word_embeddings=False)), rank=7)
    shapes = {path: (f["lora_A"].shape, f["lora_B"].shape) for path, f in fresh.factors.items()}
    block = {
        "self_attn/q_proj": (18, 20),
        "self_attn/k_proj": (6, 20),
        "self_attn/v_proj": (6, 20),
        "self_attn/o_proj": (20, 18),
        "mlp/gate_proj": (28, 20),
        "mlp/up_proj": (28, 20),
        "mlp/down_proj": (20, 28),
    }
    want = {
        f"layers/{stage}/{position}/{path}": ((repeats, 7, d_in), (repeats, d_out, 7))
        for stage, position, repeats in ((0, 0, 2), (0, 1, 2), (1, 0, 1))
        for path, (d_out, d_in) in block.items()
    }
    assert shapes == want
    assert list(fresh.factors) == sorted(fresh.factors)


def test_parameters_are_counted():
    fresh = adapters.init(KEY, params(llama()), rank=4)
    sizes = [(18, 20), (6, 20), (6, 20), (20, 18), (28, 20), (28, 20), (20, 28)]
    assert adapters.num_parameters(fresh) == 2 * 4 * sum(a + b for a, b in sizes)
    assert adapters.num_parameters(fresh) == sum(leaf.size for leaf in jax.tree.leaves(fresh.factors))


def test_only_targeted_layers_are_counted():
    fresh = adapters.init(KEY, params(llama()), rank=4, targets="re:model\\.layers\\.1\\..*q_proj")
    assert adapters.num_parameters(fresh) == 4 * (18 + 20)
    assert fresh.spec.rank_mask["layers/0/0/self_attn/q_proj"].sum(-1).tolist() == [0.0, 4.0]


def test_models_trees_and_shapes_give_the_same_adapter():
    tree = params(llama())
    want = adapters.init(KEY, tree, rank=3)
    assert_same_bits(adapters.init(KEY, SimpleNamespace(params=tree), rank=3), want)
    assert_same_bits(adapters.init(KEY, abstract_params(llama()), rank=3), want)


def test_the_spec_is_static_where_it_says_so():
    fresh = adapters.init(KEY, params(llama()), dropout=0.25)
    assert (fresh.spec.dropout, fresh.spec.variant) == (0.25, "lora")
    structure = jax.tree.structure(fresh)
    assert structure != jax.tree.structure(
        dataclasses.replace(fresh, spec=dataclasses.replace(fresh.spec, dropout=0.5))
    )


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"rank": 0}, ["`lora.rank`", "0"]),
        ({"rank": -3}, ["`lora.rank`", "-3"]),
        ({"alpha": 0.0}, ["`lora.alpha`", "0.0"]),
        ({"alpha": float("nan")}, ["`lora.alpha`", "nan"]),
        ({"alpha": float("inf")}, ["`lora.alpha`", "inf"]),
        ({"dropout": 1.0}, ["`lora.dropout`", "1.0"]),
        ({"dropout": -0.1}, ["`lora.dropout`", "-0.1"]),
        ({"dropout": float("nan")}, ["`lora.dropout`", "nan"]),
        ({"variant": "loro"}, ["`lora.variant`", "loro", "lora"]),
        ({"targets": "q_prj"}, ["`lora.targets`", "q_prj", 'Did you mean "q_proj"']),
    ],
)
def test_wrong_options_are_refused(options, mentions):
    refused(lambda: adapters.init(KEY, params(llama()), **options), *mentions)
