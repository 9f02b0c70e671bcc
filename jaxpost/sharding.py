"""The mesh, and the one table that says how every array lies on it.

Axes: `data` (batch only), `fsdp` (batch, and one axis of each matrix), `tensor` (the other axis of each matrix).
XLA does the communication; nothing here sends a byte.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost.core.errors import InputError, suggestion
from jaxpost.core.tree import path_string

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Mesh axes of a matrix [out, in], by the name of its module; everything else is replicated.
MATRIX_AXES: Mapping[str, tuple[str, str]] = {
    "q_proj": ("tensor", "fsdp"),
    "k_proj": ("tensor", "fsdp"),
    "v_proj": ("tensor", "fsdp"),
    "gate_proj": ("tensor", "fsdp"),
    "up_proj": ("tensor", "fsdp"),
    "o_proj": ("fsdp", "tensor"),
    "down_proj": ("fsdp", "tensor"),
    "embed_tokens": ("tensor", "fsdp"),
    "lm_head": ("tensor", "fsdp"),
}
# Axes of a bias or a LoRA factor follow the matrix they belong to: which of its two axes each of theirs is.
MEMBER_AXES: Mapping[str, tuple[int | None, ...]] = {
    "weight": (0, 1),
    "bias": (0,),
    "lora_A": (None, 1),
    "lora_B": (0, None),
}


def make_mesh(shape: str | Sequence[int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the named shape: `"data=2,fsdp=4"` or (2, 4, 1); None puts every device on `fsdp`.

    Raises:
      InputError: an unknown axis, or a shape whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _parse_shape(shape, len(devices)) if shape is None or isinstance(shape, str) else tuple(shape)
    if len(sizes) != len(AXES) or int(np.prod(sizes)) != len(devices):
        raise InputError(f"`mesh` (data, fsdp, tensor) must multiply to the {len(devices)} devices; got {sizes}.")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def _parse_shape(text: str | None, num_devices: int) -> tuple[int, ...]:
    if text is None:
        return (1, num_devices, 1)
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES:
            raise InputError(f"`mesh` knows the axes data, fsdp, tensor; got {name!r}.{suggestion(name, AXES)}")
        if not size.isdecimal() or int(size) < 1:
            raise InputError(f"`mesh` axis {name} must be a positive number; got {size!r}.")
        if name in sizes:
            raise InputError(f"`mesh` must name each axis once; got {name} twice in {text!r}.")
        sizes[name] = int(size)
    return tuple(sizes.get(name, 1) for name in AXES)


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of a batch leaf whose axis `leading` counts rows."""
    return NamedSharding(mesh, P(*[None] * leading, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, P())


def tree_shardings(tree: Any, mesh: Mesh, num_kv_heads: int | None = None, num_heads: int | None = None) -> Any:
    """A NamedSharding per leaf of a tree of parameters, adapters or optimizer state, by the names in its path.

    A mesh axis that does not divide the array's axis is dropped for that array (`dropped_axes` lists them); attention
    is not cut along `tensor` where a device would hold a part of a head.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        names = path_string(path).split("/")
        return NamedSharding(mesh, leaf_spec(names, tuple(leaf.shape), mesh, num_kv_heads, num_heads))

    return jax.tree_util.tree_map_with_path(place, tree)


def dropped_axes(tree: Any, mesh: Mesh, num_kv_heads: int | None = None, num_heads: int | None = None) -> list[str]:
    """The mesh axes that some weight is not cut along although the table says so, as `k_proj/weight: tensor`."""
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = path_string(path).split("/")
        spec = leaf_spec(names, tuple(leaf.shape), mesh, num_kv_heads, num_heads)
        missing = [a for a in _table_axes(names, len(leaf.shape)) if a and a not in spec]
        found |= {f"{'/'.join(names[-2:])}: {axis}" for axis in missing}
    return sorted(found)


def leaf_spec(
    names: Sequence[str],
    shape: tuple[int, ...],
    mesh: Mesh,
    num_kv_heads: int | None = None,
    num_heads: int | None = None,
) -> P:
    """The PartitionSpec of one array, named by the steps of its path; leading stack axes are never cut.

    >>> mesh = make_mesh("data=1", jax.devices()[:1])
    >>> tuple(leaf_spec(["layers", "0", "0", "self_attn", "q_proj", "weight"], (4, 8, 8), mesh))
    (None, 'tensor', 'fsdp')
    """
    axes = _table_axes(names, len(shape))
    heads = {"q_proj": num_heads, "o_proj": num_heads, "k_proj": num_kv_heads, "v_proj": num_kv_heads}
    whole = next((heads[n] for n in reversed(names) if n in heads), None)
    if whole and whole % mesh.shape["tensor"]:
        axes = [None if axis == "tensor" else axis for axis in axes]
    if not axes:
        return P()
    sizes = shape[len(shape) - len(axes) :]
    axes = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, sizes, strict=True)]
    return P(*[None] * (len(shape) - len(axes)), *axes)


def _table_axes(names: Sequence[str], rank: int) -> list[str | None]:
    """What the tables say of an array's last axes; nothing for what they do not name."""
    module = next((n for n in reversed(names) if n in MATRIX_AXES), None)
    member = next((n for n in reversed(names) if n in MEMBER_AXES), None)
    if module is None or member is None or rank < len(MEMBER_AXES[member]):
        return []
    return [None if i is None else MATRIX_AXES[module][i] for i in MEMBER_AXES[member]]


def _mesh() -> Any:
    """The mesh in force (`jax.set_mesh`) if it is one of ours, else None: then nothing here constrains."""
    mesh = jax.sharding.get_abstract_mesh()
    missing = [axis for axis in AXES if axis not in mesh.shape]
    if 0 < len(missing) < len(AXES):
        raise InputError(
            f"a mesh must have the axes {', '.join(AXES)}; got {', '.join(mesh.shape)}. Make it with `make_mesh`: an "
            "axis may have size 1."
        )
    return None if missing else mesh


def constrain_batch(x: jax.Array) -> jax.Array:
    """Pin x [rows, ...] to the batch's axes of the mesh in force (`jax.set_mesh`); without a mesh, x itself.

    Rows that the axes do not divide stay as XLA places them.
    """
    if _mesh() is None or x.shape[0] % batch_shards():
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH_AXES))


def gather_table(w: Any) -> Any:
    """A table [V, D] whole along `fsdp`, still cut along `tensor`, for a lookup or a loop that uses it many times.

    Rows of the batch lie on `fsdp` too: without this XLA replicates what is looked up, and a loop over chunks of
    tokens would gather the table once a chunk. Without a mesh, or for a weight that is no plain array, `w` itself.
    """
    mesh = _mesh()
    if mesh is None or not isinstance(w, jax.Array):
        return w
    return jax.lax.with_sharding_constraint(w, P("tensor" if w.shape[0] % mesh.shape["tensor"] == 0 else None))


def batch_shards() -> int:
    """Into how many parts the mesh in force cuts the batch's rows; 1 without a mesh."""
    mesh = _mesh()
    return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
