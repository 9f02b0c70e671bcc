"""GGUF import: tensors, configuration, refusals. The tokenizer has a file of its own."""

import json

import numpy as np
import pytest
import tiny_gguf
from safetensors import safe_open

from jaxpost.cli import main
from jaxpost.hub.gguf import unpair_rows
from jaxpost.models.families import config_from_hf


def run_import(tmp_path, name="out"):
    return main(["import", str(tmp_path / "tiny.gguf"), "--output", str(tmp_path / name)])


def imported(tmp_path, **changes):
    """The expected tensors, the written ones and the configuration of an import."""
    expected = tiny_gguf.write(tmp_path / "tiny.gguf", **changes)
    assert run_import(tmp_path) == 0
    return expected, weights(tmp_path / "out"), read(tmp_path, "config.json")


def weights(folder):
    out = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            out |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return out


def read(tmp_path, name):
    return json.loads((tmp_path / "out" / name).read_text(encoding="utf-8"))


def assert_equal(got, expected):
    assert set(got) == set(expected)
    for name, want in expected.items():
        assert got[name].dtype == np.float32 and got[name].shape == want.shape, name
        # float32 scale * code + minimum: two roundings of 2^-24
        np.testing.assert_allclose(got[name], want, rtol=0, atol=2e-7 * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize(
    ("seed", "types"),
    [
        (0, {}),
        (1, {"attn": "Q8_0", "ffn": "Q4_1", "token_embd": "Q4_1"}),
        (2, {"attn_q": "F16", "attn_k": "F32", "ffn_down": "F16", "output": "Q8_0"}),
    ],
)
def test_tensors_are_the_dequantised_originals_in_hugging_face_order(tmp_path, seed, types):
    """Float32 of the float64-decoded blocks, q and k rows un-paired, for twelve heads over three.

    Mutation: jaxpost/hub/gguf.py: `swapaxes(1, 2)` -> `swapaxes(0, 0)`
    Mutation: jaxpost/hub/gguf.py: `f".{part}." in name` -> `part == name`
    """
    expected, got, _ = imported(tmp_path, seed=seed, types=types)
    assert_equal(got, expected)


@pytest.mark.parametrize("sizes", [{"heads": 5, "kv": 1, "head_dim": 6}, {"heads": 7, "kv": 7, "head_dim": 2}])
def test_odd_heads(tmp_path, sizes):
    """Head counts that do not divide the hidden size; one kv head, and no grouping."""
    plain = {"attn": "F16", "ffn": "F32", "token_embd": "F16"}
    expected, got, config = imported(tmp_path, sizes=tiny_gguf.SIZES | sizes, types=plain)
    assert_equal(got, expected)
    assert config["num_attention_heads"] == sizes["heads"] and config["head_dim"] == sizes["head_dim"]


def test_biases(tmp_path):
    """Biases of q and k are paired like their rows; config.json says that there are biases."""
    expected, got, config = imported(tmp_path, biases=True)
    assert_equal(got, expected)
    assert config["attention_bias"] and config["mlp_bias"]


@pytest.mark.parametrize("tied", [True, False])
def test_tied_is_the_absence_of_output(tmp_path, tied):
    expected, got, config = imported(tmp_path, tied=tied)
    assert_equal(got, expected)
    assert config["tie_word_embeddings"] is tied and ("lm_head.weight" in got) is not tied


PARTS = ("attn_v", "ffn_up")


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q5_1", "BF16"])
def test_every_type_of_the_dequantiser_is_read(tmp_path, kind):
    """gguf quantises these as well; the error is bounded by a step of the coarsest (4 bits of the block's range)."""
    tiny_gguf.write(tmp_path / "fine.gguf", types=dict.fromkeys(tiny_gguf.DEFAULT_TYPES, "F32"))
    assert main(["import", str(tmp_path / "fine.gguf"), "--output", str(tmp_path / "fine")]) == 0
    exact = weights(tmp_path / "fine")
    expected, got, _ = imported(
        tmp_path, types=dict.fromkeys(tiny_gguf.DEFAULT_TYPES, "F32") | dict.fromkeys(PARTS, kind)
    )
    assert_equal(got, expected)
    for name, want in exact.items():
        step = np.abs(want).max() / 7
        assert np.abs(got[name] - want).max() <= step
        changed = "v_proj" in name or "up_proj" in name
        assert (got[name] != want).any() == changed, name


def test_configuration(tmp_path):
    """Each number of the metadata arrives; floats as short decimals of what float32 holds; the model accepts it."""
    _, _, config = imported(tmp_path, llama__rope__freq_base=123.456, llama__context_length=777)
    sizes = tiny_gguf.SIZES
    wanted = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["d"],
        "intermediate_size": sizes["f"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv"],
        "head_dim": sizes["head_dim"],
        "max_position_embeddings": 777,
        "rms_norm_eps": 1e-5,
        "rope_theta": 123.456,
        "rope_scaling": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    assert {key: config[key] for key in wanted} == wanted
    assert "pad_token_id" not in config  # transformers would freeze that row of the embedding
    model = config_from_hf(config)
    assert (model.num_heads, model.num_kv_heads, model.stages[0].kinds[0].rope.theta) == (12, 3, 123.456)


def test_defaults_where_the_file_is_silent(tmp_path):
    """The head width is hidden / heads, kv heads are the heads, the vocabulary is the embedding's rows."""
    silent = ["llama__attention__key_length", "llama__attention__value_length", "llama__rope__dimension_count"]
    silent += ["llama__attention__head_count_kv", "llama__vocab_size", "llama__rope__freq_base"]
    sizes = tiny_gguf.SIZES | {"heads": 6, "kv": 6, "head_dim": 16}
    expected, got, config = imported(tmp_path, sizes=sizes, **dict.fromkeys(silent))
    assert_equal(got, expected)
    assert (config["head_dim"], config["num_key_value_heads"], config["vocab_size"]) == (16, 6, sizes["vocab"])
    assert config["rope_theta"] == 10000.0


def test_linear_rope_scaling(tmp_path):
    scaling = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.5}
    _, _, config = imported(tmp_path, **scaling)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.5}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_scaling_is_recovered_from_its_factors(tmp_path, factor):
    factors = tiny_gguf.llama3_factors(16, 500000.0, factor)
    sizes = tiny_gguf.SIZES | {"heads": 4, "kv": 2, "head_dim": 16}
    changes = {"tensors": {"rope_freqs.weight": factors}, "llama__rope__freq_base": 500000.0}
    expected, got, config = imported(tmp_path, sizes=sizes, **changes)
    assert_equal(got, expected)
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert config_from_hf(config).stages[0].kinds[0].rope.factor == factor


def test_generation_stops_at_every_end(tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf", tokenizer__ggml__eot_token_id=3, tokenizer__ggml__eom_token_id=2)
    assert run_import(tmp_path) == 0
    assert read(tmp_path, "generation_config.json") == {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 2}


def test_unpair_rows_undoes_the_converter():
    """llama.cpp's converter: [heads, 2, width / 2] -> [heads, width / 2, 2]."""
    rows = np.random.default_rng(0).standard_normal((3 * 10, 4))
    paired = rows.reshape(3, 2, 5, 4).swapaxes(1, 2).reshape(30, 4)
    assert not np.array_equal(paired, rows)
    np.testing.assert_array_equal(unpair_rows(paired, heads=3), rows)


def nan_norm():
    values = np.ones(tiny_gguf.SIZES["d"], np.float32)
    values[5] = np.nan
    return values


TENSORS = {
    "missing": ({"blk.1.ffn_up.weight": None}, ["lacks", "blk.1.ffn_up.weight"]),
    "no embedding": ({"token_embd.weight": None}, ["lacks", "token_embd.weight"]),
    "unknown": ({"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}, ["unknown", "blk.0.attn_q_norm.weight"]),
    "beyond the last layer": ({"blk.2.attn_norm.weight": np.ones(96, np.float32)}, ["unknown", "blk.2.attn_norm"]),
    "some biases only": ({"blk.0.attn_q.bias": np.ones(192, np.float32)}, ["lacks", "bias"]),
    "shape": ({"blk.0.attn_k.weight": np.ones((96, 96), np.float32)}, ["blk.0.attn_k.weight", "[48, 96]", "[96, 96]"]),
    "transposed": ({"blk.0.ffn_up.weight": np.ones((96, 160), np.float32)}, ["ffn_up", "[160, 96]", "[96, 160]"]),
    "rope factors": ({"rope_freqs.weight": np.array([1, 1, 3, 9], np.float32)}, ["rope_freqs.weight", "llama3"]),
    "not a number": ({"output_norm.weight": nan_norm()}, ["output_norm.weight", "NaN"]),
}

METADATA = {
    "mixture of experts": ({"llama__expert_count": 8}, ["llama.expert_count", "8"]),
    "unknown key": ({"llama__attention__scale": 0.5}, ["llama.attention.scale"]),
    "sliding window": ({"llama__attention__sliding_window": 64}, ["llama.attention.sliding_window"]),
    "yarn": ({"llama__rope__scaling__type": "yarn"}, ["rope.scaling.type", "yarn"]),
    "factor without a type": ({"llama__rope__scaling__factor": 4.0}, ["rope.scaling.factor"]),
    "partial rotary": ({"llama__rope__dimension_count": 4}, ["rope.dimension_count", "4", "16"]),
    "value width": ({"llama__attention__value_length": 12}, ["value_length", "12", "16"]),
    "not causal": ({"llama__attention__causal": False}, ["causal"]),
    "heads in no groups": ({"llama__attention__head_count_kv": 5}, ["num_key_value_heads", "12", "5"]),
    "no layers": ({"llama__block_count": 0}, ["block_count", "0"]),
    "no block count": ({"llama__block_count": None}, ["llama.block_count", "missing"]),
    "no eps": ({"llama__attention__layer_norm_rms_epsilon": None}, ["layer_norm_rms_epsilon", "missing"]),
    "no context": ({"llama__context_length": None}, ["context_length", "missing"]),
    "text for a number": ({"llama__embedding_length": "96"}, ["embedding_length", "int", "'96'"]),
    "heads per layer": ({"llama__attention__head_count_kv": [3, 3]}, ["head_count_kv", "[3, 3]"]),
    "vocabulary": ({"llama__vocab_size": 300}, ["token_embd.weight", "300", "304"]),
    "one of several parts": ({"split__count": 3}, ["split.count", "3"]),
    "an adapter": ({"general__type": "adapter"}, ["general.type", "adapter"]),
    "no eos": ({"tokenizer__ggml__eos_token_id": None}, ["eos_token_id", "missing"]),
    "another architecture": (
        {"architecture": "qwen3moe"},
        ["general.architecture", "qwen3moe", 'Did you mean "qwen3"'],
    ),
    "sentencepiece": ({"tokenizer__ggml__model": "llama"}, ["tokenizer.ggml.model", "llama", "byte-level BPE"]),
    "wordpiece": ({"tokenizer__ggml__model": "bert"}, ["tokenizer.ggml.model", "bert"]),
    "no tokenizer": ({"tokenizer__ggml__model": None}, ["tokenizer.ggml.model", "missing"]),
    "unknown words": ({"tokenizer__ggml__pre": "smolm"}, ["tokenizer.ggml.pre", "smolm", 'Did you mean "smollm"']),
    "no words": ({"tokenizer__ggml__pre": None}, ["tokenizer.ggml.pre", "missing"]),
    "no tokens": ({"tokenizer__ggml__tokens": None}, ["tokenizer.ggml.tokens", "missing"]),
    "no types": ({"tokenizer__ggml__token_type": None}, ["tokenizer.ggml.token_type", "missing"]),
    "no merges": ({"tokenizer__ggml__merges": None}, ["tokenizer.ggml.merges", "missing"]),
    "types of other length": ({"tokenizer__ggml__token_type": [1, 1]}, ["token_type", "304", "2"]),
    "byte tokens": ({"tokenizer__ggml__token_type": [6] * 304}, ["type 6", "token 0"]),
    "a merge of strangers": ({"tokenizer__ggml__merges": ["q u"]}, ["merge 0", "q u"]),
    "a merge of three": ({"tokenizer__ggml__merges": ["1 2", "1 2 3"]}, ["merge 1", "1 2 3"]),
    "id outside": ({"tokenizer__ggml__bos_token_id": 304}, ["bos_token_id", "304"]),
    "stop id outside": ({"tokenizer__ggml__eot_token_id": 9999}, ["eot_token_id", "9999"]),
    "prefix space": ({"tokenizer__ggml__add_space_prefix": True}, ["add_space_prefix"]),
    "unknown tokenizer key": ({"tokenizer__ggml__precompiled_charsmap": [1]}, ["precompiled_charsmap"]),
    "bos without id": (
        {"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__bos_token_id": None},
        ["add_bos_token", "bos_token_id"],
    ),
}


def assert_refused(tmp_path, capsys, mentions):
    capsys.readouterr()
    assert run_import(tmp_path) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    assert err.startswith("jaxpost: error: ") and len(err) < 500
    for text in [*mentions, "tiny.gguf"]:
        assert text in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.gguf"]


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_refused(tmp_path, capsys, case):
    tensors, mentions = TENSORS[case]
    tiny_gguf.write(tmp_path / "tiny.gguf", tensors=tensors)
    assert_refused(tmp_path, capsys, mentions)


@pytest.mark.parametrize("case", METADATA)
def test_metadata_refused(tmp_path, capsys, case):
    changes, mentions = METADATA[case]
    tiny_gguf.write(tmp_path / "tiny.gguf", **changes)
    assert_refused(tmp_path, capsys, mentions)


def test_more_tokens_than_rows_refused(tmp_path, capsys):
    tokens, types = tiny_gguf.vocabulary(310)
    changes = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types}
    tiny_gguf.write(tmp_path / "tiny.gguf", **changes)
    assert_refused(tmp_path, capsys, ["304", "310"])


@pytest.mark.parametrize("token", ["a", ""])
def test_duplicate_and_empty_tokens_refused(tmp_path, capsys, token):
    tokens, _ = tiny_gguf.vocabulary(304)
    tokens[-1] = token
    tiny_gguf.write(tmp_path / "tiny.gguf", tokenizer__ggml__tokens=tokens)
    assert_refused(tmp_path, capsys, ["tokenizer.ggml.tokens", repr(token)])


def test_integer_tensors_refused(tmp_path, capsys):
    tiny_gguf.write(tmp_path / "tiny.gguf", tensors={"output_norm.weight": np.ones(96, np.int8)})
    assert_refused(tmp_path, capsys, ["output_norm.weight", "I8"])


@pytest.mark.parametrize("seed", range(12))
def test_truncated_refused(tmp_path, capsys, seed):
    """Cut anywhere: in the header, in the metadata, in the tensors' table, in the last tensor."""
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    whole = path.read_bytes()
    cuts = [0, 3, 4, 11, 20, len(whole) - 33, len(whole) // 2]
    cut = cuts[seed] if seed < len(cuts) else int(np.random.default_rng(seed).integers(len(whole) // 3))
    path.write_bytes(whole[:cut])
    assert_refused(tmp_path, capsys, ["not a whole GGUF file"])


@pytest.mark.parametrize("content", [b"", b"not a GGUF file at all, but long enough to have a header" * 9])
def test_other_files_refused(tmp_path, capsys, content):
    (tmp_path / "tiny.gguf").write_bytes(content)
    assert_refused(tmp_path, capsys, ["not a whole GGUF file"])


def test_missing_file_refused(tmp_path, capsys):
    assert main(["import", str(tmp_path / "none.gguf"), "--output", str(tmp_path / "out")]) == 2
    assert "none.gguf" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_full_output_folder_is_left_alone(tmp_path, capsys):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine")
    assert run_import(tmp_path) == 2
    assert "out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["note.txt"]
