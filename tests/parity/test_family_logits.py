"""Logits of every family and option equal transformers' within 1e-4: padded, packed, beyond the window."""

import json

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from tolerances import FLOAT32_CPU

import jaxpost

LENGTH = 29  # beyond every window, no multiple of anything

OPTIONS = {
    "llama": {
        "plain": {},
        "tied": {"tie_word_embeddings": True},
        "llama3 rope": {"rope_scaling": tiny.LLAMA3_ROPE, "max_position_embeddings": 512},
        "linear rope": {"rope_scaling": tiny.LINEAR_ROPE},
        "biases": {"attention_bias": True, "mlp_bias": True},
        "one kv head": {"num_key_value_heads": 1},
        "odd heads": {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 6},
        "as many kv heads": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None},
        "another base": {"rope_theta": 1e6, "rms_norm_eps": 1e-2},
        "gelu": {"hidden_act": "gelu_pytorch_tanh"},
        "one layer": {"num_hidden_layers": 1},
    },
    "mistral": {
        "window": {},
        "no window": {"sliding_window": None},
        "tied, one kv head": {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": None},
        "window of one": {"sliding_window": 1},
    },
    "qwen2": {
        "upper windows": {},
        "no window": {"use_sliding_window": False},
        "tied": {"tie_word_embeddings": True, "num_attention_heads": 9, "num_key_value_heads": 3},
        "every layer windowed": {"max_window_layers": 0},
        "listed types": {"layer_types": ["sliding_attention", "full_attention"] * 2},
        "linear rope": {"rope_scaling": tiny.LINEAR_ROPE},
    },
    "qwen3": {
        "upper windows": {},
        "no window, tied": {"use_sliding_window": False, "tie_word_embeddings": True},
        "biases": {"attention_bias": True},
        "odd heads": {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 10},
    },
    "gemma2": {
        "plain": {},
        "no soft-caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "untied": {"tie_word_embeddings": False},
        "even layers, biases": {"num_hidden_layers": 4, "attention_bias": True},
        "one kv head": {"num_key_value_heads": 1, "num_attention_heads": 9, "query_pre_attn_scalar": 31},
        "llama3 rope": {"rope_scaling": tiny.LLAMA3_ROPE, "max_position_embeddings": 512},
    },
    "gemma3_text": {
        "remainder": {},
        "two periods and a remainder": {"num_hidden_layers": 14},
        "no cap, untied": {"final_logit_softcapping": None, "tie_word_embeddings": False},
        "pattern of three": {"sliding_window_pattern": 3},
        "linear rope on full layers": {"rope_scaling": tiny.LINEAR_ROPE},
        "one kv head, biases": {"num_key_value_heads": 1, "num_attention_heads": 4, "attention_bias": True},
    },
}
CASES = [(family, name) for family, options in OPTIONS.items() for name in options]


def rows(vocab, seed):
    """A batch of [tokens, segment ids]: a full row, right and left padding, three packed documents and padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(len(tiny.SPECIALS), vocab, (4, LENGTH), dtype=np.int32)
    segments = np.ones((4, LENGTH), np.int32)
    segments[1, 20:] = 0
    segments[2, :6] = 0
    segments[3] = np.repeat([1, 2, 3, 0], [11, 1, 14, 3])
    tokens[segments == 0] = tiny.PAD
    return tokens, segments


def documents(segments):
    """(row, positions) of every document."""
    return [(r, np.flatnonzero(row == d)) for r, row in enumerate(segments) for d in np.unique(row[row > 0])]


@pytest.mark.parametrize("spelling, seed", [(4, 0), (5, 1)])
@pytest.mark.parametrize("family, option", CASES, ids=[f"{family}: {name}" for family, name in CASES])
def test_logits_equal_transformers(tmp_path, family, option, spelling, seed):
    """Each document's logits equal those of the document alone; padding is finite."""
    folder = tiny.make(tmp_path, family, seed, spelling=spelling, **OPTIONS[family][option])
    model, theirs = jaxpost.load(folder), oracle.load(folder)
    tokens, segments = rows(model.config.vocab_size, seed)
    got = np.asarray(jaxpost.forward(model.config, model.params, jnp.asarray(tokens), jnp.asarray(segments)))
    assert np.isfinite(got).all()
    for row, at in documents(segments):
        expected = oracle.logits(theirs, tokens[row, at])
        np.testing.assert_allclose(got[row, at], expected, rtol=0, atol=FLOAT32_CPU["logits"].absolute)
    assert 0.3 < got.std() < 3, "logits of another order would make the tolerance mean something else"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_without_segment_ids_are_one_document_each(tmp_path, family):
    folder = tiny.make(tmp_path, family, seed=7)
    model, theirs = jaxpost.load(folder), oracle.load(folder)
    tokens = tiny.tokens({"vocab_size": model.config.vocab_size}, 7, rows=2, length=LENGTH)
    got = np.asarray(jaxpost.forward(model.config, model.params, jnp.asarray(tokens)))
    for row in range(2):
        expected = oracle.logits(theirs, tokens[row])
        np.testing.assert_allclose(got[row], expected, rtol=0, atol=FLOAT32_CPU["logits"].absolute)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_part_of_a_tiny_model_is_felt(tmp_path, family):
    """The test above can fail: changing any tensor by a tenth moves transformers' logits well beyond the tolerance."""
    folder = tiny.make(tmp_path, family, seed=2)
    theirs = oracle.load(folder)
    tokens = tiny.tokens({"vocab_size": 288}, 2, rows=1, length=LENGTH)[0]
    before = oracle.logits(theirs, tokens)
    for name, weight in theirs.named_parameters():
        kept = weight.data.clone()
        weight.data += 0.1 * kept.flip(0)
        moved = np.abs(oracle.logits(theirs, tokens) - before).max()
        weight.data = kept
        # A key's bias turns with its position: it shifts scores, though softmax undoes most of it.
        assert moved > 20 * FLOAT32_CPU["logits"].absolute, (name, moved)


MINIMAL = {"vocab_size": 288, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_defaults_of_absent_keys_are_transformers(family):
    """The least that a config.json may say: everything else is read from transformers' own defaults."""
    from jaxpost.models.families import config_from_hf

    hf = {**MINIMAL, "num_attention_heads": 32, "model_type": family}
    ours = config_from_hf(hf)
    theirs = oracle.transformers.AutoConfig.for_model(**hf)
    head_dim = getattr(theirs, "head_dim", None) or 64 // 32
    assert (ours.num_kv_heads, ours.head_dim) == (theirs.num_key_value_heads, head_dim)
    assert (ours.norm_eps, ours.tie_word_embeddings) == (theirs.rms_norm_eps, theirs.tie_word_embeddings)
    kinds = [kind for stage in ours.stages for _ in range(stage.repeats) for kind in stage.kinds]
    types = getattr(theirs, "layer_types", None) or ["sliding_attention" if family == "mistral" else "full"] * 7
    assert [kind.window for kind in kinds] == [theirs.sliding_window if "sliding" in t else None for t in types]
    for kind, name in zip(kinds, types, strict=True):
        rope = theirs.rope_parameters.get(name) or theirs.rope_parameters
        assert (kind.rope.theta, kind.rope.kind) == (rope["rope_theta"], rope["rope_type"])
    assert ours.logit_softcap == getattr(theirs, "final_logit_softcapping", None)
    assert {kind.softcap for kind in kinds} == {getattr(theirs, "attn_logit_softcapping", None)}
    assert ours.attention_scale == pytest.approx((getattr(theirs, "query_pre_attn_scalar", 0) or head_dim) ** -0.5)


def test_a_config_that_transformers_saves_is_read_alike(tmp_path):
    """Round trip through transformers' own writer, for every family."""
    from jaxpost.models.families import config_from_hf

    for family in tiny.FAMILIES:
        folder = tiny.make(tmp_path / family, family)
        oracle.transformers.AutoConfig.from_pretrained(folder).save_pretrained(tmp_path / "again")
        read = [json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "again")]
        assert config_from_hf(read[0]) == config_from_hf(read[1])
