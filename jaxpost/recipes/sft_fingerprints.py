"""What a run of `jaxpost sft` is trained on, as hashes: base, adapter's description, rows, rows of the evaluation."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.hub.fingerprint import fingerprint
from jaxpost.recipes.sft_setup import Setup

# Option -> the fingerprint of what it names.
OPTIONS: Mapping[str, str] = {"model": "base", "adapter": "adapter", "data": "data", "eval_data": "eval_data"}


def fingerprints(setup: Setup) -> dict[str, str]:
    """The hashes by kind; none for what the run has not."""
    found = {"base": fingerprint(setup.model), "data": setup.data_fingerprint}
    if setup.spec is not None:
        found["adapter"] = of_tree(setup.spec)
    if setup.evaluation is not None:
        found["eval_data"] = setup.evaluation.fingerprint
    return found


def check(found: Mapping[str, str], saved: Mapping[str, str], folder: Path) -> None:
    """InputError unless base, adapter and rows are those that the checkpoint in `folder` was trained on."""
    for name, kind in OPTIONS.items():
        if found.get(kind) != saved.get(kind):
            raise InputError(
                f"`--{name.replace('_', '-')}` must hold what the run was started on; got other content than that of "
                f"{folder}. Give the same files, tokenizer and template."
            )


def of_tree(tree: Any) -> str:
    """SHA-256 of a small tree: its structure with the static parts, and each leaf's bytes."""
    leaves, structure = jax.tree.flatten(jax.device_get(tree))
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        digest.update(f"{leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
