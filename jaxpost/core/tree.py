"""Paths of a tree in the project's spelling."""

from collections.abc import Sequence
from typing import Any


def path_string(keys: Sequence[Any]) -> str:
    """A jax tree path as text, `layers/0/0/mlp/up_proj/weight`; a key that is a path of its own joins in."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in keys)
