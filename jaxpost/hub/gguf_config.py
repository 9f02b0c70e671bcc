"""A GGUF file's metadata as Hugging Face's config.json and generation_config.json."""

from typing import Any

from jaxpost.core.errors import InputError, suggestion
from jaxpost.hub.gguf_families import ARCHITECTURES
from jaxpost.hub.gguf_file import GgufFile, Metadata
from jaxpost.hub.gguf_rope import SCALING, rope_scaling

# Keys below the architecture's name that are read here, and the two that change no result.
KNOWN_KEYS = frozenset(
    "vocab_size context_length embedding_length block_count feed_forward_length expert_count expert_used_count "
    "attention.head_count attention.head_count_kv attention.key_length attention.value_length attention.causal "
    "attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base tensor_data_layout".split()
)


def hf_config(file: GgufFile) -> dict[str, Any]:
    """config.json (transformers 4's spelling, which transformers 5 and others read too) of a GGUF file.

    Tied embeddings are told by the absence of `output.weight`, biases by the presence of theirs. The padding id is left
    out: transformers would freeze that row of the embedding, and it is often the end-of-turn token.

    Raises:
      InputError: another architecture, missing metadata, or metadata that this model cannot honour.
    """
    meta = file.metadata
    name = check_architecture(meta)
    _check_neutral(meta, name)
    heads, hidden = meta.size(f"{name}.attention.head_count"), meta.size(f"{name}.embedding_length")
    head_dim = _head_dim(meta, name, hidden, heads)
    theta = meta.decimal(f"{name}.rope.freq_base", 10000.0)
    return {
        "architectures": [ARCHITECTURES[name].model_class],
        "model_type": name,
        "vocab_size": _vocab_size(file, name),
        "hidden_size": hidden,
        "intermediate_size": meta.size(f"{name}.feed_forward_length"),
        "num_hidden_layers": meta.size(f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.size(f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": meta.size(f"{name}.context_length"),
        "rms_norm_eps": meta.decimal(f"{name}.attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(file, name, head_dim, theta),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_biases(file, name),
        "bos_token_id": meta.optional("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": meta.required("tokenizer.ggml.eos_token_id", int),
        "torch_dtype": "float32",
    }


def _biases(file: GgufFile, name: str) -> dict[str, bool]:
    """The flags of config.json that the architecture has; what the file holds besides is refused with the tensors."""
    found = {
        flag: any(part in tensor and tensor.endswith(".bias") for tensor in file.tensors)
        for flag, part in (("attention_bias", ".attn_"), ("mlp_bias", ".ffn_"))
    }
    if ARCHITECTURES[name].qkv_bias is not None:
        del found["attention_bias"]
    if not ARCHITECTURES[name].mlp_bias:
        del found["mlp_bias"]
    return found


def generation_config(meta: Metadata) -> dict[str, Any]:
    """generation_config.json: begin, padding, and every token that ends a turn, a message or the text."""
    stops = [meta.required("tokenizer.ggml.eos_token_id", int)]
    for name in ("eot", "eom"):
        stop = meta.optional(f"tokenizer.ggml.{name}_token_id", int)
        if stop is not None and stop not in stops:
            stops.append(stop)
    ids = {
        "bos_token_id": meta.optional("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": meta.optional("tokenizer.ggml.padding_token_id", int),
    }
    return {name: value for name, value in ids.items() if value is not None}


def check_architecture(meta: Metadata) -> str:
    """The architecture; refuses what is no language model of the table, and every key that is not understood."""
    name = meta.required("general.architecture", str)
    if name not in ARCHITECTURES:
        known, hint = ", ".join(ARCHITECTURES), suggestion(name, ARCHITECTURES)
        raise InputError(f'{meta.path}: `general.architecture` must be one of {known}; got "{name}".{hint}')
    kind = meta.optional("general.type", str) or "model"
    if kind != "model":
        raise InputError(f'{meta.path}: `general.type` must be "model"; got "{kind}".')
    below = {key.removeprefix(f"{name}.") for key in meta.fields if key.startswith(f"{name}.")}
    unknown = sorted(key for key in below - KNOWN_KEYS if not key.startswith(SCALING))
    if unknown:
        raise InputError(f"{meta.path}: metadata key `{name}.{unknown[0]}` is not supported for {name} models.")
    return name


def _check_neutral(meta: Metadata, name: str) -> None:
    for key in (f"{name}.expert_count", f"{name}.expert_used_count"):
        if count := meta.optional(key, int):
            raise InputError(f"{meta.path}: `{key}` must be 0 (no mixture of experts); got {count}.")
    if meta.optional(f"{name}.attention.causal", bool) is False:
        raise InputError(f"{meta.path}: `{name}.attention.causal` must be true; got false.")


def _head_dim(meta: Metadata, name: str, hidden: int, heads: int) -> int:
    width = meta.size(f"{name}.attention.key_length", hidden // heads)
    if width % 2 or (hidden % heads and f"{name}.attention.key_length" not in meta.fields):
        raise InputError(
            f"{meta.path}: the head width must be even and whole; got {hidden} / {heads} or key_length {width}."
        )
    for key in (f"{name}.attention.value_length", f"{name}.rope.dimension_count"):
        if (other := meta.size(key, width)) != width:
            raise InputError(f"{meta.path}: `{key}` must be the head width {width}; got {other}.")
    return width


def _vocab_size(file: GgufFile, name: str) -> int:
    """Rows of the embedding; the tokenizer may name fewer."""
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{file.path}: a {name} model of this metadata lacks tensors: `token_embd.weight`.")
    rows = int(file.tensors["token_embd.weight"].shape[-1])
    return file.metadata.size(f"{name}.vocab_size", rows)
