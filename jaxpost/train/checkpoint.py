"""Checkpoints of a run: the train state by Orbax, what it belongs to, and a checksum of every file.

`DIR/checkpoints/STEP/` holds `state/` (Orbax), `arrays.json`, `meta.json` and `manifest.json`. The folder is filled
under a hidden name, flushed to the disk and renamed, so a crash at any moment leaves it whole or not there; what broke
later, on the disk or on the way, the manifest's checksums tell.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxpost.core.errors import InputError, RunError
from jaxpost.core.files import json_text, new_folder, read_json, remove_folder, remove_leftovers, write_json
from jaxpost.core.tree import path_string
from jaxpost.train.state import TrainState

META, ARRAYS, MANIFEST = "meta.json", "arrays.json", "manifest.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """What the host counts over a run beside the train state.

    Attributes:
      num_tokens: tokens seen.
      best_step, best_loss: of the lowest `eval_loss` so far; None before the first evaluation.
      waited: evaluations in a row that were no better.
    """

    num_tokens: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    waited: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """What a checkpoint's state belongs to.

    Attributes:
      step: batches seen: the name of the checkpoint's folder.
      counters: of the host.
      fingerprints: "data", "base" and so on -> hash of the content that the state was trained on.
      config: the run's options as `run.yaml` has them.
      micro_batch_size: rows at a time, as chosen.
      versions: of the packages that made it.
    """

    step: int
    counters: Counters
    fingerprints: Mapping[str, str]
    config: Mapping[str, Any]
    micro_batch_size: int
    versions: Mapping[str, str]


def save_checkpoint(root: Path, state: TrainState, meta: Meta) -> Path:
    """Writes `root/STEP` and returns it when it is on the disk; one of the same step is replaced.

    The step after it may donate the state's buffers: nothing is still being copied then.

    Raises:
      RunError: it cannot be written; no half of it stays, nor does one of the same step.
    """
    import orbax.checkpoint as ocp  # slow to import

    folder = root.absolute() / str(meta.step)
    if folder.exists():
        remove_folder(folder)
    with new_folder(folder) as aside:
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as orbax:
                orbax.save(aside / "state", args=ocp.args.StandardSave(_plain(state)))
        except (OSError, ValueError) as error:  # Orbax's storage says of a full disk that a value is out of range
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"cannot write the checkpoint {folder}: {reason}. Free space or mend the disk, then go on with "
                "`--resume`."
            ) from error
        write_json(aside / META, dataclasses.asdict(meta))
        write_json(aside / ARRAYS, _arrays(state))
        files = {str(file.relative_to(aside).as_posix()): _seal(file) for file in _files(aside)}
        write_json(aside / MANIFEST, {"files": files})
    return folder


def read_meta(folder: Path) -> Meta:
    """The metadata of a whole checkpoint."""
    values = read_json(folder / META)
    try:
        return Meta(**{**values, "counters": Counters(**values["counters"])})
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{folder / META} must have the fields that this version writes; got others ({error}). Go on with the "
            "version of jaxpost that wrote it."
        ) from error


def restore(folder: Path, like: TrainState) -> TrainState:
    """The state of a whole checkpoint, bit for bit, laid out as `like`.

    Args:
      like: a state of the run, or its shapes (`shapes_of`): tells structure, dtypes and devices, which need not be
        those that wrote the checkpoint.

    Raises:
      InputError: the checkpoint holds other arrays.
    """
    import orbax.checkpoint as ocp  # slow to import

    _check_arrays(folder, want=_arrays(like), got=read_json(folder / ARRAYS))
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as orbax:
        arguments = ocp.args.StandardRestore(_plain(shapes_of(like)))
        plain = orbax.restore(folder.absolute() / "state", args=arguments)
    return TrainState(**{**plain, "key": jax.random.wrap_key_data(plain["key"], impl=_implementation(like.key))})


def shapes_of(state: TrainState) -> TrainState:
    """Shape, dtype and sharding of each leaf, without its values."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def release(state: TrainState) -> TrainState:
    """The shapes of a state whose arrays are given up: `restore` needs no room for two."""
    shapes = shapes_of(state)
    jax.tree.map(lambda leaf: leaf.delete(), state)
    return shapes


def steps_of(root: Path) -> list[int]:
    """Steps of which there is a checkpoint, whole or damaged, in order."""
    found = root.iterdir() if root.is_dir() else ()
    return sorted(int(folder.name) for folder in found if folder.name.isdecimal() and folder.is_dir())


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words; None if every byte is as it was written."""
    try:
        manifest = read_json(folder / MANIFEST)
        sealed = {str(name): (str(seal["sha256"]), int(seal["bytes"])) for name, seal in manifest["files"].items()}
    except (InputError, LookupError, TypeError, AttributeError, ValueError):
        return f"{MANIFEST} cannot be read"
    if (folder / MANIFEST).read_bytes() != json_text(manifest).encode():
        return f"{MANIFEST} is not as it was written"
    if missing := {META, ARRAYS} - sealed.keys():
        return f"{MANIFEST} names no {min(missing)}"
    for name, (digest, size) in sealed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _seal(file)["sha256"] != digest:
            return f"{name} has another checksum than was written"
    return None


def newest_whole(root: Path, say: Callable[[str], None], *, at_most: int | None = None) -> Path | None:
    """The newest checkpoint whose bytes are as they were written, None if there is none.

    Args:
      say: gets a line for each damaged one that is passed over.
      at_most: the last step that will do.
    """
    for step in reversed(steps_of(root)):
        if at_most is not None and step > at_most:
            continue
        folder = root / str(step)
        wrong = damage(folder)
        if wrong is None:
            return folder
        say(f"checkpoint {folder} is not used: {wrong}")
    return None


def prune(root: Path, *, limit: int, with_best: bool = False) -> None:
    """Removes all but the newest `limit` checkpoints and, `with_best`, those of the best steps that they name.

    The best of each is kept, not of the newest alone: if that is damaged, the run goes on from the one before it.
    """
    steps = steps_of(root)
    kept = set(steps[-limit:])
    if with_best:
        kept |= {_best_of(root / str(step)) for step in kept}
    for step in steps:
        if step not in kept:
            remove_folder(root / str(step))


def _best_of(folder: Path) -> int | None:
    """The best step that a checkpoint names; None where it cannot be read any more, which is no matter of now."""
    try:
        return read_meta(folder).counters.best_step
    except (InputError, LookupError, TypeError, AttributeError):
        return None


def discard_after(root: Path, step: int) -> None:
    """Removes checkpoints of later steps, which a run that goes on from `step` makes again, and half-written ones."""
    for later in (found for found in steps_of(root) if found > step):
        remove_folder(root / str(later))
    remove_leftovers(root)


def _plain(state: TrainState) -> dict[str, Any]:
    """The state's fields, the typed key as its numbers."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    key = state.key
    if isinstance(key, jax.ShapeDtypeStruct):
        numbers = jax.eval_shape(jax.random.key_data, key)
        return {**fields, "key": jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=key.sharding)}
    return {**fields, "key": jax.random.key_data(key)}


def _implementation(key: Any) -> str:
    return str(jax.random.key_impl(jnp.zeros((), key.dtype) if isinstance(key, jax.ShapeDtypeStruct) else key))


def _arrays(state: TrainState) -> dict[str, str]:
    """Path -> dtype and shape of each leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(_plain(shapes_of(state)))
    return {path_string(path): f"{leaf.dtype.name}{list(leaf.shape)}" for path, leaf in leaves}


def _check_arrays(folder: Path, *, want: Mapping[str, str], got: Mapping[str, str]) -> None:
    for path in sorted({*want, *got}):
        if want.get(path) != got.get(path):
            raise InputError(
                f"the checkpoint must hold what this run trains: {path} as {want.get(path, 'nothing')}; got "
                f"{got.get(path, 'nothing')} at {folder}. Give the options that the run was started with."
            )


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _seal(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}
