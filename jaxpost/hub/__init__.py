"""Checkpoints and adapters in Hugging Face's formats, in and out."""

from jaxpost.hub.model import Model

__all__ = ["Model"]
