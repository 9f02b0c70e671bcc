"""The supported families as one table, and the reading of a Hugging Face config.json into a `ModelConfig`.

Defaults are those of transformers' configuration classes for an absent key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxpost import stages
from jaxpost.core.errors import InputError, suggestion
from jaxpost.models.config import LayerKind, ModelConfig, Rope
from jaxpost.models.hf_fields import Fields
from jaxpost.models.rope_fields import one_rope, rope_per_layer_type
from jaxpost.models.window_fields import (
    alternating_windows,
    no_window,
    one_window,
    patterned_windows,
    upper_windows,
)

_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",  # the same formula under its older name
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What one `model_type` fixes, and how its layers see each other."""

    architecture: str  # the one class of `architectures` that is this model
    windows: Callable[[Fields, int], list[int | None]]  # of each layer, in tokens
    ropes: Callable[[Fields], tuple[Rope, Rope]] = one_rope  # of full and of sliding layers
    kv_heads: int | None = None  # where the key is absent; None: as many as heads
    head_dim: int | None = None  # where the key is absent; None: hidden_size / heads
    bias: Literal["none", "qkv", "config"] = "none"  # "config": `attention_bias` rules q, k, v and o
    mlp_bias: bool = False  # whether `mlp_bias` is read
    qk_norm: bool = False
    gemma: bool = False  # (1 + weight) norms, four a layer, scaled embedding, `query_pre_attn_scalar`
    attention_softcap: float | None = None  # where the key is absent; None: the family has no such key
    logit_softcap: float | None = None  # of Gemmas, where the key is absent
    tied: bool = False  # where `tie_word_embeddings` is absent


_GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    windows=alternating_windows,
    kv_heads=4,
    head_dim=256,
    bias="config",
    gemma=True,
    attention_softcap=50.0,
    logit_softcap=30.0,
    tied=True,
)

FAMILIES: dict[str, Family] = {
    "llama": Family(architecture="LlamaForCausalLM", windows=no_window, bias="config", mlp_bias=True),
    "mistral": Family(architecture="MistralForCausalLM", windows=one_window, kv_heads=8),
    "qwen2": Family(architecture="Qwen2ForCausalLM", windows=upper_windows, kv_heads=32, bias="qkv"),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM", windows=upper_windows, kv_heads=32, head_dim=128, bias="config", qk_norm=True
    ),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(
        _GEMMA2,
        architecture="Gemma3ForCausalLM",
        windows=patterned_windows,
        ropes=rope_per_layer_type,
        qk_norm=True,
        attention_softcap=None,  # transformers' Gemma 3 does not apply `attn_logit_softcapping`
        logit_softcap=None,
    ),
}


def config_from_hf(hf: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The `ModelConfig` of a Hugging Face config.json, in the spelling of transformers 4 or 5.

    Args:
      hf: the file as read. An absent or null key takes the family's default in transformers.
      where: the file's name in messages.

    Returns:
      a configuration whose `stages` group the layers into repeating periods.

    Raises:
      InputError: an unsupported `model_type` or architecture, a key that is set and not understood, a missing or
        impossible value, a kind of rope or quantisation that is not supported.

    >>> hf = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 4,
    ...       "num_hidden_layers": 3, "num_attention_heads": 2, "pad_token_id": None}
    >>> config = config_from_hf(hf)
    >>> config.head_dim, config.num_kv_heads, config.stages[0].repeats
    (4, 2, 3)
    """
    fields = Fields(hf, where)
    name, family = _family(fields)
    _refuse_quantised(fields)
    sizes = _sizes(fields, family)
    kinds = _kinds(fields, family)
    config = ModelConfig(
        family=name,
        stages=stages.group(kinds),
        norm_eps=fields.positive("rms_norm_eps", 1e-6),
        tie_word_embeddings=fields.flag("tie_word_embeddings", family.tied),
        **sizes,
        **_biases(fields, family),
        **_scales(fields, family, sizes["head_dim"], sizes["hidden_size"]),
    )
    fields.refuse_leftovers(name)
    return config


def _family(fields: Fields) -> tuple[str, Family]:
    name, known = fields.get("model_type"), ", ".join(FAMILIES)
    if name == "gemma3":
        raise InputError(
            f"`model_type` must be gemma3_text; got 'gemma3', the multimodal model, in {fields.where}. Use a text-only "
            "checkpoint: the 270M and 1B models, or the language model saved on its own as Gemma3ForCausalLM."
        )
    if not isinstance(name, str) or name not in FAMILIES:
        hint = suggestion(name, FAMILIES) if isinstance(name, str) else ""
        raise InputError(f"`model_type` must be one of {known}; got {name!r} in {fields.where}.{hint}")
    family = FAMILIES[name]
    for architecture in fields.get("architectures", []):
        if architecture != family.architecture:
            hint = f"Supported are {', '.join(f.architecture for f in FAMILIES.values())}."
            raise fields.error("architectures", f"[{family.architecture!r}] for {name}", architecture, hint)
    return name, family


def _refuse_quantised(fields: Fields) -> None:
    settings = fields.get("quantization_config")
    if settings:
        kind = settings.get("quant_method", "unknown") if isinstance(settings, Mapping) else settings
        hint = "Quantised checkpoints cannot be read yet: use the original float32, bfloat16 or float16 weights."
        raise fields.error("quantization_config", "absent", kind, hint)


def _sizes(fields: Fields, family: Family) -> dict[str, int]:
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    kv = heads if fields.optional("num_key_value_heads", family.kv_heads) is None else None
    kv = kv or fields.integer("num_key_value_heads", family.kv_heads)
    if heads % kv:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})", kv)
    return {
        "vocab_size": fields.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": fields.integer("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": kv,
        "head_dim": _head_dim(fields, family, hidden, heads),
    }


def _head_dim(fields: Fields, family: Family, hidden: int, heads: int) -> int:
    given = fields.optional("head_dim", family.head_dim) is not None
    if not given and hidden % heads:
        raise fields.error("hidden_size", f"a multiple of num_attention_heads ({heads}) without head_dim", hidden)
    head_dim = fields.integer("head_dim", family.head_dim) if given else hidden // heads
    if head_dim % 2:
        raise fields.error("head_dim", "even, because rope turns pairs", head_dim)
    return head_dim


def _kinds(fields: Fields, family: Family) -> list[LayerKind]:
    full, sliding = family.ropes(fields)
    shared: dict[str, Any] = {
        "sandwich_norms": family.gemma,
        "qk_norm": family.qk_norm,
        "activation": _activation(fields, family),
        "softcap": family.attention_softcap and _softcap(fields, "attn_logit_softcapping", family.attention_softcap),
    }
    windows = family.windows(fields, fields.integer("num_hidden_layers"))
    return [LayerKind(rope=full if window is None else sliding, window=window, **shared) for window in windows]


def _softcap(fields: Fields, name: str, absent: float | None) -> float | None:
    """A soft-cap: null is off, an absent key is the family's default."""
    return None if fields.optional(name, absent) is None else fields.positive(name, absent)


def _activation(fields: Fields, family: Family) -> Literal["silu", "gelu_tanh"]:
    if family.gemma:  # where both are given, `hidden_activation` is the one that transformers reads
        name = fields.get("hidden_activation") or fields.get("hidden_act", "gelu_pytorch_tanh")
        fields.get("hidden_act")
    else:
        name = fields.get("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        hint = "Other activations are not supported."
        raise fields.error("hidden_act", f"one of {', '.join(_ACTIVATIONS)}", name, hint)
    return _ACTIVATIONS[name]


def _biases(fields: Fields, family: Family) -> dict[str, bool]:
    attention = family.bias == "config" and fields.flag("attention_bias", False)
    return {
        "qkv_bias": attention or family.bias == "qkv",
        "output_bias": attention,
        "mlp_bias": family.mlp_bias and fields.flag("mlp_bias", False),
    }


def _scales(fields: Fields, family: Family, head_dim: int, hidden: int) -> dict[str, Any]:
    if not family.gemma:
        return {"attention_scale": head_dim**-0.5}
    return {
        "attention_scale": fields.positive("query_pre_attn_scalar", 256) ** -0.5,
        "embed_scale": hidden**0.5,
        "norm_offset": 1.0,
        "logit_softcap": _softcap(fields, "final_logit_softcapping", family.logit_softcap),
    }
