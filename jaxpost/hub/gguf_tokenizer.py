"""A byte-level BPE tokenizer out of GGUF metadata, as Hugging Face's tokenizer.json and tokenizer_config.json.

GGUF keeps the vocabulary and the merges, and of the rule that cuts text into words only a name (`tokenizer.ggml.pre`).
"""

from typing import Any

from jaxpost.core.errors import InputError, suggestion
from jaxpost.hub.gguf_file import Metadata
from jaxpost.hub.gguf_words import PRE_TOKENIZERS, PreTokenizer

Json = dict[str, Any]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # llama.cpp's token types of byte-level vocabularies
NAMED_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

# Read here or by gguf_config, or without influence on byte-level BPE (scores belong to unigram vocabularies).
KNOWN_KEYS = frozenset(
    "tokenizer.ggml." + key
    for key in (
        "model pre tokens token_type merges scores bos_token_id eos_token_id eot_token_id eom_token_id "
        "unknown_token_id padding_token_id seperator_token_id mask_token_id cls_token_id add_bos_token add_eos_token "
        "add_sep_token add_space_prefix remove_extra_whitespaces fim_pre_token_id fim_suf_token_id fim_mid_token_id "
        "fim_pad_token_id fim_rep_token_id fim_sep_token_id prefix_token_id suffix_token_id middle_token_id"
    ).split()
)


def tokenizer_json(meta: Metadata, *, vocab_size: int) -> Json:
    """tokenizer.json: normaliser, words, byte-level BPE, added tokens, and BOS / EOS where the file asks for them.

    Control and unknown tokens become special added tokens, user-defined ones plain added tokens; tokens marked unused
    (padding of the embedding) are left out.

    Raises:
      InputError: another tokenizer model, an unknown pre-tokenizer, missing or inconsistent vocabulary.
    """
    pre = _pre_tokenizer(meta)
    tokens, types = _tokens(meta, vocab_size)
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    added = [
        _added_token(i, token, special=kind != USER_DEFINED)
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": pre.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre.steps)},
        "post_processor": _post_processor(meta, pre, tokens),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocab,
            "merges": _merges(meta, vocab),
        },
    }


def tokenizer_config(meta: Metadata, tokenizer: Json, *, max_length: int) -> Json:
    """tokenizer_config.json: the named special tokens, the other special ones, the chat template.

    The class is the generic one: a named class of transformers would put its own words in place of tokenizer.json's.
    """
    by_id = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    ids = {name: _token_id(meta, key, by_id) for name, key in NAMED_TOKENS.items()}
    for key in ("eot", "eom"):  # they go to generation_config.json, but here is the vocabulary to check them
        _token_id(meta, key, by_id)
    named = {name: by_id[i] for name, i in ids.items() if i is not None}
    special = [token["content"] for token in tokenizer["added_tokens"] if token["special"]]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "additional_special_tokens": [token for token in special if token not in named.values()],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    template = _chat_template(meta)
    return config if template is None else config | {"chat_template": template}


def _pre_tokenizer(meta: Metadata) -> PreTokenizer:
    model = meta.required("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise InputError(f'{meta.path}: `tokenizer.ggml.model` must be "gpt2" (byte-level BPE); got "{model}".')
    name = meta.required("tokenizer.ggml.pre", str)
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        hint = suggestion(name, PRE_TOKENIZERS)
        raise InputError(f'{meta.path}: `tokenizer.ggml.pre` must be one of {known}; got "{name}".{hint}')
    _check_keys(meta)
    return PRE_TOKENIZERS[name]


def _check_keys(meta: Metadata) -> None:
    unknown = sorted({key for key in meta.fields if key.startswith("tokenizer.ggml.")} - KNOWN_KEYS)
    if unknown:
        raise InputError(f"{meta.path}: metadata key `{unknown[0]}` is not supported for byte-level BPE.")
    for flag in ("add_space_prefix", "add_sep_token", "remove_extra_whitespaces"):
        if meta.optional(f"tokenizer.ggml.{flag}", bool):
            raise InputError(f"{meta.path}: `tokenizer.ggml.{flag}` must be false for byte-level BPE; got true.")


def _tokens(meta: Metadata, vocab_size: int) -> tuple[list[str], list[int]]:
    tokens = meta.required_list("tokenizer.ggml.tokens", str)
    types = meta.required_list("tokenizer.ggml.token_type", int)
    where = f"{meta.path}: `tokenizer.ggml.tokens`"
    if len(tokens) > vocab_size:
        raise InputError(f"{where} must be at most the embedding's {vocab_size} rows; got {len(tokens)} tokens.")
    if len(types) != len(tokens):
        raise InputError(f"{where} must be as many as `tokenizer.ggml.token_type`; got {len(tokens)} and {len(types)}.")
    seen: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if not NORMAL <= kind <= UNUSED:
            raise InputError(
                f"{meta.path}: type {kind} of token {i} ({token!r}) is not one of byte-level BPE (1 to 5)."
            )
        if not token or seen.setdefault(token, i) != i:
            raise InputError(f"{where} must be distinct and not empty; got {token!r} at {seen.get(token, i)} and {i}.")
    return tokens, types


def _merges(meta: Metadata, vocab: dict[str, int]) -> list[list[str]]:
    out = []
    for i, merge in enumerate(meta.required_list("tokenizer.ggml.merges", str)):
        pair = merge.split(" ")
        if len(pair) != 2 or any(token not in vocab for token in (*pair, "".join(pair))):
            raise InputError(
                f"{meta.path}: merge {i} of `tokenizer.ggml.merges` must be two tokens of the vocabulary "
                f"that join to a third; got {merge!r}."
            )
        out.append(pair)
    return out


def _added_token(token_id: int, content: str, *, special: bool) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **flags, "special": special}


def _post_processor(meta: Metadata, pre: PreTokenizer, tokens: list[str]) -> Json | None:
    """Puts BOS before and EOS behind each text."""
    names = {
        "bos": _flag(meta, "add_bos_token", pre.add_bos),
        "eos": _flag(meta, "add_eos_token", False),
    }
    by_id = dict(enumerate(tokens))
    ids: dict[str, int] = {}
    for name in (name for name, wanted in names.items() if wanted):
        token_id = _token_id(meta, name, by_id)
        if token_id is None:
            raise InputError(f"{meta.path}: `tokenizer.ggml.add_{name}_token` needs `tokenizer.ggml.{name}_token_id`.")
        ids[name] = token_id
    if not ids:
        return None

    def around(sequence: str, type_id: int) -> list[Json]:
        mark = {name: [{"SpecialToken": {"id": by_id[i], "type_id": type_id}}] for name, i in ids.items()}
        return [*mark.get("bos", []), {"Sequence": {"id": sequence, "type_id": type_id}}, *mark.get("eos", [])]

    special = {by_id[i]: {"id": by_id[i], "ids": [i], "tokens": [by_id[i]]} for i in ids.values()}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": special,
    }


def _flag(meta: Metadata, name: str, default: bool) -> bool:
    value = meta.optional(f"tokenizer.ggml.{name}", bool)
    return default if value is None else value


def _token_id(meta: Metadata, name: str, by_id: dict[int, str]) -> int | None:
    token_id = meta.optional(f"tokenizer.ggml.{name}_token_id", int)
    if token_id is not None and token_id not in by_id:
        raise InputError(
            f"{meta.path}: `tokenizer.ggml.{name}_token_id` must be a token of the vocabulary; got {token_id}."
        )
    return token_id


def _chat_template(meta: Metadata) -> str | list[Json] | None:
    """The default template, or all named ones as transformers lists them."""
    default = meta.optional("tokenizer.chat_template", str)
    prefix = "tokenizer.chat_template."
    names = sorted(key.removeprefix(prefix) for key in meta.fields if key.startswith(prefix))
    if not names:
        return default
    listed = [] if default is None else [{"name": "default", "template": default}]
    return listed + [{"name": name, "template": meta.required(prefix + name, str)} for name in names]
