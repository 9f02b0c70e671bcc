"""`load_adapter`: a LoRA adapter in PEFT's format onto a model, every tensor accounted for."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpost.adapters import Adapters, AdapterSpec
from jaxpost.core.errors import InputError
from jaxpost.hub.names import linear_modules, linear_paths
from jaxpost.hub.peft_config import ENDS, PREFIX, WEIGHTS, read_settings
from jaxpost.hub.peft_save import save_adapter
from jaxpost.hub.safetensors_reader import Stored, open_file
from jaxpost.hub.source import find_folder
from jaxpost.stages import hf_names

__all__ = ["load_adapter", "save_adapter"]

_COPY = re.compile(rf"{re.escape(PREFIX)}.+\.base_layer\.weight")  # PEFT's own copies of base weights
_SHARDED_SAVE = "A sharded training that saved without gathering its weights leaves such files."


def load_adapter(folder: str | Path, model: Any) -> Adapters:
    """A PEFT LoRA adapter for `model`, its layers stacked as the model's, factors in float32.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors; a Hub id will do.
      model: anything with a `.config` (ModelConfig).

    Returns:
      Adapters; layers of a stack that the adapter leaves out have rank 0, smaller ranks are padded and masked.

    Raises:
      InputError: settings that are not supported or not known, a tensor that is missing, left over or of the wrong
        shape, modules that the model does not have.
    """
    folder = find_folder(folder, "adapter")
    settings = read_settings(folder)
    modules = linear_modules(model.config)
    adapted = settings.adapted([*modules, *ENDS])
    for module in ENDS:
        if module in adapted:
            hint = "Adapters on the embedding and the output head are not supported yet."
            raise InputError(f"`target_modules` must not select `{module}`; got it in {settings.where}. {hint}")
    tensors = _tensors(folder)
    _check(tensors, {m: rank for m, (rank, _) in adapted.items()}, modules, folder)
    factors, scale, mask = {}, {}, {}
    for path in sorted(linear_paths(model.config)):
        names = hf_names(path, model.config.stages)
        if any(name in adapted for name in names):
            factors[path], scale[path], mask[path] = _stack(names, adapted, tensors, modules[names[0]])
    factors, scale, mask = jax.device_put((factors, scale, mask))
    return Adapters(factors, AdapterSpec(scale=scale, rank_mask=mask, dropout=settings.dropout, variant="lora"))


def _tensors(folder: Path) -> dict[str, Stored]:
    """The adapter's tensors by name without PEFT's prefix; copies of base weights are left out."""
    path = folder / WEIGHTS
    if not path.exists():
        pickle = next((file.name for file in folder.glob("adapter_model.*")), None)
        hint = f"{pickle} is a pickle, which can run code when read: save it as safetensors." if pickle else ""
        raise InputError(f"{folder} must hold {WEIGHTS}; got none. {hint}".rstrip())
    tensors = {name: stored for name, stored in open_file(path).items() if not _COPY.fullmatch(name)}
    if not tensors:
        raise InputError(f"{path} must hold LoRA tensors; got a file with no tensors. {_SHARDED_SAVE}")
    return {name.removeprefix(PREFIX) if name.startswith(PREFIX) else f"?{name}": t for name, t in tensors.items()}


def _check(
    tensors: dict[str, Stored], ranks: dict[str, int], modules: dict[str, tuple[int, int]], folder: Path
) -> None:
    """InputError unless the tensors are exactly the factors of the adapted modules, in the base's shapes."""
    expected = {}
    for module, rank in ranks.items():
        d_out, d_in = modules[module]
        expected[f"{module}.lora_A.weight"] = (rank, d_in)
        expected[f"{module}.lora_B.weight"] = (d_out, rank)
    extra = [stored for name, stored in tensors.items() if name not in expected]
    if extra:
        others = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise InputError(
            f"`{extra[0].name}`{others} must belong to a module of the model that target_modules selects; got it at "
            f"{folder}. Is the adapter of another base, or of another kind than LoRA?"
        )
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise InputError(
            f"`{PREFIX}{missing[0]}` (and {len(missing) - 1} more of {len(expected)}) must be in {WEIGHTS}, because "
            f"target_modules selects it; got no such tensor at {folder}. {_SHARDED_SAVE}"
        )
    for name, shape in expected.items():
        got = tensors[name].shape
        if got != shape:
            hint = _SHARDED_SAVE if 0 in got else "Is the adapter of another base, or its rank another?"
            raise InputError(
                f"`{PREFIX}{name}` must have shape {list(shape)} for this model; got {list(got)} at {folder}. {hint}"
            )


def _stack(
    names: tuple[str, ...],
    adapted: dict[str, tuple[int, float]],
    tensors: dict[str, Stored],
    shape: tuple[int, int],
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Factors, scale and rank mask of one stack: ranks padded with zeros to the largest."""
    ranks = [adapted[name][0] if name in adapted else 0 for name in names]
    widest, (d_out, d_in) = max(ranks), shape
    lora_A = np.zeros((len(names), widest, d_in), np.float32)
    lora_B = np.zeros((len(names), d_out, widest), np.float32)
    for i, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        if rank:
            lora_A[i, :rank] = tensors[f"{name}.lora_A.weight"].read()
            lora_B[i, :, :rank] = tensors[f"{name}.lora_B.weight"].read()
    scale = np.array([adapted[name][1] if name in adapted else 0.0 for name in names], np.float32)
    mask = (np.arange(widest) < np.array(ranks)[:, None]).astype(np.float32)
    return {"lora_A": lora_A, "lora_B": lora_B}, scale, mask
