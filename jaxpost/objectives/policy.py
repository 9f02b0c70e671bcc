"""From trainable and frozen trees to the bound parameters of a policy."""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array

from jaxpost.adapters import Adapters, bind

Policy: TypeAlias = Callable[[Any, Any, Array | None], Any]  # (trainable, frozen, dropout key or None) -> params


def adapter_policy(trainable: Any, frozen: Any, key: Array | None) -> Any:
    """Trainable factors on `frozen = {"params": ..., "spec": ...}`."""
    return bind(frozen["params"], Adapters(trainable, frozen["spec"]), key)


def full_policy(trainable: Any, frozen: Any, key: Array | None) -> Any:
    """All weights are trained; nothing is frozen, and there is no dropout."""
    return trainable
