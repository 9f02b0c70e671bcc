"""Which matrices are chosen: names, patterns, all linear layers; on our trees and on any other."""

import jax.numpy as jnp
import pytest
from decoders import GLOBAL, LOCAL, adapted, gemma, llama, params
from refusals import refused

from jaxpost.adapters import bind
from jaxpost.adapters.targets import matrices, select, stages_of
from jaxpost.stages import Stage, hf_names

LLAMA = params(llama(qkv_bias=True))
GEMMA = params(gemma([LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL]))  # layers 0 2 | 1 3 stacked, 4 by itself
MLP = {
    "hidden": [{"weight": jnp.ones((5, 3)), "bias": jnp.ones(5)}, {"weight": jnp.ones((5, 5)), "bias": jnp.ones(5)}],
    "out": jnp.ones((2, 5)),
    "layer_norm": {"weight": jnp.ones((1, 5))},
    "table_embed": {"weight": jnp.ones((9, 5))},
}
ALL = ["down_proj", "gate_proj", "up_proj", "k_proj", "o_proj", "q_proj", "v_proj"]


def chosen(tree, targets):
    """Hugging Face names of the chosen layers."""
    stages = stages_of(tree) if "layers" in tree else ()
    hits = select(tree, targets)
    return sorted(
        name for path, hit in hits.items() for name, on in zip(hf_names(path, stages), hit, strict=True) if on
    )


def test_matrices_are_found_without_norms_and_biases():
    found = matrices(LLAMA)
    assert sorted(path.split("/")[-1] for path in found) == sorted(["embed_tokens", "lm_head", *ALL])
    assert sorted(matrices(MLP)) == ["hidden/0", "hidden/1", "out", "table_embed"]


def test_L11_all_linear_leaves_out_embeddings_and_head():
    """Mutation: jaxpost/adapters/targets.py: `NOT_LINEAR = ("norm", "embed", "lm_head")` -> `NOT_LINEAR = ("norm", "lm_head")`"""  # noqa: E501
    assert {name.split(".")[-1] for name in chosen(LLAMA, "all-linear")} == set(ALL)
    assert len(chosen(LLAMA, "all-linear")) == 2 * 7
    assert len(chosen(GEMMA, "all-linear")) == 5 * 7
    assert chosen(MLP, "all-linear") == ["hidden.0", "hidden.1", "out"]


@pytest.mark.parametrize(
    ("targets", "want"),
    [
        ("q_proj", [f"model.layers.{i}.self_attn.q_proj" for i in range(5)]),
        ("layers.1.self_attn.q_proj", ["model.layers.1.self_attn.q_proj"]),
        ("self_attn.q_proj, down_proj", None),
        (("self_attn.q_proj", "down_proj"), None),
        ("re:model\\.layers\\.(0|4)\\.mlp\\.up_proj", ["model.layers.0.mlp.up_proj", "model.layers.4.mlp.up_proj"]),
        (("re:.*layers\\.3\\..*k_proj",), ["model.layers.3.self_attn.k_proj"]),
        ("embed_tokens", ["model.embed_tokens"]),
        (("all-linear",), None),
    ],
)
def test_names_and_patterns(targets, want):
    both = [f"model.layers.{i}.{part}" for i in range(5) for part in ("mlp.down_proj", "self_attn.q_proj")]
    want = want or (sorted(both) if "down_proj" in str(targets) else chosen(GEMMA, "all-linear"))
    assert chosen(GEMMA, targets) == want


def test_a_name_is_a_suffix_at_a_dot():
    """`layers.1.q` is no suffix of `layers.11.q`, and `proj` none of `q_proj`."""
    deep = params(llama(llama().stages[0].kinds * 12))
    assert chosen(deep, "1.self_attn.q_proj") == ["model.layers.1.self_attn.q_proj"]
    refused(lambda: select(deep, "proj"), "`lora.targets`", "'proj'")


def test_a_pattern_must_match_the_whole_name():
    refused(lambda: select(LLAMA, "re:q_proj"), "`lora.targets`", "re:q_proj")
    assert len(chosen(LLAMA, "re:.*q_proj")) == 2


@pytest.mark.parametrize(
    ("targets", "mentions"),
    [
        ("q_proj,v_prj", ["v_prj", "v_proj"]),
        (("q_proj", "nothing"), ["'nothing'"]),
        ("q_proj,", ["joined by commas", "q_proj,"]),
        ("", ["`lora.targets`"]),
        ((), ["`lora.targets`"]),
        ("re:(", ["valid pattern", "re:("]),
        ("re:nothing", ["re:nothing"]),
    ],
)
def test_what_selects_nothing_is_refused(targets, mentions):
    refused(lambda: select(LLAMA, targets), "`lora.targets`", *mentions)


def test_stages_are_read_off_the_shapes():
    assert stages_of(GEMMA) == (Stage((0, 1), 2), Stage((0,), 1))
    assert hf_names("layers/0/1/mlp/up_proj", stages_of(GEMMA)) == (
        "model.layers.1.mlp.up_proj",
        "model.layers.3.mlp.up_proj",
    )
    assert hf_names("embed_tokens", stages_of(GEMMA)) == ("model.embed_tokens",)
    assert hf_names("lm_head", stages_of(GEMMA)) == ("lm_head",)


def test_a_bound_tree_has_the_same_matrices():
    """So a second adapter can be put on the first."""
    bound = bind(LLAMA, adapted(LLAMA))
    assert {path: w.shape for path, w in matrices(bound).items()} == {p: w.shape for p, w in matrices(LLAMA).items()}
    assert stages_of(bound) == stages_of(LLAMA)
    assert select(bound, "all-linear") == select(LLAMA, "all-linear")
