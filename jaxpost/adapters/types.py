"""An adapter is two trees: what is trained, and what describes it."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["scale", "rank_mask"], meta_fields=["dropout", "variant"]
)
@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """What is fixed about an adapter, by module path; rides in `frozen`.

    Attributes:
      scale: by module path [*stack], alpha / rank of each layer of the stack.
      rank_mask: by module path [*stack, R] of 0 and 1; a layer's rank is its sum, 0 where it is not adapted.
      dropout: probability that an input of the low-rank branch is dropped in training.
      variant: shorthand for the kind of adapter, for exports and messages.
    """

    # Any: jax rebuilds pytrees with placeholders, shardings or shapes as leaves.
    scale: Any
    rank_mask: Any
    dropout: float = 0.0
    variant: str = "lora"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["factors", "spec"], meta_fields=[])
@dataclass(frozen=True)
class Adapters:
    """`factors` are all float and the only thing trained; module paths read `layers/0/0/self_attn/q_proj`.

    Attributes:
      factors: by module path `lora_A` [*stack, R, in] and `lora_B` [*stack, out, R].
      spec: scale, ranks and options.
    """

    # Any: jax rebuilds pytrees with placeholders, shardings or shapes as leaves.
    factors: Any
    spec: Any


def num_parameters(adapters: Adapters) -> int:
    """Trained numbers, those of masked ranks not counted: the sum of rank * (in + out) over adapted layers."""
    return sum(
        int(np.sum(adapters.spec.rank_mask[path])) * (f["lora_A"].shape[-1] + f["lora_B"].shape[-2])
        for path, f in adapters.factors.items()
    )
