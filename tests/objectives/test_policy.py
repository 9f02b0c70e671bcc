"""What is trained and what is frozen, made one parameter tree."""

import jax
from decoders import adapted, llama, params
from numerics import assert_same_bits

from jaxpost.adapters import LoraWeight, bind
from jaxpost.adapters.targets import matrices
from jaxpost.objectives import adapter_policy, full_policy

TREE = params(llama())
FOUND = adapted(TREE, dropout=0.5)
FROZEN = {"params": TREE, "spec": FOUND.spec}


def test_a_full_policy_is_the_trained_tree():
    assert full_policy(TREE, {}, None) is TREE
    assert full_policy(TREE, {}, jax.random.key(0)) is TREE


def test_an_adapter_policy_is_the_bound_tree():
    for key in (None, jax.random.key(0)):
        assert_same_bits(
            jax.tree.leaves(adapter_policy(FOUND.factors, FROZEN, None)), jax.tree.leaves(bind(TREE, FOUND, None))
        )
        bound = adapter_policy(FOUND.factors, FROZEN, key)
        adapted_weights = [w for w in matrices(bound).values() if isinstance(w, LoraWeight)]
        assert len(adapted_weights) == 7
        assert all((w.key is None) == (key is None) for w in adapted_weights)
