"""Tiny random checkpoints of every family, in numpy and safetensors alone: the inputs of the hub and model tests.

`make(folder, "gemma2", seed=3)` writes config.json, weights, generation_config.json and a byte-level tokenizer with a
ChatML template. Weights are scaled so that logits are of order one and feel every part: norm weights are random, biases
are not zero, soft-caps bite, windows are shorter than the tests' sequences.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot|>")  # ids 0 to 3; bytes follow
PAD, START, END, EOT = range(4)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\\n' }}{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

COMMON = {
    "vocab_size": 288,
    "hidden_size": 36,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,  # small, so that a wrong base is seen in short sequences
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "initializer_range": 0.02,
    "use_cache": True,
}
_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 13,
    "final_logit_softcapping": 5.0,
    "attention_bias": False,
    "head_dim": 10,
    "tie_word_embeddings": True,
}
_QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu", "head_dim": 8, "attention_bias": False, "mlp_bias": False},
    "mistral": {"hidden_act": "silu", "head_dim": 8, "sliding_window": 7},
    "qwen2": {"hidden_act": "silu", "num_hidden_layers": 4, **_QWEN_WINDOW},
    "qwen3": {"hidden_act": "silu", "head_dim": 14, "attention_bias": False, **_QWEN_WINDOW},
    "gemma2": {"num_hidden_layers": 5, "sliding_window": 5, "attn_logit_softcapping": 1.5, **_GEMMA},
    "gemma3_text": {
        "num_hidden_layers": 8,  # one period of six and a remainder of two
        "sliding_window": 5,
        "sliding_window_pattern": 6,
        "rope_local_base_freq": 90.0,
        **_GEMMA,
    },
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "factor": 2.5}


def make(
    folder: str | Path,
    family: str = "llama",
    seed: int = 0,
    *,
    spelling: int = 4,
    dtype: str | Callable[[str], str] = "float32",
    shards: int = 1,
    template: str | None = CHATML,
    merges: tuple[tuple[str, str], ...] = (),
    **overrides: Any,
) -> Path:
    """Write a checkpoint folder and return it.

    Args:
      spelling: 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) or 5 (`rope_parameters`, `dtype`), as transformers.
      dtype: of all tensors, or a function from tensor name to dtype name.
      shards: number of weight files; more than one writes an index.
      template: the chat template, None for none.  merges: pairs of the byte-level BPE.
      overrides: keys of config.json in spelling 4.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    old = {**COMMON, **FAMILIES[family], **overrides}
    kind = dtype if callable(dtype) else lambda _: dtype
    weights = {name: w.astype(_numpy_dtype(kind(name))) for name, w in tensors(old, family, seed).items()}
    write_weights(folder, weights, shards)
    _write_json(folder / "config.json", config(family, spelling, dtype if isinstance(dtype, str) else "float32", old))
    _write_json(folder / "generation_config.json", {"eos_token_id": [END, EOT], "pad_token_id": PAD})
    write_tokenizer(folder, template, merges)
    return folder


def config(family: str, spelling: int, dtype: str, old: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of `old` (keys in spelling 4) as transformers `spelling` writes it."""
    head = {"architectures": [_ARCHITECTURES[family]], "model_type": family}
    if spelling == 4:
        return {**head, **old, "torch_dtype": dtype, "transformers_version": "4.46.0"}
    new = dict(old)
    theta, scaling = new.pop("rope_theta"), new.pop("rope_scaling", None)
    full = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
    new["rope_parameters"] = full
    if family == "gemma3_text":
        local = {"rope_theta": new.pop("rope_local_base_freq"), "rope_type": "default"}
        new["rope_parameters"] = {"full_attention": full, "sliding_attention": local}
        pattern, layers = new.pop("sliding_window_pattern"), new["num_hidden_layers"]
        kinds = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)]
        new = {**new, "layer_types": new.get("layer_types", kinds), "_sliding_window_pattern": pattern}
    return {**head, **new, "dtype": dtype, "transformers_version": "5.23.0"}


def tensors(old: Mapping[str, Any], family: str, seed: int) -> dict[str, np.ndarray]:
    """The float32 tensors by Hugging Face name; `lm_head.weight` only where untied."""
    rng = np.random.default_rng([seed, len(family)])
    d, vocab = old["hidden_size"], old["vocab_size"]
    gemma = family.startswith("gemma")

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def norm(size: int) -> np.ndarray:
        return normal(size, scale=0.3) + np.float32(0 if gemma else 1)

    tied = old["tie_word_embeddings"]
    out = {"model.embed_tokens.weight": normal(vocab, d, scale=1.5 * d**-0.5 if tied or gemma else 1.0)}
    for i in range(old["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name in _norm_names(gemma):
            out[f"{layer}{name}.weight"] = norm(d)
        for name, (rows, columns, bias) in _linears(old, family).items():
            out[f"{layer}{name}.weight"] = normal(rows, columns, scale=columns**-0.5)
            if bias:
                out[f"{layer}{name}.bias"] = normal(rows, scale=0.5)
        if family in ("qwen3", "gemma3_text"):
            for name in ("q_norm", "k_norm"):
                out[f"{layer}self_attn.{name}.weight"] = norm(_head_dim(old))
    out["model.norm.weight"] = norm(d)
    if not tied:
        out["lm_head.weight"] = normal(vocab, d, scale=1.5 * d**-0.5)
    return out


def _norm_names(gemma: bool) -> tuple[str, ...]:
    extra = ("pre_feedforward_layernorm", "post_feedforward_layernorm") if gemma else ()
    return ("input_layernorm", "post_attention_layernorm", *extra)


def _head_dim(old: Mapping[str, Any]) -> int:
    return old.get("head_dim") or old["hidden_size"] // old["num_attention_heads"]


def _linears(old: Mapping[str, Any], family: str) -> dict[str, tuple[int, int, bool]]:
    """(out, in, biased) of each linear layer of a block."""
    d, f = old["hidden_size"], old["intermediate_size"]
    q, kv = old["num_attention_heads"] * _head_dim(old), old["num_key_value_heads"] * _head_dim(old)
    bias, mlp = old.get("attention_bias", False), old.get("mlp_bias", False)
    inner = bias or family == "qwen2"
    return {
        "self_attn.q_proj": (q, d, inner),
        "self_attn.k_proj": (kv, d, inner),
        "self_attn.v_proj": (kv, d, inner),
        "self_attn.o_proj": (d, q, bias),
        "mlp.gate_proj": (f, d, mlp),
        "mlp.up_proj": (f, d, mlp),
        "mlp.down_proj": (d, f, mlp),
    }


def write_weights(folder: Path, weights: Mapping[str, np.ndarray], shards: int = 1) -> None:
    """model.safetensors, or `shards` files and their index."""
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    index: dict[str, str] = {}
    for part, chosen in enumerate(np.array_split(np.arange(len(names)), shards), 1):
        file = f"model-{part:05d}-of-{shards:05d}.safetensors"
        index.update({names[i]: file for i in chosen})
        save_file({names[i]: weights[names[i]] for i in chosen}, folder / file, metadata={"format": "pt"})
    size = sum(w.nbytes for w in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})


def make_adapter(
    folder: str | Path,
    base: str | Path,
    seed: int = 0,
    *,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    rank: int | Callable[[str], int] = 4,
    alpha: float = 8,
    layers: tuple[int, ...] | None = None,
    **overrides: Any,
) -> Path:
    """A PEFT LoRA adapter of the checkpoint `base`, with factors that change the logits; returns its folder.

    `rank` may depend on the module's name; `overrides` are keys of adapter_config.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    old = json.loads((Path(base) / "config.json").read_text())
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for i in range(old["num_hidden_layers"]) if layers is None else layers:
        for name, (rows, columns, _) in _linears(old, old["model_type"]).items():
            if name.split(".")[1] not in targets:
                continue
            module = f"model.layers.{i}.{name}"
            r = rank(module) if callable(rank) else rank
            for factor, shape in (("lora_A", (r, columns)), ("lora_B", (rows, r))):
                weight = rng.standard_normal(shape) * shape[1] ** -0.5
                out[f"base_model.model.{module}.{factor}.weight"] = weight.astype(np.float32)
    save_file(out, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "base_model_name_or_path": str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank if isinstance(rank, int) else 4,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
    }
    _write_json(folder / "adapter_config.json", {**settings, **overrides})
    return folder


def write_tokenizer(folder: Path, template: str | None, merges: tuple[tuple[str, str], ...] = ()) -> None:
    """tokenizer.json and tokenizer_config.json: special tokens, the 256 bytes, then `merges`."""
    added = [
        {"content": s, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for s in SPECIALS
    ]
    vocab = [*SPECIALS, *byte_alphabet(), *("".join(pair) for pair in merges)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(vocab)},
        "merges": [list(pair) for pair in merges],
    }
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **token} for i, token in enumerate(added)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": bpe,
    }
    _write_json(folder / "tokenizer.json", whole)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIALS[END],
        "pad_token": SPECIALS[PAD],
        "bos_token": None,
        "unk_token": None,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): token for i, token in enumerate(added)},
    }
    if template is not None:
        settings["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", settings)


def byte_alphabet() -> list[str]:
    """The printable character of each byte in GPT-2's byte-level BPE, sorted by code point."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + n for n in range(256 - len(printable))]
    return sorted(chr(c) for c in printable + others)


def tokens(config: Mapping[str, Any], seed: int, rows: int = 2, length: int = 24) -> np.ndarray:
    """Random token ids [rows, length], int32, without special ones."""
    return np.random.default_rng(seed).integers(len(SPECIALS), config["vocab_size"], (rows, length), dtype=np.int32)


def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
