"""Leaf paths of the parameter tree <-> tensor names of Hugging Face, with each leaf's place in its tensors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxpost.models.config import ModelConfig, abstract_params
from jaxpost.stages import Stage, layers_of

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


def tensor_names(path: str, stages: Sequence[Stage]) -> tuple[str, ...]:
    """The Hugging Face names of a leaf or module path, in stack order.

    >>> tensor_names("layers/0/1/mlp/up_proj/weight", (Stage(("L", "G"), 2),))
    ('model.layers.1.mlp.up_proj.weight', 'model.layers.3.mlp.up_proj.weight')
    >>> tensor_names("norm/weight", ())
    ('model.norm.weight',)
    """
    root, *rest = path.split("/")
    if root == "layers":
        stage, position, *rest = rest
        return tuple(f"model.layers.{i}.{'.'.join(rest)}" for i in layers_of(stages, int(stage), int(position)))
    prefix = "" if root == "lm_head" else "model."
    return (prefix + ".".join([root, *rest]),)


def leaves(config: ModelConfig) -> tuple[list[Leaf], Any]:
    """Every leaf of the configuration's parameter tree in flattening order, and the tree's structure."""
    flat, structure = jax.tree_util.tree_flatten_with_path(abstract_params(config))
    found = []
    for keys, leaf in flat:
        path = path_string(keys)
        found.append(Leaf(path, tensor_names(path, config.stages), leaf.shape, path.startswith("layers/")))
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
        for module in tensor_names(path, config.stages)
    }


def path_string(keys: Sequence[Any]) -> str:
    """A jax tree path in the project's spelling, `layers/0/0/mlp/up_proj/weight`."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in keys)


def in_file_order(found: Sequence[Leaf]) -> list[tuple[str, Leaf, int]]:
    """(tensor name, leaf, index in the stack): embedding, layers in order, norm, head."""

    def place(item: tuple[str, Leaf, int]) -> tuple[int, int]:
        name = item[0]
        if name.startswith("model.layers."):
            return (1, int(name.split(".")[2]))
        return (0, 0) if name == EMBEDDING else (3 if name == HEAD else 2, 0)

    return sorted(((name, leaf, r) for leaf in found for r, name in enumerate(leaf.names)), key=place)
