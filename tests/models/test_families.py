"""Configurations of every family: both spellings, defaults, and all that is refused."""

import json
from pathlib import Path

import pytest
import tiny
from refusals import refused

from jaxpost.models.config import LayerKind, Rope
from jaxpost.models.families import FAMILIES, config_from_hf

CASES = Path(__file__).resolve().parents[1] / "cases"


def hf(family="llama", spelling=4, **overrides):
    """config.json of a tiny model; an override of `...` takes the key out."""
    old = {**tiny.COMMON, **tiny.FAMILIES[family], **overrides}
    config = tiny.config(family, spelling, "float32", {k: v for k, v in old.items() if v is not ...})
    return config


def kinds(config):
    """The kind of every layer, in order."""
    return [kind for stage in config.stages for _ in range(stage.repeats) for kind in stage.kinds]


def windows(config):
    return [kind.window for kind in kinds(config)]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_spellings_are_one_configuration(family):
    assert config_from_hf(hf(family, 4)) == config_from_hf(hf(family, 5))


@pytest.mark.parametrize("scaling", [tiny.LLAMA3_ROPE, tiny.LINEAR_ROPE], ids=["llama3", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_spellings_of_rope_scaling(family, scaling):
    old = config_from_hf(hf(family, 4, rope_scaling=scaling))
    assert old == config_from_hf(hf(family, 5, rope_scaling=scaling))
    full = [kind.rope for kind in kinds(old) if family != "gemma3_text" or kind.window is None]
    assert {rope.kind for rope in full} == {scaling["rope_type"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_J11_every_rope_field_is_read(family):
    """Base, kind, factor and Llama 3's three numbers reach the configuration, none is the family's default.

    Mutation: jaxpost/models/rope_fields.py: `numbers: Any = {name: _number(fields, values, name) for name in _KINDS[kind]}` -> `numbers: Any = {}`
    """  # noqa: E501
    scaling = {
        "rope_type": "llama3",
        "factor": 7.0,
        "low_freq_factor": 1.25,
        "high_freq_factor": 3.5,
        "original_max_position_embeddings": 96,
    }
    config = config_from_hf(hf(family, rope_theta=12345.0, rope_scaling=scaling))
    full = next(kind.rope for kind in kinds(config) if family != "gemma3_text" or kind.window is None)
    assert full == Rope(
        theta=12345.0,
        kind="llama3",
        factor=7.0,
        low_freq_factor=1.25,
        high_freq_factor=3.5,
        original_max_positions=96,
    )


def test_llama3_length_falls_back_to_the_model_length():
    scaling = {k: v for k, v in tiny.LLAMA3_ROPE.items() if k != "original_max_position_embeddings"}
    inside = config_from_hf(hf(rope_scaling=scaling, max_position_embeddings=160))
    beside = config_from_hf(hf(rope_scaling=scaling, original_max_position_embeddings=48))
    assert kinds(inside)[0].rope.original_max_positions == 160
    assert kinds(beside)[0].rope.original_max_positions == 48


def test_old_and_new_name_of_the_kind():
    old = config_from_hf(hf(rope_scaling={"type": "linear", "factor": 3.0}))
    both = config_from_hf(hf(rope_scaling={"type": "linear", "rope_type": "linear", "factor": 3.0}))
    assert old == both and kinds(old)[0].rope == Rope(theta=500.0, kind="linear", factor=3.0)
    refused(lambda: config_from_hf(hf(rope_scaling={"type": "linear", "rope_type": "llama3", "factor": 3.0})), "type")


def test_gemma3_ropes_of_the_two_kinds_of_layers():
    config = config_from_hf(hf("gemma3_text", rope_scaling={"rope_type": "linear", "factor": 8.0}))
    assert [kind.rope for kind in kinds(config)[4:6]] == [
        Rope(theta=90.0),  # scaling is of the full layers only
        Rope(theta=500.0, kind="linear", factor=8.0),
    ]
    absent = config_from_hf(hf("gemma3_text", rope_theta=..., rope_local_base_freq=...))
    assert [kind.rope.theta for kind in kinds(absent)[4:6]] == [10_000.0, 1_000_000.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_null_is_the_default(family):
    """Keys that are null read as keys that are absent."""
    nullable = ["rope_scaling", "rope_theta", "attention_bias", "layer_types", "rms_norm_eps", "hidden_act"]
    nullable += ["bos_token_id", "pad_token_id", "tie_word_embeddings", "rope_local_base_freq", "hidden_activation"]
    absent = config_from_hf(hf(family, **dict.fromkeys(nullable, ...)))
    assert config_from_hf(hf(family, **dict.fromkeys(nullable))) == absent


def test_H07_null_sizes_are_derived():
    """head_dim = hidden / heads, as many key heads as heads, no window, no scaling.

    Mutation: jaxpost/models/hf_fields.py: `return default if value is None else value` -> `return value if name in self.values else default`
    """  # noqa: E501
    for name in ("llama", "mistral"):
        config = config_from_hf(json.loads((CASES / "H07" / name / "config.json").read_text()))
        assert (config.head_dim, config.num_kv_heads, windows(config)) == (8, 2, [None, None])
        assert kinds(config)[0].rope == Rope(theta=10000.0)
    assert config_from_hf(hf(head_dim=None, num_key_value_heads=None)).num_kv_heads == 6


def test_H30_harmless_leftovers_load():
    """Keys that no family defines and that change nothing.

    Mutation: jaxpost/models/hf_fields.py: `_HARMLESS_VALUES = {"pretraining_tp": 1, ` -> `_HARMLESS_VALUES = {`
    """
    case = json.loads((CASES / "H30" / "model" / "config.json").read_text())
    assert config_from_hf(case).num_layers == 2
    more = {"unsloth_future": "x", "_commit_hash": "abc", "id2label": {"0": "A"}, "some_feature": {"on": False}}
    assert config_from_hf(hf(**more, attention_dropout=0.0, embd_pdrop=0)) == config_from_hf(hf())


def test_J12_an_unknown_key_with_a_value_is_refused():
    """A setting that may change the result is named, with its value and a near spelling.

    Mutation: jaxpost/models/hf_fields.py: `if not left:` -> `if left:`
    """
    text = refused(lambda: config_from_hf(hf(logit_scale=0.25), "some/config.json"), "`logit_scale`", "0.25")
    assert "some/config.json" in text
    refused(lambda: config_from_hf(hf(attention_bais=True)), "attention_bais", "attention_bias")
    refused(lambda: config_from_hf(hf(a=1, b=2, c=[3])), "`a (and 2 more: b, c)`")


REFUSED = {
    "an unknown family": ("llama", {"model_type": "phi3"}, ["model_type", "phi3", "qwen3", "gemma3_text"]),
    "a misspelt family": ("llama", {"model_type": "lama"}, ["lama", "llama"]),
    "no family": ("llama", {"model_type": None}, ["model_type"]),
    "multimodal Gemma 3": ("gemma3_text", {"model_type": "gemma3"}, ["gemma3", "gemma3_text", "text-only"]),
    "another head": (
        "llama",
        {"architectures": ["LlamaForSequenceClassification"]},
        ["LlamaForSequenceClassification"],
    ),
    "quantised": ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, ["quantization", "bitsandbytes"]),
    "yarn": ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["yarn", "linear", "llama3"]),
    "dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["dynamic"]),
    "longrope": ("llama", {"rope_scaling": {"type": "longrope"}}, ["longrope"]),
    "mrope": ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}, ["mrope"]),
    "use_mrope": ("qwen2", {"use_mrope": True}, ["use_mrope"]),
    "an unknown rope key": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 3}},
        ["beta", "linear"],
    ),
    "a factor without a kind": ("llama", {"rope_scaling": {"factor": 2.0}}, ["factor", "default"]),
    "no factor": ("llama", {"rope_scaling": {"type": "linear"}}, ["factor", "number above 0"]),
    "a negative factor": ("llama", {"rope_scaling": {"type": "linear", "factor": -2}}, ["factor", "-2"]),
    "bad llama3 bounds": (
        "llama",
        {"rope_scaling": {**tiny.LLAMA3_ROPE, "high_freq_factor": 1.0}},
        ["high_freq_factor", "low_freq_factor"],
    ),
    "two bases": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, ["rope_theta", "7.0"]),
    "two scalings": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_scaling": tiny.LINEAR_ROPE},
        ["rope_scaling", "rope_parameters"],
    ),
    "flat parameters of Gemma 3": ("gemma3_text", {"rope_parameters": {"rope_theta": 5.0}}, ["full_attention"]),
    "a part of each head": ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
    "an activation": ("llama", {"hidden_act": "relu"}, ["hidden_act", "relu", "silu"]),
    "exact gelu": ("gemma2", {"hidden_activation": "gelu"}, ["gelu", "gelu_pytorch_tanh"]),
    "heads": ("llama", {"num_key_value_heads": 4}, ["num_key_value_heads", "divisor", "6", "4"]),
    "odd heads": ("llama", {"head_dim": 7}, ["head_dim", "even"]),
    "no width of a head": ("llama", {"head_dim": None, "hidden_size": 38}, ["hidden_size", "38"]),
    "a negative size": ("llama", {"hidden_size": -36}, ["hidden_size", "-36"]),
    "a zero size": ("llama", {"num_hidden_layers": 0}, ["num_hidden_layers"]),
    "a float size": ("llama", {"intermediate_size": 56.0}, ["intermediate_size", "56.0"]),
    "a boolean size": ("llama", {"vocab_size": True}, ["vocab_size"]),
    "a missing size": ("llama", {"vocab_size": None}, ["vocab_size", "none"]),
    "a negative epsilon": ("llama", {"rms_norm_eps": -1e-5}, ["rms_norm_eps"]),
    "a flag that is none": ("llama", {"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "yes"]),
    "types of the wrong length": ("qwen3", {"layer_types": ["full_attention"] * 2}, ["layer_types", "3", "2"]),
    "types that are unknown": ("qwen3", {"layer_types": ["chunked_attention"] * 3}, ["chunked_attention"]),
    "sliding without a window": (
        "qwen3",
        {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": False},
        ["sliding_window", "use_sliding_window"],
    ),
    "Gemma without a window": ("gemma2", {"sliding_window": None}, ["sliding_window"]),
    "a window of zero": ("mistral", {"sliding_window": 0}, ["sliding_window"]),
    "types against Mistral's window": ("mistral", {"layer_types": ["full_attention"] * 3}, ["layer_types"]),
    "types against Llama": ("llama", {"layer_types": ["sliding_attention"] * 3}, ["layer_types"]),
    "two windows": ("gemma2", {"sliding_window_size": 9}, ["sliding_window_size", "9", "5"]),
    "two patterns": ("gemma3_text", {"_sliding_window_pattern": 3}, ["_sliding_window_pattern", "3"]),
    "attention in both directions": ("gemma3_text", {"use_bidirectional_attention": True}, ["bidirectional"]),
    "Llama's soft-cap": ("llama", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping"]),
    "Gemma 3's soft-cap of scores": ("gemma3_text", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping"]),
    "Qwen 2's bias": ("qwen2", {"attention_bias": True}, ["attention_bias"]),
    "Mistral's bias": ("mistral", {"mlp_bias": True}, ["mlp_bias"]),
    "dropout": ("llama", {"attention_dropout": 0.1}, ["attention_dropout", "0.1"]),
    "tensor parallel pretraining": ("llama", {"pretraining_tp": 2}, ["pretraining_tp"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    family, overrides, mentions = REFUSED[name]
    refused(lambda: config_from_hf(hf(family, **overrides)), *mentions, "config.json")


def test_layers_and_windows():
    assert windows(config_from_hf(hf("mistral"))) == [7, 7, 7]
    assert windows(config_from_hf(hf("mistral", sliding_window=...))) == [4096] * 3
    assert windows(config_from_hf(hf("mistral", sliding_window=None))) == [None] * 3
    assert windows(config_from_hf(hf("qwen2"))) == [None, 6, 6, 6]
    assert windows(config_from_hf(hf("qwen2", use_sliding_window=False))) == [None] * 4
    assert windows(
        config_from_hf(hf("qwen3", layer_types=["sliding_attention", "full_attention", "full_attention"]))
    ) == [6, None, None]
    assert windows(config_from_hf(hf("gemma2"))) == [5, None, 5, None, 5]
    assert windows(config_from_hf(hf("gemma3_text"))) == [5] * 5 + [None] + [5] * 2
    assert windows(config_from_hf(hf("gemma3_text", sliding_window_pattern=2, num_hidden_layers=4))) == [5, None] * 2


def test_stages_are_periods_with_a_remainder():
    gemma = config_from_hf(hf("gemma3_text", num_hidden_layers=14))
    assert [(stage.repeats, len(stage.kinds)) for stage in gemma.stages] == [(2, 6), (2, 1)]
    assert gemma.num_layers == 14
    assert [stage.repeats for stage in config_from_hf(hf()).stages] == [3]


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_of_absent_keys(family):
    defaults = {"llama": (False, 6, 6), "mistral": (False, 8, None), "qwen2": (False, 32, None)}
    defaults |= {"qwen3": (False, 32, 128), "gemma2": (True, 4, 256), "gemma3_text": (True, 4, 256)}
    tied, kv, head_dim = defaults[family]
    sizes = {"num_attention_heads": 32, "hidden_size": 64} if family not in ("llama",) else {}
    absent = ["tie_word_embeddings", "num_key_value_heads", "head_dim", "rms_norm_eps", "query_pre_attn_scalar"]
    config = config_from_hf(hf(family, **sizes, **dict.fromkeys(absent, ...)))
    assert (config.tie_word_embeddings, config.num_kv_heads) == (tied, kv)
    assert config.head_dim == (head_dim or 2)
    assert config.norm_eps == 1e-6
    assert config.attention_scale == pytest.approx((256 if family.startswith("gemma") else config.head_dim) ** -0.5)


def test_soft_caps():
    gemma2 = config_from_hf(hf("gemma2", final_logit_softcapping=..., attn_logit_softcapping=...))
    assert (gemma2.logit_softcap, kinds(gemma2)[0].softcap) == (30.0, 50.0)
    off = config_from_hf(hf("gemma2", final_logit_softcapping=None, attn_logit_softcapping=None))
    assert (off.logit_softcap, kinds(off)[0].softcap) == (None, None)
    assert config_from_hf(hf("gemma3_text", final_logit_softcapping=...)).logit_softcap is None


def test_activations():
    assert kinds(config_from_hf(hf(hidden_act="swish")))[0].activation == "silu"
    assert kinds(config_from_hf(hf(hidden_act="gelu_pytorch_tanh")))[0].activation == "gelu_tanh"
    old = hf("gemma2", hidden_activation=None, hidden_act="gelu_pytorch_tanh")
    assert kinds(config_from_hf(old))[0].activation == "gelu_tanh"
    both = hf("gemma2", hidden_act="gelu")  # `hidden_activation` is the one that is read
    assert kinds(config_from_hf(both))[0].activation == "gelu_tanh"


def test_biases():
    assert [getattr(config_from_hf(hf("qwen2")), name) for name in ("qkv_bias", "output_bias", "mlp_bias")] == [
        True,
        False,
        False,
    ]
    llama = config_from_hf(hf(attention_bias=True, mlp_bias=True))
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)
    assert config_from_hf(hf("qwen3", attention_bias=True)).output_bias


PUBLISHED = sorted(path.stem for path in (CASES / "configs").glob("*.json"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_understood(name):
    published = json.loads((CASES / "configs" / f"{name}.json").read_text())
    config = config_from_hf(published)
    assert config.num_layers == published["num_hidden_layers"]
    assert config.tie_word_embeddings
    assert config.attention_scale == pytest.approx(config.head_dim**-0.5)
    assert all(isinstance(kind, LayerKind) for kind in kinds(config))
