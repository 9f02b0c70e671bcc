"""Sampling from a model: the same forward pass with a cache, in programs of few shapes."""

from jaxpost.sampling.generate import Completion, generate
from jaxpost.sampling.programs import programs
from jaxpost.sampling.sampler import Sampler, Samples

__all__ = ["Completion", "Sampler", "Samples", "generate", "programs"]
