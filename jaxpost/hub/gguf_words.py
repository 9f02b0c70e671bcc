"""How byte-level BPE tokenizers cut text into words, by the names that GGUF's `tokenizer.ggml.pre` gives to the rules.

The rules are those of the published tokenizers; `default` is llama.cpp's own, for files whose rule is not known.
"""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """How one family cuts text before the merges, and what else its published tokenizer does."""

    steps: tuple[Json, ...]
    normalizer: Json | None = None
    ignore_merges: bool = False  # a word that is itself a token is taken whole
    add_bos: bool = False  # where the file does not say


def _split(regex: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool) -> Json:
    """Bytes as printable characters; with `use_regex` GPT-2's words first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Llama 3 and Qwen 2 differ in how many digits stay together.
_CASELESS_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_GPT2 = PreTokenizer(steps=(_byte_level(use_regex=True),))
_DIGITS = PreTokenizer(steps=({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)))
_LLAMA3 = PreTokenizer(
    steps=(_split(_CASELESS_WORDS % "{1,3}"), _byte_level(use_regex=False)), ignore_merges=True, add_bos=True
)
_QWEN2 = PreTokenizer(steps=(_split(_CASELESS_WORDS % ""), _byte_level(use_regex=False)), normalizer={"type": "NFC"})
_DEFAULT = PreTokenizer(
    steps=(
        _split(r"[\p{P}\$\+<=>\^~\|]+"),
        _split(GPT2_WORDS),
        _split(r"\p{N}+"),
        _split("[0-9][0-9][0-9]"),
        _byte_level(use_regex=False),
    )
)
PRE_TOKENIZERS = {
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "default": _DEFAULT,
}
