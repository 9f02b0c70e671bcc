"""A loaded checkpoint as a Flax module, Linen or NNX: the same tree, the same pure functions.

    model = jaxpost.load(folder)
    module, variables = jaxpost.flax.to_linen(model)        # variables["params"] is model.params
    view = jaxpost.flax.to_nnx(model)                       # nnx.state(view) has the same paths
    jaxpost.save(out, jaxpost.flax.to_model(view, model))   # back to Hugging Face

Weights keep torch's orientation, [out, in]; layers are stacked, [repeats, ...]. Needs the extra `jaxpost[flax]`.
"""

import importlib.metadata

from jaxpost.core.errors import InputError

try:
    from jaxpost.flax.back import lora_factors, to_model
    from jaxpost.flax.linen import LinenModel, to_linen
    from jaxpost.flax.nnx import NNXModel, to_nnx
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "flax":
        raise
    raise InputError("`jaxpost.flax` needs the package flax; got none. Run `pip install 'jaxpost[flax]'`.") from error
except AttributeError as error:  # Flax imports JAX's internals: a Flax older than its JAX ends so
    versions = " with ".join(f"{name} {importlib.metadata.version(name)}" for name in ("flax", "jax"))
    raise InputError(f"`jaxpost.flax` needs a Flax made for this JAX; got {versions}: {error}. Update flax.") from error

__all__ = ["LinenModel", "NNXModel", "lora_factors", "to_linen", "to_model", "to_nnx"]
