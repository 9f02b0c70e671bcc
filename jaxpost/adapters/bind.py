"""Putting adapters on a parameter tree, and folding them in."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxpost.adapters.lora import LoraWeight
from jaxpost.adapters.types import Adapters


def bind(params: Any, adapters: Adapters | None, dropout_key: Array | None = None) -> Any:
    """The tree with each adapted weight replaced by base plus adapter; goes wherever `params` go.

    Args:
      params: a parameter tree, or one on which another adapter is bound already: they stack.
      adapters: None gives `params` back.
      dropout_key: a PRNG key turns the adapter's dropout on; None is evaluation and the reference. Adapters that stack
        need a key each, or they drop the same inputs.
    """
    if adapters is None:
        return params
    spec = adapters.spec
    for index, (path, f) in enumerate(adapters.factors.items()):
        gain = spec.scale[path][..., None] * spec.rank_mask[path]
        key = None
        if dropout_key is not None and spec.dropout > 0.0:
            # Every layer and module its own key: remat replays it, and no two masks are the same.
            key = jax.random.split(jax.random.fold_in(dropout_key, index), spec.scale[path].shape)
        wrap = lambda base, f=f, gain=gain, key=key: LoraWeight(  # noqa: E731
            base, f["lora_A"], f["lora_B"], gain, key, spec.dropout if key is not None else 0.0
        )
        params = _replace(params, path.split("/"), wrap)
    return params


def merge(params: Any, adapters: Adapters) -> Any:
    """The tree with the adapter folded into the weights, W + scale B A, each in the base's dtype; `params` stays."""
    for path, f in adapters.factors.items():
        gain = adapters.spec.scale[path][..., None] * adapters.spec.rank_mask[path]
        fold = lambda base, f=f, gain=gain: LoraWeight(base, f["lora_A"], f["lora_B"], gain).materialize(base.dtype)  # noqa: E731
        params = _replace(params, path.split("/"), fold)
    return params


def _replace(tree: Any, steps: list[str], change: Any) -> Any:
    """A copy of the tree, shared but for the way to one weight, which becomes `change(weight)`."""
    if not steps:
        if isinstance(tree, Mapping) and "weight" in tree:
            return {**tree, "weight": change(tree["weight"])}
        return change(tree)
    if isinstance(tree, Mapping):
        return {**tree, steps[0]: _replace(tree[steps[0]], steps[1:], change)}
    at = int(steps[0])
    return type(tree)(_replace(child, steps[1:], change) if i == at else child for i, child in enumerate(tree))


def delta_norms(adapters: Adapters) -> dict[str, Array]:
    """Frobenius norm of scale B A for each layer of each adapted stack, from the small Gram matrices.

    ||B diag(g) A||^2 = trace(diag(g) B^T B diag(g) A A^T), so no [out, in] matrix is made.
    """
    norms = {}
    for path, f in adapters.factors.items():
        gain = adapters.spec.scale[path][..., None] * adapters.spec.rank_mask[path]
        b = f["lora_B"] * gain[..., None, :]
        gram_a = jnp.einsum("...ri,...si->...rs", f["lora_A"], f["lora_A"])
        gram_b = jnp.einsum("...or,...os->...rs", b, b)
        norms[path] = jnp.sqrt(jnp.maximum(jnp.einsum("...rs,...rs->...", gram_a, gram_b), 0.0))
    return norms
