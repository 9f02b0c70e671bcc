"""jaxpost: post-training of language models in JAX.

The names below are loaded when first used, so that `import jaxpost` (the command line's help, data workers) loads no
jax.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> module:attribute, or a module
_PUBLIC = {
    "load": "jaxpost.hub.checkpoint:load",
    "save": "jaxpost.hub.checkpoint:save",
    "load_adapter": "jaxpost.hub.peft:load_adapter",
    "save_adapter": "jaxpost.hub.peft:save_adapter",
    "forward": "jaxpost.models.decoder:forward",
    "token_logprobs": "jaxpost.objectives:token_logprobs",
    "generate": "jaxpost.sampling:generate",
    "adapters": "jaxpost.adapters",
    "bind": "jaxpost.adapters:bind",
    "losses": "jaxpost.losses",
    "flax": "jaxpost.flax",
    "init_state": "jaxpost.train:init_state",
    "make_step": "jaxpost.train:make_step",
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'jaxpost' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value  # next time without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
