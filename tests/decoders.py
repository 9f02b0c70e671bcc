"""Tiny decoders for the tests of models, objectives and training: configurations, random trees, random rows.

Heads are odd, windows are shorter than the rows, weights are of order 1 / sqrt(in) and norms away from 1, so that
every part is felt in the logits.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost import adapters, stages
from jaxpost.models.config import LayerKind, ModelConfig, Rope, abstract_params

PLAIN = LayerKind(rope=Rope(theta=100.0))  # Llama's layer
LOCAL = LayerKind(
    rope=Rope(theta=30.0), window=5, softcap=3.0, sandwich_norms=True, qk_norm=True, activation="gelu_tanh"
)  # Gemma's two
GLOBAL = dataclasses.replace(LOCAL, window=None, rope=Rope(theta=100.0, kind="linear", factor=2.0))


def llama(kinds: Sequence[LayerKind] = (PLAIN, PLAIN), **fields: Any) -> ModelConfig:
    """Three heads on one key head, separate head."""
    common = {
        "family": "llama",
        "vocab_size": 61,
        "hidden_size": 20,
        "intermediate_size": 28,
        "num_heads": 3,
        "num_kv_heads": 1,
        "head_dim": 6,
        "norm_eps": 1e-5,
        "attention_scale": 0.4,
        "stages": stages.group(tuple(kinds)),
    }
    return ModelConfig(**{**common, **fields})  # pyright: ignore


def gemma(kinds: Sequence[LayerKind] = (LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL), **fields: Any) -> ModelConfig:
    """A period of two and a remainder; tied, scaled embedding, soft-caps, offset norms."""
    extra = {"family": "gemma3_text", "logit_softcap": 4.0, "embed_scale": 20**0.5}
    return llama(kinds, **{**extra, "tie_word_embeddings": True, "norm_offset": 1.0, **fields})


def params(config: ModelConfig, seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """A random tree of `abstract_params(config)`."""
    rng = np.random.default_rng(seed)

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        values = rng.standard_normal(shape.shape)
        if "norm" in name:
            values = 0.3 * values + 1.0 - config.norm_offset
        elif "bias" in name:
            values = 0.5 * values
        else:
            values *= shape.shape[-1] ** -0.5
        return jnp.asarray(values, dtype)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def adapted(tree: Any, seed: int = 0, **options: Any) -> adapters.Adapters:
    """Adapters on `tree` whose B is not zero, so that they change the output."""
    fresh = adapters.init(jax.random.key(seed), tree, **{"rank": 3, "alpha": 6.0, **options})
    rng = np.random.default_rng(seed)
    factors = {
        path: {"lora_A": f["lora_A"], "lora_B": _masked_normal(rng, f["lora_B"].shape, fresh.spec.rank_mask[path])}
        for path, f in fresh.factors.items()
    }
    return adapters.Adapters(factors, fresh.spec)


def _masked_normal(rng: np.random.Generator, shape: tuple[int, ...], mask: Any) -> jax.Array:
    return jnp.asarray(0.3 * rng.standard_normal(shape) * np.asarray(mask)[..., None, :], jnp.float32)


def documents(config: ModelConfig, lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Random documents of these lengths, in tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.vocab_size, n).astype(np.int32) for n in lengths]


def row(parts: Sequence[np.ndarray], length: int, left: int = 0) -> dict[str, np.ndarray]:
    """Documents one after another in one row of `length` tokens, after `left` tokens of padding."""
    tokens, segments, positions = (np.zeros(length, np.int32) for _ in range(3))
    mask = np.zeros(length, np.float32)
    start = left
    for number, part in enumerate(parts, start=1):
        end = start + len(part)
        tokens[start:end], segments[start:end], positions[start:end] = part, number, np.arange(len(part))
        mask[start + 1 : end] = 1.0
        start = end
    return {"tokens": tokens, "segment_ids": segments, "positions": positions, "loss_mask": mask}


def stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows [T] -> a micro-batch [B, T]."""
    return {name: np.stack([r[name] for r in rows]) for name in rows[0]}


def random_rows(config: ModelConfig, count: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """[count, length] rows, each of one or two documents and some padding, unequally filled."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        fill = int(rng.integers(3, length + 1))
        cut = int(rng.integers(1, fill))
        parts = documents(config, [cut, fill - cut], seed=1000 * seed + n)
        rows.append(row(parts if n % 2 else [np.concatenate(parts)], length))
    return stack(rows)


def batch(rows: dict[str, np.ndarray], accumulate: int = 1) -> dict[str, Any]:
    """Rows [N, T] as a global batch of `accumulate` micro-batches, with its total."""
    laid = {name: leaf.reshape(accumulate, -1, leaf.shape[-1]) for name, leaf in rows.items()}
    return {"rows": laid, "totals": {"tokens": np.float32(rows["loss_mask"].sum(dtype=np.float64))}}
