"""The scaling of the rotary embedding of a GGUF file, as config.json says it."""

import math
from typing import Any

import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.hub.gguf import ROPE_FACTORS
from jaxpost.hub.gguf_families import ARCHITECTURES
from jaxpost.hub.gguf_file import GgufFile, read_float32

# What the converter assumes for the llama3 scaling; the file holds only the resulting factor of each frequency.
LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_CONTEXT = 1.0, 4.0, 8192


SCALING = "rope.scaling."  # below the architecture's name
KNOWN_KEYS = frozenset({"type", "factor", "finetuned"})  # `finetuned` says how the weights were made


def rope_scaling(file: GgufFile, name: str, head_dim: int, theta: float) -> dict[str, Any] | None:
    """`rope_scaling` of config.json for architecture `name`: linear by metadata, llama3 by stored factors, or none.

    Raises:
      InputError: another kind (yarn, for one), a setting that is not understood, or factors of no llama3 scaling.
    """
    meta, prefix = file.metadata, f"{name}.{SCALING}"
    kind = meta.optional(prefix + "type", str) or "none"
    factor = meta.decimal(prefix + "factor", 1.0)
    if kind not in ("none", "linear"):
        raise InputError(f'{meta.path}: `{prefix}type` must be "none" or "linear"; got "{kind}".')
    unknown = sorted({key for key in meta.fields if key.startswith(prefix)} - {prefix + key for key in KNOWN_KEYS})
    if unknown:
        raise InputError(f"{meta.path}: metadata key `{unknown[0]}` is not supported for {kind} rope scaling.")
    if kind == "none" and factor != 1.0:
        raise InputError(f"{meta.path}: `{prefix}factor` is {factor} without a scaling type.")
    if ROPE_FACTORS not in file.tensors or not ARCHITECTURES[name].rope_factors:
        return None if kind == "none" else {"rope_type": "linear", "factor": factor}
    if kind != "none":
        raise InputError(f"{meta.path}: `{ROPE_FACTORS}` together with {kind} rope scaling is not supported.")
    return _llama3_scaling(file, head_dim, theta)


def _llama3_scaling(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any] | None:
    """The parameters that give the stored factors; the largest factor is the one of the slowest frequencies."""
    stored = read_float32(file.path, file.tensors[ROPE_FACTORS])
    factor = float(stored.max())
    if np.all(stored == 1.0):
        return None
    if stored.shape != (head_dim // 2,) or not np.allclose(stored, llama3_factors(head_dim, theta, factor), rtol=1e-4):
        raise InputError(
            f"{file.path}: `{ROPE_FACTORS}` must be the llama3 scaling of {head_dim // 2} frequencies with "
            f"low {LLAMA3_LOW}, high {LLAMA3_HIGH}, context {LLAMA3_CONTEXT}; got other values."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW,
        "high_freq_factor": LLAMA3_HIGH,
        "original_max_position_embeddings": LLAMA3_CONTEXT,
    }


def llama3_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """`[head_dim / 2]` divisors of the rotary frequencies: 1 for short wavelengths, `factor` for long, smooth between.

    >>> llama3_factors(8, 500000.0, 8.0).round(3).tolist()
    [1.0, 1.0, 2.695, 8.0]
    """
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = LLAMA3_CONTEXT * frequencies / (2 * math.pi)  # in the original context
    smooth = np.clip((turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)
