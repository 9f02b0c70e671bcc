"""Adapters on any parameter tree: fresh ones, binding, merging."""

from jaxpost.adapters.bind import bind, delta_norms, merge
from jaxpost.adapters.init import VARIANTS, init
from jaxpost.adapters.lora import LoraWeight
from jaxpost.adapters.types import Adapters, AdapterSpec, num_parameters

__all__ = [
    "VARIANTS",
    "AdapterSpec",
    "Adapters",
    "LoraWeight",
    "bind",
    "delta_norms",
    "init",
    "merge",
    "num_parameters",
]
