"""Safetensors in and out: what is read equals what the reference library wrote, what is written it reads."""

import json

import ml_dtypes
import numpy as np
import pytest
import tiny
from refusals import refused
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxpost.hub.safetensors_reader import INDEX, open_file, open_folder
from jaxpost.hub.safetensors_writer import Unwritten, write_file, write_folder

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


def random_tensors(seed, count=7):
    """Tensors of mixed dtypes and odd sizes, among them a scalar and an empty one."""
    rng = np.random.default_rng(seed)
    shapes = [(), (0, 3), *(tuple(rng.integers(1, 6, rng.integers(1, 4))) for _ in range(count - 2))]
    return {f"t{i}": rng.standard_normal(shape).astype(DTYPES[i % 3]) for i, shape in enumerate(shapes)}


def unwritten(tensors):
    return [Unwritten(name, t.dtype, t.shape, lambda t=t: t) for name, t in tensors.items()]


@pytest.mark.parametrize("seed", range(4))
def test_reads_what_the_library_writes(tmp_path, seed):
    tensors = random_tensors(seed)
    save_file(tensors, tmp_path / "model.safetensors")
    found = open_folder(tmp_path)
    assert set(found) == set(tensors)
    for name, expected in tensors.items():
        got = found[name].read()
        assert got.dtype == expected.dtype and got.shape == expected.shape
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("seed", range(4))
def test_the_library_reads_what_is_written(tmp_path, seed):
    tensors = random_tensors(seed)
    write_file(tmp_path / "x.safetensors", unwritten(tensors))
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    got = load_file(tmp_path / "x.safetensors")
    assert set(got) == set(tensors)
    for name, expected in tensors.items():
        assert got[name].dtype == expected.dtype and np.array_equal(got[name], expected), name


def test_a_slice_is_read_alone(tmp_path):
    save_file({"w": np.arange(24, dtype=np.float32).reshape(4, 6)}, tmp_path / "model.safetensors")
    stored = open_folder(tmp_path)["w"]
    assert np.array_equal(stored.read((slice(1, 3), slice(4, 6))), [[10, 11], [16, 17]])


@pytest.mark.parametrize("seed", range(3))
def test_shards_and_their_index(tmp_path, seed):
    tensors = random_tensors(seed, 12)
    write_folder(tmp_path, unwritten(tensors), max_shard_bytes=100)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for file in files:
        held = load_file(tmp_path / file)
        assert {name for name, at in index["weight_map"].items() if at == file} == set(held)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= 100
    found = open_folder(tmp_path)
    assert all(np.array_equal(found[name].read(), t) for name, t in tensors.items())


def test_one_shard_has_no_index(tmp_path):
    write_folder(tmp_path, unwritten(random_tensors(0)))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("cut", [1, 60, 700])
def test_a_truncated_file_is_refused(tmp_path, cut):
    file = tmp_path / "model.safetensors"
    save_file({"w": np.ones((9, 11), np.float32), "v": np.ones(3, np.float32)}, file)
    data = file.read_bytes()
    file.write_bytes(data[: max(0, len(data) - cut)] if cut < 700 else data[:30])
    refused(lambda: open_folder(tmp_path), str(file), "incomplete")


def test_damaged_files_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    refused(lambda: open_folder(tmp_path), "0 bytes")
    file.write_bytes((10).to_bytes(8, "little") + b"not a json" + b"0" * 40)
    refused(lambda: open_folder(tmp_path), "header", "JSON")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(lambda: open_folder(tmp_path), "git lfs pull")
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"0" * 8)
    refused(lambda: open_folder(tmp_path), "contradicts itself about w")
    save_file({"w": np.ones(3, np.float32)}, file)
    file.write_bytes(file.read_bytes() + b"more")
    refused(lambda: open_folder(tmp_path), "model.safetensors")


def test_an_overlap_of_tensors_is_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0" * 8)
    refused(lambda: open_folder(tmp_path), "fill 16 bytes")


def test_J15_the_same_tensor_in_two_shards_is_refused(tmp_path):
    """Which of the two is meant cannot be known.

    Mutation: jaxpost/hub/safetensors_reader.py: `            if name in tensors:` -> `            if name in ():`
    """
    tiny.make(tmp_path, shards=2)
    second = tmp_path / "model-00002-of-00002.safetensors"
    tensors = load_file(second)
    again = load_file(tmp_path / "model-00001-of-00002.safetensors")["model.embed_tokens.weight"]
    save_file({**tensors, "model.embed_tokens.weight": again}, second)
    refused(lambda: open_folder(tmp_path), "model.embed_tokens.weight", "one shard", "model-00001", "model-00002")
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["model.embed_tokens.weight"] = second.name  # whichever of the two the index names
    (tmp_path / INDEX).write_text(json.dumps(index))
    refused(lambda: open_folder(tmp_path), "model.embed_tokens.weight", "one shard")


def test_an_index_that_names_another_file_is_refused(tmp_path):
    tiny.make(tmp_path, shards=2)
    index = json.loads((tmp_path / INDEX).read_text())

    def write(**changes):
        (tmp_path / INDEX).write_text(json.dumps({**index, "weight_map": {**index["weight_map"], **changes}}))

    write(**{"model.norm.weight": "model-00001-of-00002.safetensors"})
    refused(lambda: open_folder(tmp_path), "model.norm.weight", "model-00002")
    write(**{"model.extra.weight": "model-00001-of-00002.safetensors"})
    refused(lambda: open_folder(tmp_path), "model.extra.weight", "no such tensor")
    write(**{"model.norm.weight": "../model.safetensors"})
    refused(lambda: open_folder(tmp_path), "model.norm.weight", "../model.safetensors")
    (tmp_path / INDEX).write_text("{}")
    refused(lambda: open_folder(tmp_path), "weight_map")


def test_folders_without_weights_are_refused(tmp_path):
    refused(lambda: open_folder(tmp_path), "model.safetensors", "neither")
    for name, hint in (
        ("model.gguf", "jaxpost import"),
        ("pytorch_model.bin", "pickle"),
        ("model-00001-of-00002.safetensors", "index"),
        ("adapter_config.json", "--adapter"),
    ):
        (tmp_path / name).write_bytes(b"x")
        refused(lambda: open_folder(tmp_path), hint)


def test_index_and_single_file_together_are_refused(tmp_path):
    tiny.make(tmp_path, shards=2)
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    refused(lambda: open_folder(tmp_path), INDEX, "not both")


def test_a_dtype_that_is_no_weight_is_refused(tmp_path):
    save_file({"codes": np.ones(4, np.uint8)}, tmp_path / "model.safetensors")
    stored = open_file(tmp_path / "model.safetensors")["codes"]
    refused(stored.read, "codes", "U8", "F32")


def test_a_reader_of_another_shape_is_an_error(tmp_path):
    wrong = Unwritten("w", np.dtype(np.float32), (3,), lambda: np.ones(4, np.float32))
    with pytest.raises(ValueError, match="announced"):
        write_file(tmp_path / "x", [wrong])
