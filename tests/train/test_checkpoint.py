"""Checkpoints: bit for bit, whole or not there, and what broke later is told."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost.core.errors import InputError
from jaxpost.core.files import is_leftover, write_json
from jaxpost.sharding import make_mesh, tree_shardings
from jaxpost.train import adamw, checkpoint, init_state
from jaxpost.train.checkpoint import (
    Counters,
    Meta,
    damage,
    discard_after,
    newest_whole,
    prune,
    read_meta,
    release,
    restore,
    save_checkpoint,
    shapes_of,
    steps_of,
)

META = Meta(
    step=0,
    counters=Counters(num_tokens=7, best_step=2, best_loss=0.1, waited=3),
    fingerprints={"data": "d", "base": "b"},
    config={"steps": 5, "lora": {"rank": 4}, "data": ["a", "b"], "mesh": None},
    micro_batch_size=2,
    versions={"jax": jax.__version__},
)


def random_state(seed, width=6):
    """A state as after some steps: every number differs from what `init_state` gives."""
    rng = np.random.default_rng(seed)
    factors = {
        "layers/0/0/self_attn/q_proj": {"lora_A": jnp.zeros((2, 4, 8)), "lora_B": jnp.zeros((2, width, 4))},
        "b": jnp.zeros(3),
    }
    state = init_state(factors, adamw(1e-3), seed)
    fill = lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype)  # noqa: E731
    floats = lambda tree: jax.tree.map(lambda x: fill(x) if jnp.issubdtype(x.dtype, jnp.floating) else x + 3, tree)  # noqa: E731
    return dataclasses.replace(
        state,
        step=jnp.int32(5 + seed),
        updates=jnp.int32(4),
        skipped=jnp.int32(1),
        trainable=floats(state.trainable),
        opt_state=floats(state.opt_state),
    )


def bits(state):
    plain = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return [(jax.tree_util.keystr(path), np.asarray(x).tobytes()) for path, x in jax.tree.leaves_with_path(plain)]


def save(root, step, state=None, **changes):
    state = random_state(0) if state is None else state
    return save_checkpoint(root, state, dataclasses.replace(META, step=step, **changes))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("like", ["state", "shapes"])
def test_R4_a_state_comes_back_bit_for_bit(tmp_path, seed, like):
    """Weights, moments, counts and key; the metadata too. The state that is given serves for its shapes alone.

    Mutation: jaxpost/train/checkpoint.py: `"key": jax.random.wrap_key_data(plain["key"]` -> `"key": jax.random.wrap_key_data(plain["key"] * 0`
    """  # noqa: E501
    state = random_state(seed)
    folder = save(tmp_path, 5, state)
    other = random_state(seed + 1)
    found = restore(folder, release(other) if like == "shapes" else other)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert bits(found) == bits(state)
    assert found.key.dtype == state.key.dtype
    assert read_meta(folder) == dataclasses.replace(META, step=5)
    assert folder == tmp_path / "5" and steps_of(tmp_path) == [5]


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    """What the next step does to the buffers reaches no file: nothing is still being written."""
    state = random_state(3)
    want = bits(state)
    folder = save(tmp_path, 1, state)
    jax.jit(lambda s: dataclasses.replace(s, trainable=jax.tree.map(jnp.zeros_like, s.trainable)), donate_argnums=0)(
        state
    )
    assert bits(restore(folder, random_state(3))) == want


def files(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def damaged(content: bytes, how: str, rng) -> bytes:
    at = int(rng.integers(len(content)))
    flipped = content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :]
    return {"bit": flipped, "cut": content[:at], "longer": content + b"\0", "gone": b""}[how]


@pytest.mark.parametrize("how", ["bit", "cut", "gone", "longer"])
def test_R10_a_damaged_file_is_named_and_the_checkpoint_before_it_is_used(tmp_path, how):
    """Each file in turn, at a random place; in the table of arrays and in the manifest as well.

    Mutation: jaxpost/train/checkpoint.py: `        write_json(aside / ARRAYS, _arrays(state))` -> `        aside.joinpath("..", ARRAYS).write_text("")`
    Mutation: jaxpost/train/checkpoint.py: `if _seal(file)["sha256"] != digest:` -> `if False:`
    Mutation: jaxpost/train/checkpoint.py: `        if not file.is_file():` -> `        if False:`
    Mutation: jaxpost/train/checkpoint.py: `        wrong = damage(folder)` -> `        wrong = None`
    """  # noqa: E501
    save(tmp_path, 1)
    newest = save(tmp_path, 12)
    assert damage(newest) is None and newest_whole(tmp_path, pytest.fail) == newest
    rng = np.random.default_rng(0)
    for file in files(newest):
        before = file.read_bytes()
        file.write_bytes(damaged(before, how, rng))
        if how == "gone":
            file.unlink()
        lines = []
        assert newest_whole(tmp_path, lines.append) == tmp_path / "1"
        assert len(lines) == 1 and str(newest) in lines[0]
        # A bit of the manifest may be one of the checksum that it gives for another file.
        assert file.name in lines[0] or file == newest / "manifest.json"
        file.write_bytes(before)
    assert damage(newest) is None


def test_all_damaged_is_none_and_each_is_named(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "meta.json").unlink()
    lines = []
    assert newest_whole(tmp_path, lines.append) is None and len(lines) == 2
    assert newest_whole(tmp_path / "nothing", pytest.fail) is None


def test_the_newest_is_so_by_number_and_may_be_bounded(tmp_path):
    """Mutation: jaxpost/train/checkpoint.py: `if at_most is not None and step > at_most:` -> `if False:`"""
    for step in (9, 10, 2):
        save(tmp_path, step)
    (tmp_path / "notes").mkdir()
    (tmp_path / "11").write_text("a file")
    assert steps_of(tmp_path) == [2, 9, 10]
    want = [(None, "10"), (10, "10"), (9, "9"), (8, "2")]
    assert [newest_whole(tmp_path, pytest.fail, at_most=n).name for n, _ in want] == [name for _, name in want]
    assert newest_whole(tmp_path, pytest.fail, at_most=1) is None


def test_every_byte_of_the_manifest_counts(tmp_path):
    """One bit of each, and each length; what it does not name would be checked by nobody.

    Mutation: jaxpost/train/checkpoint.py: `    if (folder / MANIFEST).read_bytes() != json_text(manifest).encode():` -> `    if False:`
    Mutation: jaxpost/train/checkpoint.py: `    if missing := {META, ARRAYS} - sealed.keys():` -> `    if missing := set():`
    """  # noqa: E501
    folder = save(tmp_path, 1)
    path = folder / "manifest.json"
    before, rng = path.read_bytes(), np.random.default_rng(0)
    for at in range(len(before)):
        path.write_bytes(before[:at] + bytes([before[at] ^ (1 << int(rng.integers(8)))]) + before[at + 1 :])
        assert damage(folder) is not None, at
    for end in range(len(before)):
        path.write_bytes(before[:end])
        assert damage(folder) is not None, end
    for name in ("meta.json", "arrays.json"):
        files = json.loads(before)["files"]
        del files[name]
        write_json(path, {"files": files})
        assert damage(folder) == f"manifest.json names no {name}"


@pytest.mark.parametrize("moment", ["state", "meta.json", "arrays.json", "manifest.json", "rename"])
def test_R10_a_crash_inside_a_save_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, moment):
    """Whatever is reached of a save, no folder with a step's name is half; what is left over is hidden, then removed.

    Mutation: jaxpost/train/checkpoint.py: `with new_folder(folder) as aside:` -> `for aside in [folder.mkdir(parents=True) or folder]:`
    """  # noqa: E501
    save(tmp_path, 1)

    def crash(*_, **__):
        raise KeyboardInterrupt

    def write(path, value):
        return crash() if path.name == moment else write_json(path, value)

    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # a killed process tidies nothing up
    monkeypatch.setattr(checkpoint, "write_json", write)
    if moment == "state":
        monkeypatch.setattr(checkpoint, "_plain", crash)
    if moment == "rename":
        monkeypatch.setattr("jaxpost.core.files._publish", lambda source, target: source.is_dir() and crash())
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert steps_of(tmp_path) == [1] and damage(tmp_path / "1") is None
    assert [is_leftover(path.name) for path in tmp_path.iterdir() if path.name != "1"] == [True]
    discard_after(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
    save(tmp_path, 4, random_state(0))
    (tmp_path / "4" / "state" / "stray").write_text("x")
    folder = save(tmp_path, 4, random_state(1))
    assert bits(restore(folder, random_state(0))) == bits(random_state(1)) and damage(folder) is None
    assert not (folder / "state" / "stray").exists() and [p.name for p in tmp_path.iterdir()] == ["4"]


@pytest.mark.parametrize(
    ("limit", "with_best", "left"),
    [(1, False, [4]), (2, False, [3, 4]), (1, True, [4]), (2, True, [1, 3, 4]), (3, True, [1, 2, 3, 4])],
)
def test_only_the_newest_are_kept_and_their_best(tmp_path, limit, with_best, left):
    """Mutation: jaxpost/train/checkpoint.py: `set(steps[-limit:])` -> `set(steps[:limit])`
    Mutation: jaxpost/train/checkpoint.py: `kept |= {_best_of(root / str(step)) for step in kept}` -> `kept |= {_best_of(root / str(steps[-1]))}`
    """  # noqa: E501
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4)):
        save(tmp_path, step, counters=Counters(best_step=best, best_loss=1 / best))
    prune(tmp_path, limit=limit, with_best=with_best)
    assert steps_of(tmp_path) == left and len(list(tmp_path.iterdir())) == len(left)
    if limit > 1:
        (tmp_path / "4" / "meta.json").write_text("{}")  # the one before goes on, with its own best
        assert newest_whole(tmp_path, lambda line: None) == tmp_path / "3"
        prune(tmp_path, limit=limit, with_best=with_best)
        assert steps_of(tmp_path) == left


def test_later_steps_are_discarded(tmp_path):
    """And what a crash left; what somebody else keeps there stays, hidden or not.

    Mutation: jaxpost/train/checkpoint.py: `if found > step)` -> `if found > step + 100)`
    Mutation: jaxpost/train/checkpoint.py: `    remove_leftovers(root)` -> `    pass`
    """
    for name in ("3", "10", ".jaxpost-aside-0_k2j3ab", ".git", "notes"):
        (tmp_path / name / "inside").mkdir(parents=True)
    discard_after(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", "3", "notes"]
    discard_after(tmp_path / "nothing", 3)


@pytest.mark.parametrize("wrong", ["shape", "missing", "extra"])
def test_other_arrays_are_refused_by_name(tmp_path, wrong):
    """Mutation: jaxpost/train/checkpoint.py: `        if want.get(path) != got.get(path):` -> `        if False:`"""
    folder = save(tmp_path, 1)
    like = random_state(0, width=7 if wrong == "shape" else 6)
    if wrong != "shape":
        more = {} if wrong == "missing" else {"c": jnp.zeros(2)}
        kept = {k: v for k, v in like.trainable.items() if k != "b" or wrong == "extra"}
        like = dataclasses.replace(like, trainable={**kept, **more})
    name = {"shape": "lora_B as float32[2, 7, 4]", "missing": "trainable/b as nothing", "extra": "trainable/c"}[wrong]
    with pytest.raises(InputError, match=name.replace("[", r"\[")):
        restore(folder, like)


def test_R9_a_checkpoint_of_one_device_comes_back_on_a_mesh_and_the_other_way(tmp_path):
    """Each leaf lies as the run of now has it, with the same bits.

    Mutation: jaxpost/train/checkpoint.py: `jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)` -> `jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=None)`
    """  # noqa: E501
    mesh = make_mesh("data=2,tensor=2,fsdp=2")
    state = random_state(0, width=8)
    places = tree_shardings(state, mesh)
    on_mesh = jax.device_put(random_state(1, width=8), places)
    found = restore(save(tmp_path, 1, state), on_mesh)
    assert bits(found) == bits(state)
    factors = "layers/0/0/self_attn/q_proj"
    assert found.trainable[factors]["lora_B"].sharding == places.trainable[factors]["lora_B"]
    assert len(found.trainable[factors]["lora_B"].sharding.device_set) == 8
    back = restore(save(tmp_path, 2, found), random_state(1, width=8))
    assert bits(back) == bits(state) and len(back.trainable["b"].sharding.device_set) == 1


def test_a_manifest_lists_every_file_and_every_array(tmp_path):
    folder = save(tmp_path, 1)
    sealed = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(sealed) == {file.relative_to(folder).as_posix() for file in files(folder)} - {"manifest.json"}
    arrays = json.loads((folder / "arrays.json").read_text())
    assert arrays["trainable/b"] == "float32[3]" and arrays["key"].startswith("uint32[")
    assert len(arrays) == len(jax.tree.leaves(shapes_of(random_state(0))))
