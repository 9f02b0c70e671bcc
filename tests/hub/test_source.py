"""Where a model comes from: folders, Hub ids, and the messages where it is neither."""

import fnmatch

import huggingface_hub
import pytest
import tiny
from refusals import refused

import jaxpost
from jaxpost.hub.source import find_folder, read_config


def test_a_folder_is_itself(tmp_path):
    assert find_folder(tmp_path) == tmp_path
    assert find_folder(str(tmp_path)) == tmp_path


def test_what_is_no_folder(tmp_path):
    refused(lambda: find_folder(tmp_path / "none"), "none", "does not exist")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    refused(lambda: jaxpost.load(tmp_path / "x.gguf"), "x.gguf", "jaxpost import")
    (tmp_path / "x.safetensors").write_bytes(b"")
    refused(lambda: jaxpost.load(tmp_path / "x.safetensors"), "the file")
    for odd in ("../up", "a/b/c", "a b", ""):
        if not (tmp_path / odd).exists():
            refused(lambda odd=odd: find_folder(odd), "Hub id")


def test_an_id_is_fetched_without_pickles_and_code(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(tiny.make(tmp_path / "cache"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert jaxpost.load("someone/a-model").config.num_layers == 3
    assert asked["name"] == "someone/a-model"
    names = [
        "pytorch_model.bin",
        "modeling_evil.py",
        "model.safetensors",
        "config.json",
        "model.pt",
        "chat_template.jinja",
    ]
    fetched = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in asked["patterns"])]
    assert fetched == ["model.safetensors", "config.json", "chat_template.jinja"]


@pytest.mark.parametrize("error", [OSError("no network\nmore"), ValueError(""), RuntimeError("403")])
def test_an_id_that_cannot_be_had(monkeypatch, error):
    def snapshot_download(name, allow_patterns):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    refused(lambda: jaxpost.load("someone/a-model"), "someone/a-model", "cannot be fetched")


def test_offline(monkeypatch):
    """The tests' own setting: nothing is downloaded, and the message is still one line."""
    refused(lambda: jaxpost.load("nobody/no-such-model-here"), "nobody/no-such-model-here")


def test_configs_that_cannot_be_read(tmp_path):
    refused(lambda: jaxpost.load(tmp_path), "config.json")
    (tmp_path / "config.json").write_text("{")
    refused(lambda: read_config(tmp_path), "config.json", "JSON")
    (tmp_path / "config.json").write_text("[]")
    refused(lambda: read_config(tmp_path), "config.json", "object")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused(lambda: read_config(tmp_path), str(tmp_path / "config.json"), "num_attention_heads")
