"""Losses: arrays in, arrays out. No model, no mean; the caller weighs and averages."""

from jaxpost.losses.sft import dft, eaft, nll

__all__ = ["dft", "eaft", "nll"]
