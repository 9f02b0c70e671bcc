"""Which matrices an adapter goes on: module paths of a tree, their Hugging Face names, and the ways to choose."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxpost.core.errors import InputError, suggestion
from jaxpost.core.tree import path_string
from jaxpost.stages import Stage, hf_names

NOT_LINEAR = ("norm", "embed", "lm_head")  # parts of names that "all-linear" leaves out


def matrices(params: Any) -> dict[str, Any]:
    """Every matrix (or stack of matrices) of a tree by module path; `.../q_proj/weight` is module `.../q_proj`.

    >>> list(matrices({"mlp": {"up": {"weight": jax.numpy.ones((3, 2)), "bias": jax.numpy.ones(3)}}}))
    ['mlp/up']
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: hasattr(x, "matmul")):
        names = path_string(path).split("/")
        if names[-1] == "bias" or "norm" in "/".join(names[-2:]) or len(leaf.shape) < 2:
            continue
        found["/".join(names[:-1] if names[-1] == "weight" else names)] = leaf
    return found


def stages_of(params: Mapping[str, Any]) -> tuple[Stage[int], ...]:
    """The stages as the shapes of `params["layers"]` tell them; kinds are positions in the period."""
    repeats = lambda period: jax.tree.leaves(period[0])[0].shape[0]  # noqa: E731
    return tuple(Stage(tuple(range(len(period))), repeats(period)) for period in params["layers"])


def select(params: Any, targets: str | tuple[str, ...]) -> dict[str, list[bool]]:
    """For each targeted module path, which layers of its stack are targeted.

    Args:
      targets: "all-linear" (every matrix but embeddings and output head); names joined by commas, each the end of a
        module name at a dot; or "re:PATTERN", matched against the full module name.

    Raises:
      InputError: a name or pattern that selects nothing.
    """
    stages = stages_of(params) if isinstance(params, Mapping) and "layers" in params else ()
    names = {path: hf_names(path, stages) for path in matrices(params)}
    chosen: dict[str, list[bool]] = {path: [False] * len(n) for path, n in names.items()}
    for target, matches in _matchers(targets):
        hits = {path: [matches(name) for name in n] for path, n in names.items()}
        if not any(any(h) for h in hits.values()):
            known = {path.split("/")[-1] for path in names}
            raise InputError(
                f"`lora.targets` {target!r} selects no matrix; the model has {', '.join(sorted(known))}."
                f"{suggestion(target, known)}"
            )
        chosen = {path: [a or b for a, b in zip(chosen[path], hits[path], strict=True)] for path in names}
    return {path: hit for path, hit in sorted(chosen.items()) if any(hit)}


def _matchers(targets: str | tuple[str, ...]) -> list[tuple[str, Callable[[str], bool]]]:
    if not isinstance(targets, str) and len(targets) == 1:
        targets = targets[0]
    if targets == "all-linear":
        return [("all-linear", lambda name: not any(part in name for part in NOT_LINEAR))]
    if isinstance(targets, str) and targets.startswith("re:"):
        try:
            pattern = re.compile(targets[3:])
        except re.error as error:
            raise InputError(f"`lora.targets` must be a valid pattern after `re:`; got {targets!r}: {error}.") from None
        return [(targets, lambda name: pattern.fullmatch(name) is not None)]
    listed = [t.strip() for t in (targets.split(",") if isinstance(targets, str) else targets)]
    if not listed or not all(listed):
        raise InputError(f"`lora.targets` must be all-linear, re:PATTERN or names joined by commas; got {targets!r}.")
    return [(t, lambda name, t=t: name == t or name.endswith("." + t)) for t in listed]
