"""`save_adapter`: a LoRA adapter as a folder that PEFT and servers load, with PEFT's exact names."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpost.adapters import Adapters
from jaxpost.core.errors import InputError
from jaxpost.core.files import fill_folder
from jaxpost.hub.names import linear_modules, linear_paths
from jaxpost.hub.peft_config import CONFIG, PREFIX, WEIGHTS
from jaxpost.hub.safetensors_writer import Unwritten, write_file
from jaxpost.models.config import ModelConfig
from jaxpost.stages import hf_names


class Layer(NamedTuple):
    """One adapted module on its way out."""

    module: str  # model.layers.0.self_attn.q_proj
    lora_A: np.ndarray  # [rank, in]
    lora_B: np.ndarray  # [out, rank]
    scale: float

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    @property
    def alpha(self) -> int | float:
        """scale * rank; an integer where that gives the same float32 scaling."""
        exact = float(np.float32(self.scale)) * self.rank
        whole = round(exact)
        return whole if np.float32(whole / self.rank) == np.float32(self.scale) else exact


def save_adapter(folder: str | Path, adapters: Adapters, model: Any, base_name: str | None = None) -> None:
    """Write `adapters` as a PEFT adapter: adapter_model.safetensors, adapter_config.json, README.md.

    Scaling survives: `lora_alpha` is scale * rank; `rank_pattern` and `alpha_pattern` appear only where layers differ.
    The files are put into `folder`, which may hold other things, each whole.

    Args:
      base_name: what `base_model_name_or_path` says; None is the model's folder, or the name in its config.json.

    Raises:
      InputError: an adapter that is not a plain LoRA of this model, or that adapts nothing.
    """
    layers = _layers(adapters, model.config)
    name = base_name or (str(model.folder) if model.folder else model.hf_config.get("_name_or_path") or "")
    settings = _settings(layers, list(linear_modules(model.config)), adapters.spec.dropout, name)
    with fill_folder(folder) as aside:
        write_file(aside / WEIGHTS, [_unwritten(layer, factor) for layer in layers for factor in ("lora_A", "lora_B")])
        (aside / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(_card(settings), encoding="utf-8")


def _layers(adapters: Adapters, config: ModelConfig) -> list[Layer]:
    """Every adapted layer, in the order of the model; each tensor of the adapter is in one of them."""
    modules, spec = linear_modules(config), adapters.spec
    if spec.variant != "lora":
        raise InputError(f"`adapters` must be plain LoRA to be saved in PEFT's format; got {spec.variant}.")
    found: dict[str, Layer] = {}
    for path, factors in adapters.factors.items():
        if path not in linear_paths(config) or set(factors) != {"lora_A", "lora_B"}:
            got = f"{', '.join(sorted(factors))} at `{path}`"
            raise InputError(f"`adapters` must be lora_A and lora_B on linear layers of the model; got {got}.")
        lora_A, lora_B = (np.asarray(factors[name], np.float32) for name in ("lora_A", "lora_B"))
        scale, mask = np.asarray(spec.scale[path]), np.asarray(spec.rank_mask[path]) > 0
        for i, module in enumerate(hf_names(path, config.stages)):
            layer = Layer(module, lora_A[i][mask[i]], lora_B[i][:, mask[i]], float(scale[i]))
            d_out, d_in = modules[module]
            if layer.lora_A.shape[1:] != (d_in,) or layer.lora_B.shape[:1] != (d_out,):
                got = f"{list(layer.lora_B.shape)} x {list(layer.lora_A.shape)}"
                raise InputError(f"`adapters` must fit `{module}` of shape [{d_out}, {d_in}]; got {got}.")
            if layer.rank:
                found[module] = layer
    if not found:
        raise InputError("`adapters` must adapt something; got rank 0 everywhere, so nothing was saved.")
    return [found[module] for module in sorted(found, key=_module_order)]


def _module_order(module: str) -> tuple[int, str]:
    return int(module.split(".")[2]), module


def _settings(layers: list[Layer], modules: list[str], dropout: float, base_name: str) -> dict[str, Any]:
    """adapter_config.json with the keys that readers of every age know; patterns only where layers differ."""
    rank, alpha = Counter((layer.rank, layer.alpha) for layer in layers).most_common(1)[0][0]
    settings: dict[str, Any] = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": _target_modules([layer.module for layer in layers], modules),
        "task_type": "CAUSAL_LM",
    }
    # Full module names: PEFT puts `(.*\.)?` before a key and `$` after it, so none fits another layer.
    ranks = {layer.module: layer.rank for layer in layers if layer.rank != rank}
    alphas = {layer.module: layer.alpha for layer in layers if layer.alpha != alpha}
    return settings | ({"rank_pattern": ranks} if ranks else {}) | ({"alpha_pattern": alphas} if alphas else {})


def _target_modules(adapted: list[str], modules: list[str]) -> list[str]:
    """Short names where they select exactly the adapted modules, else full ones; always a list."""
    short = sorted({module.rsplit(".", 1)[1] for module in adapted})
    selected = {module for module in modules if module.rsplit(".", 1)[1] in short}
    return short if selected == set(adapted) else sorted(adapted, key=_module_order)


def _unwritten(layer: Layer, factor: str) -> Unwritten:
    array = np.ascontiguousarray(getattr(layer, factor))
    return Unwritten(f"{PREFIX}{layer.module}.{factor}.weight", array.dtype, array.shape, lambda: array)


def _card(settings: dict[str, Any]) -> str:
    base = json.dumps(settings["base_model_name_or_path"])
    return (
        f"---\nbase_model: {base}\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n- jaxpost\n---\n\n"
        f"# LoRA adapter\n\nA LoRA adapter of {base} (rank {settings['r']}, alpha {settings['lora_alpha']}), made with "
        "jaxpost.\n\n```python\nfrom peft import AutoPeftModelForCausalLM\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("this folder")\n```\n'
    )
