"""Binding and merging: on our trees and on any other, once and twice, without touching what is stored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import GLOBAL, LOCAL, adapted, documents, gemma, llama, params
from numerics import assert_near, assert_same_bits, host
from tolerances import FLOAT32_CPU

from jaxpost import adapters
from jaxpost.adapters import Adapters, LoraWeight, bind, delta_norms, merge
from jaxpost.adapters.targets import matrices
from jaxpost.models.decoder import forward
from jaxpost.weights import linear

LLAMA, GEMMA = llama(qkv_bias=True), gemma([LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL])
run = jax.jit(forward, static_argnums=0)


def tokens(config, rows=2, length=9):
    return np.stack(documents(config, [length] * rows, seed=5))


def merged64(tree, found):
    """W + scale B A of every adapted matrix, in float64."""
    out = {}
    for path, f in found.factors.items():
        gain = np.asarray(found.spec.scale[path], np.float64)[..., None] * np.asarray(found.spec.rank_mask[path])
        a, b = (np.asarray(f[name], np.float64) for name in ("lora_A", "lora_B"))
        out[path] = np.asarray(matrices(tree)[path], np.float64) + (b * gain[..., None, :]) @ a
    return out


@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma"])
def test_L2_merged_is_unmerged(config):
    """Logits of base plus adapter and of the folded weights; the folded weights are W + alpha / r B A.

    Mutation: jaxpost/adapters/bind.py: `fold = lambda base, f=f, gain=gain: LoraWeight(base, f["lora_A"], f["lora_B"], gain)` -> `fold = lambda base, f=f, gain=gain: LoraWeight(base, f["lora_A"], f["lora_B"], gain * 0 + 1)`
    """  # noqa: E501
    tree = params(config)
    found = adapted(tree, rank=3, alpha=7.0)
    merged = merge(tree, found)
    logits = run(config, bind(tree, found), tokens(config))
    assert_near(run(config, merged, tokens(config)), logits, FLOAT32_CPU["same_maths"])
    assert not np.allclose(logits, run(config, tree, tokens(config)), atol=1e-2)
    want = merged64(tree, found)
    assert_near({path: matrices(merged)[path] for path in want}, want, FLOAT32_CPU["same_maths"])


def test_what_is_not_targeted_is_shared():
    tree = params(LLAMA)
    merged = merge(tree, adapted(tree, targets="q_proj"))
    same = jax.tree.map(lambda a, b: a is b, merged, tree)
    changed = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(same) if not leaf}
    assert changed == {"['layers'][0][0]['self_attn']['q_proj']['weight']"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_merging_keeps_structure_and_dtypes(dtype):
    tree = params(GEMMA, dtype=dtype)
    merged = merge(tree, adapted(tree))
    assert jax.tree.structure(merged) == jax.tree.structure(tree)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(dtype)}


def test_L17_the_stored_base_is_never_touched():
    """A hundred bindings and merges later every leaf is the same object with the same bits.

    Mutation: jaxpost/adapters/bind.py: `return {**tree, "weight": change(tree["weight"])}` -> `return tree.update(weight=change(tree["weight"])) or tree`
    """  # noqa: E501
    tree = params(llama(), dtype=jnp.bfloat16)
    before, leaves = host(tree), jax.tree.leaves(tree)
    found = adapted(tree, targets="q_proj,down_proj")
    for _ in range(100):
        merge(tree, found)
        bind(tree, found)
    assert all(a is b for a, b in zip(jax.tree.leaves(tree), leaves, strict=True))
    assert_same_bits(host(tree), before)


def test_L17_why_the_base_is_never_touched():
    """Merging and unmerging in place drifts in bfloat16: after 100 rounds a fifth of the weights are other numbers."""
    tree = {"w": {"weight": params(llama(), dtype=jnp.bfloat16)["layers"][0][0]["mlp"]["up_proj"]["weight"][0]}}
    found = adapted(tree)
    negative = Adapters(found.factors, dataclasses.replace(found.spec, scale={"w": -found.spec.scale["w"]}))
    drifted = tree
    for _ in range(100):
        drifted = merge(merge(drifted, found), negative)
    moved = np.mean(np.asarray(drifted["w"]["weight"] != tree["w"]["weight"]))
    assert moved > 0.2


def test_binding_twice_stacks():
    """Two adapters add up, in either order, and merge one after the other."""
    config = gemma([LOCAL, LOCAL])
    tree = params(config)
    first, second = adapted(tree, seed=1, rank=2), adapted(tree, seed=2, rank=3, targets="q_proj,embed_tokens")
    both = bind(bind(tree, first), second)
    assert isinstance(both["layers"][0][0]["self_attn"]["q_proj"]["weight"].base, LoraWeight)
    logits = run(config, both, tokens(config))
    folded = run(config, merge(merge(tree, first), second), tokens(config))
    assert_near(logits, folded, FLOAT32_CPU["same_maths"])
    assert_near(logits, run(config, bind(bind(tree, second), first), tokens(config)), FLOAT32_CPU["same_maths"])
    assert not np.allclose(logits, run(config, bind(tree, first), tokens(config)), atol=1e-2)


def test_no_adapter_gives_the_tree_back():
    tree = params(LLAMA)
    assert bind(tree, None) is tree


def test_layers_that_are_not_targeted_are_not_changed_and_get_no_gradient():
    """Rank mask 0 in a stack: the layer's weights, count and gradient stay out of it, whatever its factors hold.

    Mutation: jaxpost/adapters/bind.py: `gain = spec.scale[path][..., None] * spec.rank_mask[path]` -> `gain = spec.scale[path][..., None] + 0 * spec.rank_mask[path]`
    """  # noqa: E501
    tree = params(LLAMA)
    found = adapters.init(jax.random.key(0), tree, rank=3, targets="re:.*layers\\.1\\..*")
    noise = lambda x: jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), jnp.float32)  # noqa: E731
    found = Adapters(
        jax.tree.map(noise, found.factors),
        dataclasses.replace(found.spec, scale=jax.tree.map(jnp.ones_like, found.spec.scale)),
    )
    merged = merge(tree, found)
    for path, weight in matrices(merged).items():
        if path.startswith("layers/"):
            assert_same_bits(weight[0], matrices(tree)[path][0])
            assert not np.array_equal(weight[1], matrices(tree)[path][1])
    value = lambda factors: forward(LLAMA, bind(tree, Adapters(factors, found.spec)), jnp.asarray(tokens(LLAMA))).var()  # noqa: E731
    for leaf in jax.tree.leaves(jax.jit(jax.grad(value))(found.factors)):
        assert not np.any(leaf[0]) and np.any(leaf[1])
    norms = delta_norms(found)
    assert all(n[0] == 0 and n[1] > 0 for n in norms.values())


@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma"])
def test_norms_of_the_change(config):
    tree = params(config)
    found = adapted(tree, rank=3, alpha=5.0)
    zero = jax.tree.map(jnp.zeros_like, tree)
    want = {path: np.sqrt((w**2).sum((-1, -2))) for path, w in merged64(zero, found).items()}
    assert_near(delta_norms(found), want, FLOAT32_CPU["same_maths"])


MLP = {
    "hidden": [{"weight": jnp.ones((5, 3)), "bias": jnp.ones(5)}, {"weight": jnp.ones((5, 5)), "bias": jnp.ones(5)}],
    "out": jnp.ones((2, 5)),
}


def mlp(tree, x):
    """A network that the library knows nothing of, but for `linear`."""
    for layer in tree["hidden"]:
        x = jnp.tanh(linear(x, layer["weight"]) + layer["bias"][None])
    return linear(x, tree["out"])


def test_any_tree_and_any_function():
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), MLP)
    x = jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)
    found = adapted(tree, rank=2)
    assert sorted(found.factors) == ["hidden/0", "hidden/1", "out"]
    assert adapters.num_parameters(found) == 2 * (8 + 10 + 7)
    assert_near(mlp(bind(tree, found), x), mlp(merge(tree, found), x), FLOAT32_CPU["same_maths"])
    assert not np.allclose(mlp(tree, x), mlp(bind(tree, found), x), atol=1e-2)
    assert isinstance(merge(tree, found)["hidden"], list)


def masks(bound, path):
    """Which of 64 inputs each layer of a stack keeps."""
    weight = matrices(bound)[path]
    layers = range(weight.gain.shape[0])
    x = jnp.ones((16, weight.shape[-1]))
    return [np.asarray(jax.tree.map(lambda leaf, i=i: leaf[i], weight)._drop(x)) > 0 for i in layers]


def test_L16_every_layer_and_module_has_its_own_mask():
    """Mutation: jaxpost/adapters/bind.py: `jax.random.fold_in(dropout_key, index)` -> `jax.random.fold_in(dropout_key, 0)`
    Mutation: jaxpost/adapters/bind.py: `key = jax.random.split(jax.random.fold_in(dropout_key, index), spec.scale[path].shape)` -> `key = jnp.broadcast_to(jax.random.fold_in(dropout_key, index), spec.scale[path].shape)`
    """  # noqa: E501
    tree = params(GEMMA)
    found = adapted(tree, dropout=0.5)
    bound = bind(tree, found, jax.random.key(0))
    wide = [
        path for path in found.factors if path.split("/")[-1] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    ]
    every = [mask for path in wide for mask in masks(bound, path)]
    assert len(every) == 5 * 5
    assert len({mask.tobytes() for mask in every}) == len(every)
    again = [mask for path in wide for mask in masks(bind(tree, found, jax.random.key(0)), path)]
    other = [mask for path in wide for mask in masks(bind(tree, found, jax.random.key(1)), path)]
    assert all(np.array_equal(a, b) for a, b in zip(every, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(every, other, strict=True))


def test_L16_without_a_key_or_a_rate_nothing_is_dropped():
    """Mutation: jaxpost/adapters/bind.py: `if dropout_key is not None and spec.dropout > 0.0:` -> `if True:`"""
    tree = params(llama())
    for bound in (bind(tree, adapted(tree, dropout=0.5)), bind(tree, adapted(tree), jax.random.key(0))):
        weights = [w for w in matrices(bound).values() if isinstance(w, LoraWeight)]
        assert len(weights) == 7 and all(w.key is None and w.dropout == 0.0 for w in weights)
