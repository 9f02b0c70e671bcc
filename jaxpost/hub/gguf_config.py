"""The Llama architecture's GGUF metadata as Hugging Face's config.json and generation_config.json."""

from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.hub.gguf_file import GgufFile, Metadata
from jaxpost.hub.gguf_rope import rope_scaling

ARCHITECTURE = "llama"

# Keys that are read here or in gguf_rope, and the two that change no result.
KNOWN_KEYS = frozenset(
    "llama." + key
    for key in (
        "vocab_size context_length embedding_length block_count feed_forward_length expert_count expert_used_count "
        "attention.head_count attention.head_count_kv attention.key_length attention.value_length attention.causal "
        "attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor "
        "rope.scaling.finetuned tensor_data_layout"
    ).split()
)


def llama_config(file: GgufFile) -> dict[str, Any]:
    """config.json (transformers 4's spelling, which transformers 5 and others read too) of a Llama GGUF file.

    Tied embeddings are told by the absence of `output.weight`, biases by the presence of theirs. The padding id is left
    out: transformers would freeze that row of the embedding, and it is often the end-of-turn token.

    Raises:
      InputError: another architecture, missing metadata, or metadata that this model cannot honour.
    """
    meta = file.metadata
    check_architecture(meta)
    _check_neutral(meta)
    heads, hidden = meta.size("llama.attention.head_count"), meta.size("llama.embedding_length")
    head_dim = _head_dim(meta, hidden, heads)
    theta = meta.decimal("llama.rope.freq_base", 10000.0)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _vocab_size(file),
        "hidden_size": hidden,
        "intermediate_size": meta.size("llama.feed_forward_length"),
        "num_hidden_layers": meta.size("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.size("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": meta.size("llama.context_length"),
        "rms_norm_eps": meta.decimal("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(file, head_dim, theta),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": any(".attn_" in name and name.endswith(".bias") for name in file.tensors),
        "mlp_bias": any(".ffn_" in name and name.endswith(".bias") for name in file.tensors),
        "bos_token_id": meta.optional("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": meta.required("tokenizer.ggml.eos_token_id", int),
        "torch_dtype": "float32",
    }


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


def check_architecture(meta: Metadata) -> None:
    """Refuse what is no Llama language model, and every key of the architecture that is not understood."""
    name = meta.required("general.architecture", str)
    if name != ARCHITECTURE:
        raise InputError(f'{meta.path}: `general.architecture` must be "{ARCHITECTURE}"; got "{name}".')
    kind = meta.optional("general.type", str) or "model"
    if kind != "model":
        raise InputError(f'{meta.path}: `general.type` must be "model"; got "{kind}".')
    unknown = sorted({key for key in meta.fields if key.startswith("llama.")} - KNOWN_KEYS)
    if unknown:
        raise InputError(f"{meta.path}: metadata key `{unknown[0]}` is not supported for Llama models.")


def _check_neutral(meta: Metadata) -> None:
    for key in ("llama.expert_count", "llama.expert_used_count"):
        if count := meta.optional(key, int):
            raise InputError(f"{meta.path}: `{key}` must be 0 (no mixture of experts); got {count}.")
    if meta.optional("llama.attention.causal", bool) is False:
        raise InputError(f"{meta.path}: `llama.attention.causal` must be true; got false.")


def _head_dim(meta: Metadata, hidden: int, heads: int) -> int:
    width = meta.size("llama.attention.key_length", hidden // heads)
    if width % 2 or (hidden % heads and "llama.attention.key_length" not in meta.fields):
        raise InputError(
            f"{meta.path}: the head width must be even and whole; got {hidden} / {heads} or key_length {width}."
        )
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (other := meta.size(key, width)) != width:
            raise InputError(f"{meta.path}: `{key}` must be the head width {width}; got {other}.")
    return width


def _vocab_size(file: GgufFile) -> int:
    """Rows of the embedding; the tokenizer may name fewer."""
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{file.path}: a Llama of this metadata lacks tensors: `token_embd.weight`.")
    rows = int(file.tensors["token_embd.weight"].shape[-1])
    return file.metadata.size("llama.vocab_size", rows)
