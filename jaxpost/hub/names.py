"""Leaf paths of the parameter tree <-> tensor names of Hugging Face, with each leaf's place in its tensors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxpost.core.tree import path_string
from jaxpost.models.config import ModelConfig, abstract_params
from jaxpost.stages import hf_names

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


class Leaf(NamedTuple):
    """A leaf of the parameter tree and the tensors it is made of."""

    path: str  # layers/0/0/self_attn/q_proj/weight
    names: tuple[str, ...]  # one tensor for each layer of the stack; a single one where `stacked` is false
    shape: tuple[int, ...]  # of the leaf
    stacked: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.stacked else self.shape


def leaves(config: ModelConfig) -> tuple[list[Leaf], Any]:
    """Every leaf of the configuration's parameter tree in flattening order, and the tree's structure."""
    flat, structure = jax.tree_util.tree_flatten_with_path(abstract_params(config))
    found = []
    for keys, leaf in flat:
        path = path_string(keys)
        found.append(Leaf(path, hf_names(path, config.stages), leaf.shape, path.startswith("layers/")))
    return found, structure


def linear_paths(config: ModelConfig) -> list[str]:
    """Module paths of every linear layer of the blocks."""
    return [
        f"layers/{s}/{p}/{name}"
        for s, stage in enumerate(config.stages)
        for p in range(len(stage.kinds))
        for name in config.linear_shapes()
    ]


def linear_modules(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """[out, in] of every linear layer of the blocks, by its Hugging Face name."""
    return {
        module: config.linear_shapes()[path.split("/", 3)[3]]
        for path in linear_paths(config)
        for module in hf_names(path, config.stages)
    }


def in_file_order(found: Sequence[Leaf]) -> list[tuple[str, Leaf, int]]:
    """(tensor name, leaf, index in the stack): embedding, layers in order, norm, head."""

    def place(item: tuple[str, Leaf, int]) -> tuple[int, int]:
        name = item[0]
        if name.startswith("model.layers."):
            return (1, int(name.split(".")[2]))
        return (0, 0) if name == EMBEDDING else (3 if name == HEAD else 2, 0)

    return sorted(((name, leaf, r) for leaf in found for r, name in enumerate(leaf.names)), key=place)
