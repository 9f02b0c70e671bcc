"""The parameter tree as shapes: what every family has, stack by stack."""

import jax
import jax.numpy as jnp
import pytest
from decoders import GLOBAL, LOCAL, PLAIN, gemma, llama

from jaxpost.models.config import abstract_params, block_shapes


def paths(tree):
    return {
        "/".join(str(getattr(step, "key", getattr(step, "idx", None))) for step in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_llamas_tree():
    found = paths(abstract_params(llama([PLAIN] * 3)))
    layer = {
        "self_attn/q_proj/weight": (3, 18, 20),
        "self_attn/k_proj/weight": (3, 6, 20),
        "self_attn/v_proj/weight": (3, 6, 20),
        "self_attn/o_proj/weight": (3, 20, 18),
        "mlp/gate_proj/weight": (3, 28, 20),
        "mlp/up_proj/weight": (3, 28, 20),
        "mlp/down_proj/weight": (3, 20, 28),
        "input_layernorm/weight": (3, 20),
        "post_attention_layernorm/weight": (3, 20),
    }
    whole = {"embed_tokens/weight": (61, 20), "norm/weight": (20,), "lm_head/weight": (61, 20)}
    assert found == {**whole, **{f"layers/0/0/{name}": shape for name, shape in layer.items()}}


def test_gemmas_tree():
    """Two stages, two positions in the first; norms after attention and MLP, norms of q and k, no head."""
    found = paths(abstract_params(gemma([LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL])))
    places = {path.rsplit("/", 3)[0] for path in found if path.endswith("q_proj/weight")}
    assert places == {"layers/0/0", "layers/0/1", "layers/1/0"}
    assert found["layers/0/1/self_attn/k_norm/weight"] == (2, 6)
    assert found["layers/1/0/post_feedforward_layernorm/weight"] == (1, 20)
    assert found["layers/0/0/pre_feedforward_layernorm/weight"] == (2, 20)
    assert "lm_head/weight" not in found


@pytest.mark.parametrize(
    ("fields", "biased"),
    [
        ({"qkv_bias": True}, {"q_proj": 18, "k_proj": 6, "v_proj": 6}),
        ({"output_bias": True}, {"o_proj": 20}),
        ({"mlp_bias": True}, {"gate_proj": 28, "up_proj": 28, "down_proj": 20}),
    ],
)
def test_biases_are_where_the_config_says(fields, biased):
    found = paths(abstract_params(llama(**fields)))
    assert {path.split("/")[-2]: shape for path, shape in found.items() if path.endswith("bias")} == {
        name: (2, size) for name, size in biased.items()
    }


def test_dtypes_and_counts():
    config = gemma()
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(config, jnp.bfloat16))} == {jnp.dtype("bfloat16")}
    assert config.num_layers == 5
    assert config.linear_shapes().keys() == {
        f"{part}/{name}"
        for part, block in block_shapes(config, LOCAL).items()
        if part in ("self_attn", "mlp")
        for name in block
        if "norm" not in name
    }


def test_a_config_is_compared_by_value():
    assert gemma() == gemma() and hash(gemma()) == hash(gemma())
    assert gemma() != gemma(hidden_size=22) and llama([PLAIN]) != llama([LOCAL])
