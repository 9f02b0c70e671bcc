"""`save`: what is written reads back bit for bit, files are copied as they are, and nothing half-written is left."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from refusals import refused
from safetensors.numpy import load_file

import jaxpost
from jaxpost.hub import Model
from jaxpost.hub.checkpoint import write


def tensors_of(folder):
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def same(a, b):
    return set(a) == set(b) and all(a[name].dtype == t.dtype and np.array_equal(a[name], t) for name, t in b.items())


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("spelling", [4, 5])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_saved_is_what_was_loaded(tmp_path, family, spelling):
    folder = tiny.make(tmp_path / "in", family, seed=1, spelling=spelling, dtype="bfloat16")
    model = jaxpost.load(folder)
    jaxpost.save(tmp_path / "out", model)
    assert same(tensors_of(tmp_path / "out"), tensors_of(folder))
    assert config_of(tmp_path / "out") == config_of(folder)
    assert jaxpost.load(tmp_path / "out").config == model.config


def test_R5_a_checkpoint_keeps_each_tensors_dtype(tmp_path):
    """bfloat16 stays bfloat16 and float16 float16, though the model computed in float32.

    Mutation: jaxpost/hub/save.py: `_DTYPE_NAMES[dtype or source or` -> `_DTYPE_NAMES[dtype or`
    """
    kind = lambda name: "bfloat16" if "layers.1" in name else "float16" if "norm" in name else "float32"  # noqa: E731
    folder = tiny.make(tmp_path / "in", "qwen2", seed=2, dtype=kind)
    jaxpost.save(tmp_path / "out", jaxpost.load(folder, "float32"))
    assert same(tensors_of(tmp_path / "out"), tensors_of(folder))


@pytest.mark.parametrize("spelling, key", [(4, "torch_dtype"), (5, "dtype")])
def test_another_dtype_is_written_and_said(tmp_path, spelling, key):
    folder = tiny.make(tmp_path / "in", spelling=spelling)
    jaxpost.save(tmp_path / "out", jaxpost.load(folder), dtype="bfloat16")
    expected = {name: t.astype(jnp.bfloat16) for name, t in tensors_of(folder).items()}
    assert same(tensors_of(tmp_path / "out"), expected)
    assert config_of(tmp_path / "out") == {**config_of(folder), key: "bfloat16"}


def test_shards_of_at_most_so_many_bytes(tmp_path):
    folder = tiny.make(tmp_path / "in", "gemma3_text", dtype="bfloat16")
    jaxpost.save(tmp_path / "out", jaxpost.load(folder), max_shard_bytes=20_000)
    files = sorted((tmp_path / "out").glob("model-*-of-*.safetensors"))
    assert len(files) > 3
    assert same(tensors_of(tmp_path / "out"), tensors_of(folder))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors_of(folder).values())
    assert list(load_file(files[0])) == ["model.embed_tokens.weight"]  # layers follow in order
    assert jaxpost.load(tmp_path / "out").config.num_layers == 8


def test_other_params_are_written(tmp_path):
    model = jaxpost.load(tiny.make(tmp_path / "in", dtype="bfloat16"), "float32")
    trained = jax.tree.map(lambda x: x * 1.5, model.params)
    jaxpost.save(tmp_path / "out", model, trained)
    expected = {name: (t.astype(np.float32) * 1.5).astype(t.dtype) for name, t in tensors_of(tmp_path / "in").items()}
    assert same(tensors_of(tmp_path / "out"), expected)


def test_files_are_copied_byte_for_byte(tmp_path):
    folder = tiny.make(tmp_path / "in")
    (folder / "chat_template.jinja").write_bytes("{{ 'é' }}\r\n".encode())
    (folder / "tokenizer.model").write_bytes(bytes(range(256)))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("x")
    (folder / "modeling_evil.py").write_text("print()")
    (folder / "training_args.bin").write_bytes(b"pickle")
    jaxpost.save(tmp_path / "out", jaxpost.load(folder))
    kept = ["chat_template.jinja", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"]
    kept += ["generation_config.json", "additional_chat_templates/tool.jinja"]
    for name in kept:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert not {"modeling_evil.py", "training_args.bin"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_auto_map_is_not_kept(tmp_path):
    """It names code files, which are neither followed nor copied."""
    folder = tiny.make(tmp_path / "in", auto_map={"AutoModel": "modeling_evil.Evil"}, unsloth_fixed=True)
    jaxpost.save(tmp_path / "out", jaxpost.load(folder))
    kept = config_of(folder)
    kept.pop("auto_map")
    assert config_of(tmp_path / "out") == kept


def test_L12_an_untied_pair_is_written_as_such(tmp_path):
    """A tree with a head of its own, on a config that says tied: the head is written and the config says untied.

    Mutation: jaxpost/hub/save.py: `hf["tie_word_embeddings"] = config.tie_word_embeddings` -> `hf["x"] = None`
    """
    for family, spelled in (("gemma2", {}), ("llama", {"tie_word_embeddings": True})):
        folder = tiny.make(tmp_path / family, family, dtype="bfloat16", **spelled)
        hf = config_of(folder)
        if family == "gemma2":  # tied by the family's default, without the key
            del hf["tie_word_embeddings"]
            (folder / "config.json").write_text(json.dumps(hf))
        model = jaxpost.load(folder)
        table = model.params["embed_tokens"]["weight"]
        jaxpost.save(tmp_path / f"{family}-out", model, {**model.params, "lm_head": {"weight": table + 1}})
        assert config_of(tmp_path / f"{family}-out") == {**hf, "tie_word_embeddings": False}
        again = jaxpost.load(tmp_path / f"{family}-out")
        assert np.array_equal(again.params["lm_head"]["weight"], table + 1)
        assert again.params["lm_head"]["weight"].dtype == jnp.bfloat16


def test_a_tied_model_writes_no_head(tmp_path):
    folder = tiny.make(tmp_path / "in", tie_word_embeddings=True)
    jaxpost.save(tmp_path / "out", jaxpost.load(folder))
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")


def test_a_model_made_in_memory(tmp_path):
    source = jaxpost.load(tiny.make(tmp_path / "in", "qwen3"))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), source.params)
    model = Model(config=source.config, params=half, hf_config=source.hf_config)
    jaxpost.save(tmp_path / "out", model)
    assert {t.dtype for t in tensors_of(tmp_path / "out").values()} == {jnp.dtype("bfloat16")}
    assert config_of(tmp_path / "out")["torch_dtype"] == "bfloat16"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    refused(lambda: jaxpost.save(tmp_path / "no", dataclasses.replace(model, hf_config={})), "hf_config")
    other = {**model.hf_config, "rms_norm_eps": 1e-3}
    refused(lambda: jaxpost.save(tmp_path / "no", dataclasses.replace(model, hf_config=other)), "hf_config", "differ")
    refused(lambda: model.tokenizer, "in memory")
    assert not (tmp_path / "no").exists()


def test_trees_that_are_not_the_models(tmp_path):
    model = jaxpost.load(tiny.make(tmp_path / "in"))
    params, out = model.params, tmp_path / "out"
    ((block,),) = params["layers"]
    refused(lambda: jaxpost.save(out, model, {k: v for k, v in params.items() if k != "lm_head"}), "lm_head")
    refused(lambda: jaxpost.save(out, model, {k: v for k, v in params.items() if k != "norm"}), "norm/weight")
    refused(lambda: jaxpost.save(out, model, {**params, "value": {"weight": jnp.ones(3)}}), "value/weight")
    refused(lambda: jaxpost.save(out, model, {**params, "norm": {"weight": jnp.ones(3)}}), "norm/weight", "[36]", "[3]")
    refused(lambda: jaxpost.save(out, model, {**params, "norm": {"weight": jnp.ones(36, int)}}), "norm/weight", "int")
    short = {**block, "mlp": {name: {"weight": w["weight"][:2]} for name, w in block["mlp"].items()}}
    refused(lambda: jaxpost.save(out, model, {**params, "layers": ((short,),)}), "layers/0/0/mlp/down_proj/weight")
    bound = jaxpost.bind(params, jaxpost.adapters.init(jax.random.key(0), params, rank=2))
    refused(lambda: jaxpost.save(out, model, bound), "LoraWeight", "merge")
    assert not out.exists() and [path.name for path in tmp_path.iterdir()] == ["in"]


def test_values_that_float16_cannot_hold(tmp_path):
    model = jaxpost.load(tiny.make(tmp_path / "in"))
    params = {**model.params, "norm": {"weight": jnp.full(36, 1e6)}}
    refused(lambda: jaxpost.save(tmp_path / "out", model, params, dtype="float16"), "model.norm.weight", "float16")
    refused(lambda: jaxpost.save(tmp_path / "out", model, dtype="float8"), "dtype", "float8")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path):
    model = jaxpost.load(tiny.make(tmp_path / "in"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    refused(lambda: jaxpost.save(tmp_path / "in", model), "not empty")
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before


def test_an_error_leaves_nothing(tmp_path, monkeypatch):
    model = jaxpost.load(tiny.make(tmp_path / "in"))

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr("jaxpost.hub.save.shutil.copyfile", broken)
    with pytest.raises(OSError):
        jaxpost.save(tmp_path / "out", model)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_writing_into_a_folder_built_aside(tmp_path):
    model = jaxpost.load(tiny.make(tmp_path / "in"))
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "metrics.jsonl").write_text("")
    write(tmp_path / "aside", model)
    assert same(tensors_of(tmp_path / "aside"), tensors_of(tmp_path / "in"))


def test_a_model_on_a_mesh_is_saved_whole(tmp_path):
    from jaxpost.sharding import make_mesh

    folder = tiny.make(tmp_path / "in", hidden_size=48, intermediate_size=64)
    jaxpost.save(tmp_path / "out", jaxpost.load(folder, mesh=make_mesh((2, 2, 2))))
    assert same(tensors_of(tmp_path / "out"), tensors_of(folder))
