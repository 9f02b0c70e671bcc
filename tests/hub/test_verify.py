"""Folders read back: every tensor bit for bit, and the names of those that changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

import jaxpost
from jaxpost.core.errors import RunError
from jaxpost.hub.verify import changed_tensors, check_written


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_saved_is_what_is_read(tmp_path, family, dtype):
    model = jaxpost.load(tiny.make(tmp_path / "base", family))
    jaxpost.save(tmp_path / "out", model, dtype=dtype)
    check_written(tmp_path / "out", model.config, model.params)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.2.mlp.up_proj.weight"])
def test_one_wrong_bit_is_found(tmp_path, name):
    """Mutation: jaxpost/hub/verify.py: `if not _same_bits(stored[name].read()` -> `if False and not _same_bits(stored[name].read()`
    Mutation: jaxpost/hub/verify.py: `want = np.asarray(array[row] if leaf.stacked else array)` -> `want = np.asarray(array[0] if leaf.stacked else array)`
    """  # noqa: E501
    model = jaxpost.load(tiny.make(tmp_path / "base"))
    check_written(tmp_path / "base", model.config, model.params)
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(np.uint32).reshape(-1)[-1] ^= 1
    save_file(tensors, file)
    with pytest.raises(RunError, match=name):
        check_written(tmp_path / "base", model.config, model.params)


def test_a_tensor_too_few_or_too_many_is_found(tmp_path):
    """Mutation: jaxpost/hub/verify.py: `wrong = sorted(wanted.keys() ^ stored.keys())` -> `wrong = []`"""
    model = jaxpost.load(tiny.make(tmp_path / "base"))
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    for changed in ({**tensors, "extra": np.zeros(3)}, {k: t for k, t in tensors.items() if k != "model.norm.weight"}):
        save_file(changed, file)
        with pytest.raises(RunError, match=r"extra|model\.norm\.weight"):
            check_written(tmp_path / "base", model.config, model.params)


def test_not_a_number_is_equal_to_itself(tmp_path):
    model = jaxpost.load(tiny.make(tmp_path / "base"))
    params = {**model.params, "norm": {"weight": jnp.full_like(model.params["norm"]["weight"], jnp.nan)}}
    jaxpost.save(tmp_path / "out", model, params)
    check_written(tmp_path / "out", model.config, params)
    jaxpost.save(tmp_path / "again", model, params)
    assert changed_tensors(tmp_path / "again", tmp_path / "out") == set()


def test_changed_tensors_are_named(tmp_path):
    """In the dtype of the new folder: what bfloat16 rounds away is no change.

    Mutation: jaxpost/hub/verify.py: `old[name].read().astype(tensor.dtype)` -> `old[name].read()`
    """
    model = jaxpost.load(tiny.make(tmp_path / "base"))
    params = jax.tree.map(lambda x: x, model.params)
    params["norm"] = {"weight": params["norm"]["weight"] + 1}
    for dtype in ("float32", "bfloat16"):
        jaxpost.save(tmp_path / dtype, model, params, dtype=dtype)
        assert changed_tensors(tmp_path / dtype, tmp_path / "base") == {"model.norm.weight"}
