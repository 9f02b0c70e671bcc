"""adapter_config.json of a PEFT LoRA, read strictly, and what it says of each module: adapted or not, rank, scaling."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.core.files import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # before every module name, in tensors but not in settings
ENDS = ("lm_head", "model.embed_tokens")  # output head and embedding: never in "all-linear"
_UNDERSTOOD = frozenset(
    "peft_type r lora_alpha lora_dropout target_modules exclude_modules layers_to_transform layers_pattern"
    " rank_pattern alpha_pattern use_rslora bias init_lora_weights".split()
)
# Where the adapter comes from, and settings that act in training or together with a switch that is refused.
_HARMLESS = frozenset(
    "auto_mapping base_model_name_or_path revision task_type inference_mode peft_version runtime_config"
    " megatron_core qalora_group_size eva_config ensure_weight_tying".split()
)
# Initialisers that leave the base as it is; the others subtract from it what they put into the factors.
_INITIALISERS = (True, False, "gaussian", "eva", "orthogonal")
_UNSUPPORTED = frozenset(
    "use_dora use_qalora use_bdlora modules_to_save lora_bias fan_in_fan_out trainable_token_indices target_parameters"
    " layer_replication alora_invocation_tokens loftq_config corda_config lora_ga_config kasa_config arrow_config"
    " monteclora_config velora_config megatron_config".split()
)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The settings that decide which modules a LoRA is on, and how strongly."""

    rank: int
    alpha: float
    use_rslora: bool
    dropout: float
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...] | None  # None: all
    layers_pattern: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    where: str

    def adapted(self, modules: Iterable[str]) -> dict[str, tuple[int, float]]:
        """(rank, scaling) of each module that is adapted; scaling is alpha / rank, or alpha / sqrt(rank) for rsLoRA.

        Raises:
          InputError: nothing is adapted, or a pattern fits no adapted module.
        """
        chosen = [module for module in modules if self._targets(module)]
        if not chosen:
            raise InputError(
                f"`target_modules` must name modules of the model; got {_shown(self.targets)} in {self.where}."
            )
        self._check_patterns(chosen)
        found = {}
        for module in chosen:
            rank = _first_match(self.rank_pattern, module, self.rank)
            alpha = _first_match(self.alpha_pattern, module, self.alpha)
            found[module] = (rank, alpha / (math.sqrt(rank) if self.use_rslora else rank))
        return found

    def _targets(self, module: str) -> bool:
        if _matches(self.excluded, module):
            return False
        if isinstance(self.targets, str):
            everything = self.targets.lower() == "all-linear"
            return module not in ENDS if everything else _matches(self.targets, module)
        if module in self.targets:
            return True  # a full name is not filtered by layer
        return _matches(self.targets, module) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        if self.layers is None:
            return True
        patterns = self.layers_pattern or (r"[^.]*",)
        hits = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
        return any(hit is not None and int(hit[1]) in self.layers for hit in hits)

    def _check_patterns(self, chosen: list[str]) -> None:
        for name, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            for key in pattern:
                if not any(_pattern_matches(key, module) for module in chosen):
                    raise InputError(
                        f"`{name}` must fit adapted modules; got the key {key!r} in {self.where}, which fits none."
                    )


def read_settings(folder: Path) -> LoraSettings:
    """The settings of an adapter folder.

    Raises:
      InputError: another kind of adapter, a feature that is not supported, or a key that is set and not known.
    """
    path = folder / CONFIG
    if not path.exists():
        raise InputError(f"{folder} must hold {CONFIG}; got none. Is it a PEFT adapter's folder?")
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a JSON object; got {type(values).__name__}.")
    where = str(path)
    _refuse_unsupported(values, where)
    settings = LoraSettings(
        rank=_integer(values.get("r"), "r", where),
        alpha=_number(values.get("lora_alpha"), "lora_alpha", where),
        use_rslora=bool(values.get("use_rslora")),
        dropout=_dropout(values.get("lora_dropout") or 0.0, where),
        targets=_names(values.get("target_modules"), "target_modules", where),
        excluded=_names(values.get("exclude_modules") or [], "exclude_modules", where),
        layers=_layers(values.get("layers_to_transform"), where),
        layers_pattern=_patterns(values.get("layers_pattern"), where),
        rank_pattern=_map(values, "rank_pattern", _integer, where),
        alpha_pattern=_map(values, "alpha_pattern", _number, where),
        where=where,
    )
    if isinstance(settings.targets, str) and settings.layers is not None:
        raise InputError(f"`layers_to_transform` must be absent where target_modules is a string; got both in {where}.")
    return settings


def _refuse_unsupported(values: Mapping[str, Any], where: str) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        raise InputError(f"`peft_type` must be LORA; got {kind!r} in {where}. Other adapters are not supported.")
    if (values.get("bias") or "none") != "none":
        raise InputError(
            f"`bias` must be none; got {values['bias']!r} in {where}. Trained biases are not supported yet."
        )
    initialiser = values.get("init_lora_weights", True)
    if (initialiser.lower() if isinstance(initialiser, str) else initialiser) not in (*_INITIALISERS, None):
        hint = "It changes the base weights: convert the adapter to a plain LoRA with PEFT first."
        raise InputError(f"`init_lora_weights` must leave the base alone; got {initialiser!r} in {where}. {hint}")
    for name, value in values.items():
        if name in _UNDERSTOOD or name in _HARMLESS or _is_off(value):
            continue
        known = name in _UNSUPPORTED
        hint = "Adapters with it are not supported yet." if known else "It is not known and may change the result."
        raise InputError(f"`{name}` must be off (null, false, 0 or empty); got {_shown(value)} in {where}. {hint}")


def _is_off(value: Any) -> bool:
    return all(map(_is_off, value.values())) if isinstance(value, dict) else value in (None, False, 0, "", [])


def _matches(names: str | tuple[str, ...], module: str) -> bool:
    """PEFT's rule: a string is a pattern for the whole name; a list holds names or their ends after a dot."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _pattern_matches(key: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", module) is not None


def _first_match(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for key, value in pattern.items() if _pattern_matches(key, module)), default)


def _integer(value: Any, name: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"`{name}` must be a positive integer; got {value!r} in {where}.")
    return value


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"`{name}` must be a number; got {value!r} in {where}.")
    return float(value)


def _dropout(value: Any, where: str) -> float:
    number = _number(value, "lora_dropout", where)
    if not 0 <= number < 1:
        raise InputError(f"`lora_dropout` must be in [0, 1); got {value!r} in {where}.")
    return number


def _names(value: Any, name: str, where: str) -> str | tuple[str, ...]:
    if isinstance(value, str):
        _compiled(value, name, where)
        return value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"`{name}` must be a list of names or a pattern; got {_shown(value)} in {where}.")
    return tuple(value)


def _compiled(pattern: str, name: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"`{name}` must be a valid pattern; got {pattern!r} in {where}: {error}.") from None


def _layers(value: Any, where: str) -> tuple[int, ...] | None:
    if value is None or value == []:
        return None
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in listed):
        raise InputError(f"`layers_to_transform` must be layer numbers; got {_shown(value)} in {where}.")
    return tuple(listed)


def _patterns(value: Any, where: str) -> tuple[str, ...]:
    names = _names([value] if isinstance(value, str) and value else value or [], "layers_pattern", where)
    for name in names:
        _compiled(name, "layers_pattern", where)
    return tuple(names)


def _map(values: Mapping[str, Any], name: str, check: Any, where: str) -> dict[str, Any]:
    pattern = values.get(name) or {}
    if not isinstance(pattern, dict):
        raise InputError(f"`{name}` must be a dictionary; got {_shown(pattern)} in {where}.")
    for key in pattern:
        _compiled(key, name, where)
    return {key: check(value, f"{name}[{key!r}]", where) for key, value in pattern.items()}


def _shown(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else text[:77] + "..."
