"""Imported Qwen2 and Qwen3 files against transformers' own GGUF loader (logits) and the published rule (ids)."""

import random

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny_gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tolerances import FLOAT32_CPU
from transformers import AutoModelForCausalLM, AutoTokenizer

import jaxpost
from jaxpost.cli import main

ATOL = FLOAT32_CPU["logits"].absolute
# transformers reads no head width from these files: hidden size by heads for Qwen2, 128 for Qwen3.
SIZES = {
    "qwen2": tiny_gguf.SIZES | {"heads": 6, "kv": 3, "head_dim": 16},
    "qwen3": tiny_gguf.SIZES | {"heads": 2, "kv": 1, "head_dim": 128},
}
# The expression of Qwen's published tokenizer.json.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = (
    "the", " ab", "ab", "12", " 1", "2024", "'S", "'ll", " a", "  ", "\n\n", "\r\n", ".\n", ",", "!?", "é", "e\u0301",
    "Å", "A\u030a", "日本", "한", "🙂", "\u00a0", "\ufeff", "<|im_end|>", "<tool>", "<|im_en", "~~~", "٣", "x²", "\t",
)  # fmt: skip


def make(tmp_path, architecture, **changes):
    tiny_gguf.write(tmp_path / "tiny.gguf", architecture=architecture, sizes=SIZES[architecture], **changes)
    assert main(["import", str(tmp_path / "tiny.gguf"), "--output", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


@pytest.mark.parametrize("architecture, seed, tied", [("qwen2", 0, False), ("qwen2", 1, True), ("qwen3", 2, True)])
def test_logits_equal_transformers_gguf_loader(tmp_path, architecture, seed, tied):
    """Of our folder in transformers and in jaxpost: rows, biases, head norms, rope and configuration together.

    Mutation: jaxpost/hub/gguf_families.py: `model_class="Qwen2ForCausalLM", qkv_bias=True` -> `model_class="Qwen2ForCausalLM", qkv_bias=True, paired_rows=True`
    Mutation: jaxpost/hub/gguf_config.py: `meta.decimal(f"{name}.rope.freq_base", 10000.0)` -> `10000.0`
    """  # noqa: E501
    folder = make(tmp_path, architecture, seed=seed, tied=tied)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=oracle.torch.float32).eval()
    tokens = np.random.default_rng(seed).integers(0, SIZES[architecture]["vocab"], (2, 23), dtype=np.int32)
    model = jaxpost.load(folder)
    ours = np.asarray(jaxpost.forward(model.config, model.params, jnp.asarray(tokens)))
    for row, got in zip(tokens, ours, strict=True):
        want = oracle.logits(theirs, row)
        np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)
        np.testing.assert_allclose(oracle.logits(oracle.load(folder), row), want, rtol=0, atol=ATOL)
    assert 0.3 < ours.std() < 3
    assert (theirs.config.eos_token_id, theirs.config.bos_token_id) == (2, 1)


def published_rule():
    """Byte-level BPE after NFC and the published words; made of nothing of jaxpost."""
    words, kinds = tiny_gguf.vocabulary(304)
    merges = [tuple(merge.split(" ")) for merge in tiny_gguf.MERGES]
    kept = {word: i for i, (word, kind) in enumerate(zip(words, kinds, strict=True)) if kind != tiny_gguf.UNUSED}
    tokenizer = Tokenizer(models.BPE(vocab=kept, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    for word, kind in zip(words, kinds, strict=True):
        if kind == tiny_gguf.CONTROL:
            tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True)])
        elif kind == tiny_gguf.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(word, normalized=False)])
    return tokenizer


@pytest.mark.parametrize("seed", range(3))
def test_ids_equal_the_published_rule(tmp_path, seed):
    """Random texts, as tokenizers reads the folder and as transformers does; no BOS is put before.

    Mutation: jaxpost/hub/gguf_words.py: `_split(_CASELESS_WORDS % "")` -> `_split(_CASELESS_WORDS % "{1,3}")`
    """
    folder, rng = make(tmp_path, "qwen2"), random.Random(seed)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 14))) for _ in range(400)]
    want = [encoding.ids for encoding in published_rule().encode_batch(texts)]
    assert [e.ids for e in Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)] == want
    assert AutoTokenizer.from_pretrained(folder)(texts)["input_ids"] == want


def test_special_tokens_and_template(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make(tmp_path, "qwen3", tokenizer__ggml__add_bos_token=False))
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert set(tokenizer.all_special_tokens) == set(tiny_gguf.SPECIALS)
    chat = [{"role": "user", "content": "a 12"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>user\na 12<|im_end|>\n"
