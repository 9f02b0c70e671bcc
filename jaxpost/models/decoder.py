"""The forward pass of every family: tokens -> hidden states -> logits, as pure functions of a parameter tree."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jaxpost.core.errors import InputError
from jaxpost.models.attention import MaskSpec, attention
from jaxpost.models.config import LayerKind, ModelConfig, Rope
from jaxpost.models.rope import RopeTables, rotate, tables
from jaxpost.sharding import constrain_batch, gather_table
from jaxpost.weights import along_last, contract, embed, linear, materialize

Params = Mapping[str, Any]
# (kind, q, k, v) [B, T, heads, D], q and k rotated -> [B, T, H, D]: the one thing that training and decoding do apart.
Attend: TypeAlias = Callable[[LayerKind, Array, Array, Array], Array]

# What the backward pass keeps of each layer; everything else is computed again. `none` keeps all.
REMAT_SAVES: Mapping[str, tuple[str, ...]] = {
    "full": (),
    "attention": ("attention_out", "attention_lse"),
    "qkv": ("attention_out", "attention_lse", "q", "k", "v"),
    "mlp": ("attention_out", "attention_lse", "q", "k", "v", "gate", "up"),
}


def rms_norm(x: Float[Array, " *batch D"], weight: Array, config: ModelConfig) -> Float[Array, " *batch D"]:
    """x / sqrt(mean(x^2) + eps) * (offset + weight), in float32, cast back (Zhang & Sennrich 2019, eq. 4)."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_eps)
    return (wide * along_last(config.norm_offset + weight.astype(jnp.float32), wide)).astype(x.dtype)


def default_positions(segment_ids: Int[Array, " B T"]) -> Int[Array, " B T"]:
    """Tokens since the start of each token's document.

    >>> default_positions(jnp.array([[1, 1, 2, 2, 2, 0]]))
    Array([[0, 1, 0, 1, 2, 0]], dtype=int32)
    """
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]
    starts = jnp.concatenate([jnp.ones_like(segment_ids[:, :1]), jnp.diff(segment_ids, axis=1)], axis=1) != 0
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, " B T"],
    segment_ids: Int[Array, " B T"] | None = None,
    positions: Int[Array, " B T"] | None = None,
    *,
    dtype: Any = None,
    remat: str = "none",
    unroll: bool = False,
    embed_noise: Float[Array, " B T D"] | None = None,
) -> Float[Array, " B T D"]:
    """Final-norm hidden states of every token.

    Args:
      params: the tree of `abstract_params`, or one on which adapters are bound.
      segment_ids: document of each token, 0 padding; attention never crosses documents. None: one document a row.
      positions: rotary positions; None counts within each document.
      dtype: of the activations; None takes the embedding's.
      remat: what the backward pass keeps, a key of `REMAT_SAVES` or "none".
      unroll: write the layers out instead of scanning them (slices copy the weights: for comparison only).
      embed_noise: added to the embeddings as the first layer sees them, after `embed_scale`.
    """
    if remat != "none" and remat not in REMAT_SAVES:
        raise InputError(f"`remat` must be none, {', '.join(REMAT_SAVES)}; got {remat!r}.")
    if positions is None:
        plain = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        positions = plain if segment_ids is None else default_positions(segment_ids)
    h = embed_tokens(config, params, tokens, dtype)
    if embed_noise is not None:
        h = h + embed_noise.astype(h.dtype)
    h = constrain_batch(h)
    ropes = rope_tables(config, positions)
    mask = MaskSpec(segment_ids=segment_ids, positions=positions)
    for stage, stacks in zip(config.stages, params["layers"], strict=True):
        period = functools.partial(_period, config, stage.kinds, ropes, mask, remat)
        h, _ = jax.lax.scan(period, h, stacks, unroll=stage.repeats if unroll else 1)
    return rms_norm(h, params["norm"]["weight"], config)


def embed_tokens(config: ModelConfig, params: Params, tokens: Int[Array, " B T"], dtype: Any = None) -> Array:
    """The first hidden states [B, T, D], scaled where the family scales them."""
    h = embed(tokens, gather_table(params["embed_tokens"]["weight"]), dtype)
    return h if config.embed_scale == 1.0 else h * jnp.asarray(config.embed_scale, h.dtype)


def rope_tables(config: ModelConfig, positions: Int[Array, " B T"]) -> dict[Rope, RopeTables]:
    """The tables of every rope that a layer uses, each made once."""
    kinds = {kind for stage in config.stages for kind in stage.kinds}
    return {rope: tables(rope, config.head_dim, positions) for rope in {kind.rope for kind in kinds}}


def _period(
    config: ModelConfig,
    kinds: tuple[LayerKind, ...],
    ropes: Mapping[Rope, RopeTables],
    mask: MaskSpec,
    remat: str,
    h: Array,
    layers: tuple[Params, ...],
) -> tuple[Array, None]:
    """One repeat of a stage: its layers in order, each rematerialised by itself."""
    for kind, layer in zip(kinds, layers, strict=True):
        run = functools.partial(_masked_layer, config, kind)
        if remat != "none":
            policy = jax.checkpoint_policies.save_only_these_names(*REMAT_SAVES[remat])
            run = jax.checkpoint(run, policy=policy, prevent_cse=False)
        # A scan without this constraint can have wrong gradients with the right loss (test_R6b).
        h = constrain_batch(run(layer, h, ropes[kind.rope], mask))
    return h, None


def _masked_layer(
    config: ModelConfig, kind: LayerKind, layer: Params, h: Array, rope: RopeTables, mask: MaskSpec
) -> Array:
    return run_layer(config, kind, layer, h, rope, functools.partial(attend_row, config, mask))


def attend_row(config: ModelConfig, mask: MaskSpec, kind: LayerKind, q: Array, k: Array, v: Array) -> Array:
    """Attention of whole rows over themselves, with the window and soft-cap of the layer's kind."""
    spec = MaskSpec(mask.segment_ids, mask.positions, mask.prefix, kind.window, kind.softcap)
    return attention(q, k, v, spec, scale=config.attention_scale)


def run_layer(
    config: ModelConfig, kind: LayerKind, layer: Params, h: Array, rope: RopeTables, attend: Attend
) -> Float[Array, " B T D"]:
    """One layer of any family; `attend` says which keys and values the queries meet."""
    norm = lambda name, x: rms_norm(x, layer[name]["weight"], config)  # noqa: E731
    out = _attention(config, kind, layer["self_attn"], norm("input_layernorm", h), rope, attend)
    if kind.sandwich_norms:
        h = h + norm("post_attention_layernorm", out)
        out = _mlp(kind, layer["mlp"], norm("pre_feedforward_layernorm", h))
        return h + norm("post_feedforward_layernorm", out)
    h = h + out
    return h + _mlp(kind, layer["mlp"], norm("post_attention_layernorm", h))


def _project(x: Array, module: Params) -> Array:
    y = linear(x, module["weight"])
    return y + along_last(module["bias"].astype(y.dtype), y) if "bias" in module else y


def _attention(config: ModelConfig, kind: LayerKind, block: Params, x: Array, rope: RopeTables, attend: Attend):
    def heads(name: str) -> Array:
        y = checkpoint_name(_project(x, block[f"{name}_proj"]), name)
        y = y.reshape(*x.shape[:2], -1, config.head_dim)
        return rms_norm(y, block[f"{name}_norm"]["weight"], config) if kind.qk_norm and name != "v" else y

    q, k, v = heads("q"), heads("k"), heads("v")
    out = attend(kind, rotate(q, rope), rotate(k, rope), v)
    return _project(out.reshape(*x.shape[:2], -1), block["o_proj"])


def _mlp(kind: LayerKind, block: Params, x: Array) -> Array:
    gate = checkpoint_name(_project(x, block["gate_proj"]), "gate")
    up = checkpoint_name(_project(x, block["up_proj"]), "up")
    activated = jax.nn.silu(gate) if kind.activation == "silu" else jax.nn.gelu(gate, approximate=True)
    return _project(activated * up, block["down_proj"])


def head_weight(params: Params) -> Any:
    """The output head [V, D]: `lm_head`, or the embedding where they are tied."""
    return params["lm_head" if "lm_head" in params else "embed_tokens"]["weight"]


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, " B T"],
    segment_ids: Int[Array, " B T"] | None = None,
    positions: Int[Array, " B T"] | None = None,
) -> Float[Array, " B T V"]:
    """Logits of every token, float32; finite at padding. Training never calls this: see `models.vocab`.

    For comparing and looking, so matrix products have the precision "highest" whatever the default is (see
    `weights.contract`).
    """
    with jax.default_matmul_precision("highest"):
        h = hidden_states(config, params, tokens, segment_ids, positions)
        return logits_of(config, params, h.reshape(-1, h.shape[-1])).reshape(*tokens.shape, -1)


def logits_of(config: ModelConfig, params: Params, h: Float[Array, " N D"]) -> Float[Array, " N V"]:
    """Logits of final hidden states, float32."""
    logits = contract(h, materialize(head_weight(params), h.dtype), (1, 1), jnp.float32)
    cap = config.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)
