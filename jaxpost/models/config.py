"""What a decoder is made of: static, hashable descriptions, and the shapes of its parameters."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxpost.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: base frequency and the scaling of long contexts.

    `linear` divides every frequency by `factor`; `llama3` divides only the slow ones (Llama 3.1 model card).
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3 only: wavelengths above original_max / low are scaled in full
    high_freq_factor: float = 4.0  # llama3 only: wavelengths below original_max / high are not scaled
    original_max_positions: int = 8192  # llama3 only, in tokens


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What may differ from layer to layer."""

    rope: Rope
    window: int | None = None  # tokens a query sees, itself included; None sees all before it
    softcap: float | None = None  # attention scores s -> softcap * tanh(s / softcap)
    sandwich_norms: bool = False  # Gemma 2 and 3: norms also after attention and MLP
    qk_norm: bool = False  # RMS norm of each query and key head
    activation: Literal["silu", "gelu_tanh"] = "silu"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only language model; hashable, so that it can be a static argument of jit."""

    family: str  # the table's key: Hugging Face's model_type
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    stages: tuple[Stage[LayerKind], ...]
    norm_eps: float
    norm_offset: float = 0.0  # Gemma multiplies by (1 + weight)
    qkv_bias: bool = False
    output_bias: bool = False  # bias of o_proj
    mlp_bias: bool = False
    attention_scale: float  # multiplies q k^T; usually head_dim ** -0.5
    logit_softcap: float | None = None
    embed_scale: float = 1.0  # multiplies the embedding, in the model's dtype
    tie_word_embeddings: bool = False

    @property
    def num_layers(self) -> int:
        return sum(stage.num_layers for stage in self.stages)

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """[out, in] of each linear layer of a block, by its path inside the block."""
        d, f = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "self_attn/q_proj": (q, d),
            "self_attn/k_proj": (kv, d),
            "self_attn/v_proj": (kv, d),
            "self_attn/o_proj": (d, q),
            "mlp/gate_proj": (f, d),
            "mlp/up_proj": (f, d),
            "mlp/down_proj": (d, f),
        }


def block_shapes(config: ModelConfig, kind: LayerKind) -> dict[str, Any]:
    """Shapes of one layer's parameters, nested as Hugging Face names them."""
    block: dict[str, Any] = {"self_attn": {}, "mlp": {}}
    biased = {
        "q_proj": config.qkv_bias,
        "k_proj": config.qkv_bias,
        "v_proj": config.qkv_bias,
        "o_proj": config.output_bias,
    }
    for path, shape in config.linear_shapes().items():
        part, name = path.split("/")
        block[part][name] = {"weight": shape}
        if biased.get(name, config.mlp_bias):
            block[part][name]["bias"] = shape[:1]
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind.sandwich_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for name in norms:
        block[name] = {"weight": (config.hidden_size,)}
    if kind.qk_norm:
        for name in ("q_norm", "k_norm"):
            block["self_attn"][name] = {"weight": (config.head_dim,)}
    return block


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The parameter tree as shapes and dtypes: what loading fills, sharding places and the plan counts.

    Tied embeddings have no `lm_head`.
    """
    table = {"weight": (config.vocab_size, config.hidden_size)}
    layers = tuple(
        tuple(_stacked(block_shapes(config, kind), stage.repeats) for kind in stage.kinds) for stage in config.stages
    )
    tree: dict[str, Any] = {"embed_tokens": table, "layers": layers, "norm": {"weight": (config.hidden_size,)}}
    if not config.tie_word_embeddings:
        tree["lm_head"] = dict(table)
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, dtype), tree, is_leaf=_is_shape)


def _stacked(block: dict[str, Any], repeats: int) -> dict[str, Any]:
    return jax.tree.map(lambda shape: (repeats, *shape), block, is_leaf=_is_shape)


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(n, int) for n in x)
