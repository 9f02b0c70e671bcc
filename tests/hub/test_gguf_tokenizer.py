"""The tokenizer rebuilt from GGUF metadata: words by `tokenizer.ggml.pre`, added tokens, BOS, chat template."""

import json
import random
import unicodedata

import pytest
import regex
import tiny
import tiny_gguf
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from jaxpost.cli import main
from jaxpost.hub.gguf_words import PRE_TOKENIZERS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The expressions that llama.cpp applies one after the other, each to the pieces that the one before left.
LLAMA_CPP = {
    "smollm": (r"\p{N}", GPT2),
    "starcoder": (r"\p{N}", GPT2),
    "refact": (r"\p{N}", GPT2),
    "codeshell": (r"\p{N}", GPT2),
    "gpt-2": (GPT2,),
    "llama-bpe": (CONTRACTIONS + WORDS % "{1,3}",),
    "llama3": (CONTRACTIONS + WORDS % "{1,3}",),
    "llama-v3": (CONTRACTIONS + WORDS % "{1,3}",),
    "qwen2": (CONTRACTIONS + WORDS % "",),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
PIECES = (
    "the", "ab", "AB", " a", "1", "12", "123", "2024", "٣", "x²", "Ⅷ", "'s", "'S", "'ll", "don't", "(", ")", "==", "->",
    " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", ".", ",", "!?", "$", "+", "|", "~", "`", "_", "é", "e\u0301", "ß",
    "日本", "語", "한국", "नमस्ते", "🙂", "👩\u200d🚀", "\u00a0", "\u2028", "\ufeff", "-", "–", "“", "”", "\x00", "\x7f",
)  # fmt: skip


def texts(seed, count=300):
    rng = random.Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(count)]


def split(text, expressions):
    """What every expression matches, and what lies between the matches, piece by piece."""
    pieces = [text]
    for expression in expressions:
        found = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(expression, piece):
                found += [piece[end : match.start()], match.group()]
                end = match.end()
            found.append(piece[end:])
        pieces = [piece for piece in found if piece]
    return pieces


def make(tmp_path, **changes):
    tiny_gguf.write(tmp_path / "tiny.gguf", **changes)
    assert main(["import", str(tmp_path / "tiny.gguf"), "--output", str(tmp_path / "out")]) == 0
    return Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_words_are_those_of_llama_cpp(tmp_path, pre):
    """Pre-tokenisation of random strings equals llama.cpp's expressions, as bytes (each piece spelled in bytes).

    Mutation: jaxpost/hub/gguf_words.py: `"individual_digits": True` -> `"individual_digits": False`
    """
    tokenizer = make(tmp_path, tokenizer__ggml__pre=pre)
    for text in texts(seed=len(pre)):
        if tokenizer.normalizer is not None:  # Qwen's published tokenizers compose first
            text = unicodedata.normalize("NFC", text)
        words = [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        assert words == split(text, LLAMA_CPP[pre]), repr(text)


@pytest.mark.parametrize(("pre", "words"), [("smollm", ["1", "2"]), ("gpt-2", ["12"]), ("llama-bpe", ["12"])])
def test_digits_stay_single_for_smollm(tmp_path, pre, words):
    """`12` is one token of the vocabulary; SmolLM must still see two digits."""
    assert make(tmp_path, tokenizer__ggml__pre=pre).encode("12", add_special_tokens=False).tokens == words


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "default"])
def test_round_trip(tmp_path, pre, seed):
    """Decoding what was encoded gives the text back, whatever the words."""
    tokenizer = make(tmp_path, tokenizer__ggml__pre=pre)
    for text in texts(seed, 100):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_qwen_composes_characters(tmp_path):
    tokenizer = make(tmp_path, tokenizer__ggml__pre="qwen2")
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


def test_token_types(tmp_path):
    """Control tokens are special, user-defined ones are whole but not special, unused rows are no tokens."""
    tokenizer = make(tmp_path)
    tokens, _ = tiny_gguf.vocabulary(304)
    special = set(tiny_gguf.SPECIALS)
    added = tokenizer.get_added_tokens_decoder()
    assert {i: token.content for i, token in added.items()} == {
        i: token for i, token in enumerate(tokens) if token in special | {"<tool>", "~~~"}
    }
    assert {token.content for token in added.values() if token.special} == special
    vocab = tokenizer.get_vocab()
    assert vocab == {token: i for i, token in enumerate(tokens) if not token.startswith("[PAD")}
    ids = tokenizer.encode("a<|im_end|>1~~~~<tool>").ids
    assert [tokens[i] for i in ids] == ["a", "<|im_end|>", "1", "~~~", "~", "<tool>"]


@pytest.mark.parametrize(
    ("pre", "add_bos", "add_eos", "wanted"),
    [
        ("smollm", None, None, ["a"]),
        ("smollm", True, None, ["<|im_start|>", "a"]),
        ("smollm", True, True, ["<|im_start|>", "a", "<|im_end|>"]),
        ("llama-bpe", None, None, ["<|im_start|>", "a"]),
        ("llama-bpe", False, True, ["a", "<|im_end|>"]),
    ],
)
def test_begin_and_end(tmp_path, pre, add_bos, add_eos, wanted):
    """BOS and EOS as the file says; Llama 3's files may leave BOS to its rule."""
    keys = {"tokenizer__ggml__add_bos_token": add_bos, "tokenizer__ggml__add_eos_token": add_eos}
    tokenizer = make(tmp_path, tokenizer__ggml__pre=pre, **keys)
    assert tokenizer.encode("a").tokens == wanted
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a").tokens() == wanted
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "gpt-2"])
def test_transformers_keeps_the_rule(tmp_path, pre):
    """AutoTokenizer gives tokenizer.json's ids and the named tokens (a model class would bring its own words)."""
    tokenizer = make(tmp_path, tokenizer__ggml__pre=pre)
    auto = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in texts(7):
        assert auto(text)["input_ids"] == tokenizer.encode(text).ids, repr(text)
    assert (auto.bos_token_id, auto.eos_token_id, auto.unk_token_id, auto.pad_token_id) == (1, 2, 0, 2)
    assert set(auto.all_special_tokens) == set(tiny_gguf.SPECIALS)
    assert auto.model_max_length == 256
    row = [{"role": "user", "content": "a 12"}]
    assert auto.apply_chat_template(row, tokenize=False) == "<|im_start|>user\na 12<|im_end|>\n"


def test_named_templates(tmp_path):
    """All named templates arrive; without any there is none."""
    make(tmp_path, tokenizer__chat_template__tool_use="{{ 'tools' }}")
    auto = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert auto.chat_template == {"default": tiny.CHATML, "tool_use": "{{ 'tools' }}"}


def test_no_template(tmp_path):
    make(tmp_path, tokenizer__chat_template=None)
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
