"""GGUF import of Qwen2 and Qwen3: rows as they lie, biases, head norms, configuration, refusals."""

import json

import numpy as np
import pytest
import tiny_gguf
from safetensors.numpy import load_file

from jaxpost.cli import main
from jaxpost.models.families import config_from_hf

WIDE = tiny_gguf.SIZES | {"heads": 5, "kv": 1, "head_dim": 10}  # heads times width is not the hidden size


def imported(tmp_path, **changes):
    """The expected tensors, the written ones and the configuration."""
    expected = tiny_gguf.write(tmp_path / "tiny.gguf", **changes)
    assert main(["import", str(tmp_path / "tiny.gguf"), "--output", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    return expected, load_file(tmp_path / "out" / "model.safetensors"), config


@pytest.mark.parametrize("seed, tied", [(0, True), (1, False)])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_tensors_keep_their_rows(tmp_path, architecture, seed, tied):
    """Every tensor under its name, float32 of the decoded blocks; q and k are not re-ordered as a Llama's are.

    Mutation: jaxpost/hub/gguf_families.py: `model_class="Qwen2ForCausalLM", qkv_bias=True` -> `model_class="Qwen2ForCausalLM", qkv_bias=True, paired_rows=True`
    Mutation: jaxpost/hub/gguf_families.py: `model_class="Qwen3ForCausalLM", qk_norm=True` -> `model_class="Qwen3ForCausalLM"`
    """  # noqa: E501
    types = {"attn_q": "F16", "attn_k": "F16", "ffn": "Q8_0", "attn_v": "Q4_1", "attn_output": "F32"}
    made = {"architecture": architecture, "seed": seed, "tied": tied, "sizes": WIDE, "types": types}
    expected, got, config = imported(tmp_path, **made)
    assert set(got) == set(expected)
    for name, want in expected.items():
        np.testing.assert_allclose(got[name], want, rtol=0, atol=2e-7 * np.abs(want).max(), err_msg=name)
    assert config["tie_word_embeddings"] is tied and config["head_dim"] == 10
    extra = {"qwen2": "self_attn.k_proj.bias", "qwen3": "self_attn.k_norm.weight"}[architecture]
    assert f"model.layers.1.{extra}" in got


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_configuration(tmp_path, architecture):
    """Each number arrives under the model's own keys; jaxpost's reader takes all of them."""
    key = f"{architecture}__rope__freq_base"
    _, _, config = imported(tmp_path, architecture=architecture, **{key: 1e6})
    sizes = tiny_gguf.SIZES
    wanted = {
        "model_type": architecture,
        "architectures": [f"{architecture.title()}ForCausalLM"],
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["d"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv"],
        "head_dim": sizes["head_dim"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {name: config[name] for name in wanted} == wanted
    assert "mlp_bias" not in config and ("attention_bias" in config) == (architecture == "qwen3")
    model = config_from_hf(config)
    (kind,) = model.stages[0].kinds
    assert (model.qkv_bias, model.output_bias, kind.qk_norm) == (
        architecture == "qwen2",
        False,
        architecture == "qwen3",
    )
    assert kind.window is None


def test_defaults_where_the_file_is_silent(tmp_path):
    """Qwen2's files name no head width: it is the hidden size by heads; linear scaling is kept."""
    silent = ["attention__key_length", "attention__value_length", "rope__dimension_count", "vocab_size"]
    changes = {f"qwen2__{key}": None for key in silent} | {"qwen2__rope__freq_base": None}
    changes |= {"qwen2__rope__scaling__type": "linear", "qwen2__rope__scaling__factor": 4.0}
    sizes = tiny_gguf.SIZES | {"heads": 6, "kv": 2, "head_dim": 16}
    _, got, config = imported(tmp_path, architecture="qwen2", sizes=sizes, **changes)
    assert (config["head_dim"], config["rope_theta"], config["vocab_size"]) == (16, 10000.0, sizes["vocab"])
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert got["model.layers.0.self_attn.q_proj.weight"].shape == (96, 96)


def test_biases_of_qwen3(tmp_path):
    """`attention_bias` holds for q, k, v and o together, and the model that is read has them."""
    biases = {
        f"blk.{i}.attn_{part}.bias": np.full(size, 0.25, np.float32)
        for i in range(2)
        for part, size in (("q", 192), ("k", 48), ("v", 48), ("output", 96))
    }
    _, got, config = imported(tmp_path, architecture="qwen3", tensors=biases)
    assert config["attention_bias"] and got["model.layers.1.self_attn.o_proj.bias"][5] == 0.25
    assert config_from_hf(config).output_bias


ONES = {size: np.ones(size, np.float32) for size in (8, 16, 96, 160)}
REFUSED = {
    "yarn": ("qwen3", {"qwen3__rope__scaling__type": "yarn", **{f"qwen3__rope__scaling__{k}": v for k, v in
             (("factor", 4.0), ("original_context_length", 128))}}, ["qwen3.rope.scaling.type", "yarn"]),
    "scaling setting": ("qwen2", {"qwen2__rope__scaling__attn_factor": 2.0}, ["qwen2.rope.scaling.attn_factor"]),
    "factor without a type": ("qwen2", {"qwen2__rope__scaling__factor": 4.0}, ["rope.scaling.factor"]),
    "window": ("qwen2", {"qwen2__attention__sliding_window": 64}, ["qwen2.attention.sliding_window"]),
    "an embedder": ("qwen3", {"qwen3__pooling_type": 3}, ["qwen3.pooling_type"]),
    "experts": ("qwen3", {"qwen3__expert_count": 8}, ["qwen3.expert_count", "8"]),
    "stored rope factors": ("qwen2", {"tensors": {"rope_freqs.weight": ONES[8]}}, ["unknown", "rope_freqs.weight"]),
    "no q bias": ("qwen2", {"tensors": {"blk.1.attn_q.bias": None}}, ["qwen2", "lacks", "blk.1.attn_q.bias"]),
    "bias of o": ("qwen2", {"tensors": {"blk.0.attn_output.bias": ONES[96]}}, ["unknown", "attn_output.bias"]),
    "bias of the MLP": ("qwen3", {"tensors": {"blk.0.ffn_up.bias": ONES[160]}}, ["unknown", "ffn_up.bias"]),
    "some biases only": ("qwen3", {"tensors": {"blk.0.attn_q.bias": np.ones(192, np.float32)}}, ["lacks", "bias"]),
    "no head norm": ("qwen3", {"tensors": {"blk.0.attn_k_norm.weight": None}}, ["lacks", "blk.0.attn_k_norm.weight"]),
    "head norm": ("qwen3", {"tensors": {"blk.0.attn_q_norm.weight": ONES[96]}}, ["attn_q_norm", "[16]", "[96]"]),
    "head norms of another": ("qwen2", {"tensors": {"blk.0.attn_q_norm.weight": ONES[16]}}, ["unknown", "q_norm"]),
    "keys of another": ("qwen3", {"qwen3__block_count": None, "qwen2__block_count": 2}, ["qwen3.block_count"]),
    "partial rotary": ("qwen2", {"qwen2__rope__dimension_count": 8}, ["rope.dimension_count", "8", "16"]),
    "unknown words": ("qwen2", {"tokenizer__ggml__pre": "qwen35"}, ["tokenizer.ggml.pre", "qwen35", '"qwen2"']),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, capsys, case):
    """One line, exit 2, no folder.

    Mutation: jaxpost/hub/gguf.py: `({ROPE_FACTORS} if ARCHITECTURES[family].rope_factors else set())` -> `{ROPE_FACTORS}`
    Mutation: jaxpost/hub/gguf_rope.py: `if unknown:` -> `if False:`
    """  # noqa: E501
    architecture, changes, mentions = REFUSED[case]
    tiny_gguf.write(tmp_path / "tiny.gguf", architecture=architecture, **changes)
    assert main(["import", str(tmp_path / "tiny.gguf"), "--output", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("jaxpost: error: ") and len(err) < 500
    for text in [*mentions, "tiny.gguf"]:
        assert text in err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
