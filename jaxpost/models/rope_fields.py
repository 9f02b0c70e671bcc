"""The rope settings of a config.json, in both spellings: `rope_parameters`, or `rope_theta` and `rope_scaling`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.models.config import Rope
from jaxpost.models.hf_fields import Fields, is_off, is_positive, shown

_KINDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_LENGTH = "original_max_position_embeddings"  # of llama3 too, but an integer with places to fall back to
_THETA = 10000.0
_THETA_GEMMA3_FULL = 1_000_000.0


def one_rope(fields: Fields) -> tuple[Rope, Rope]:
    """The rope of families where all layers share one, twice (of full and of sliding layers)."""
    scaling, parameters = _either(fields)
    theta = fields.positive("rope_theta", _THETA) if fields.get("rope_theta") is not None else None
    rope = _rope(fields, parameters or scaling, theta, _THETA)
    return rope, rope


def rope_per_layer_type(fields: Fields) -> tuple[Rope, Rope]:
    """Gemma 3: full layers have their own base and scaling, sliding layers another base and, by default, no scaling."""
    scaling, parameters = _either(fields)
    for name, value in parameters.items():
        if name not in ("full_attention", "sliding_attention") or not isinstance(value, Mapping | None):
            rule = "one dictionary for full_attention and one for sliding_attention in this family"
            raise fields.error("rope_parameters", rule, dict(parameters))
    full_theta = fields.positive("rope_theta", _THETA_GEMMA3_FULL) if fields.get("rope_theta") is not None else None
    local = fields.get("rope_local_base_freq")
    local_theta = fields.positive("rope_local_base_freq", _THETA) if local is not None else None
    full = _rope(fields, parameters.get("full_attention") or scaling, full_theta, _THETA_GEMMA3_FULL)
    return full, _rope(fields, parameters.get("sliding_attention") or {}, local_theta, _THETA)


def _either(fields: Fields) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """`rope_scaling` (old) and `rope_parameters` (new); at most one of them is set, or they are equal."""
    scaling, parameters = fields.get("rope_scaling", {}), fields.get("rope_parameters", {})
    for name, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if not isinstance(value, Mapping):
            raise fields.error(name, "a dictionary or null", value)
    if scaling and parameters and scaling != parameters:
        hint = "Keep the one that the checkpoint was trained with."
        raise fields.error("rope_scaling", "absent or equal to rope_parameters where both are given", scaling, hint)
    return scaling, parameters


def _rope(fields: Fields, values: Mapping[str, Any], outer_theta: float | None, default_theta: float) -> Rope:
    kind = _kind(fields, values)
    theta = values.get("rope_theta")
    if theta is not None and outer_theta is not None and theta != outer_theta:
        raise fields.error("rope_theta", f"the same inside and outside of the rope settings ({outer_theta})", theta)
    if theta is not None:
        theta = _number(fields, values, "rope_theta")
    numbers: Any = {name: _number(fields, values, name) for name in _KINDS[kind]}
    _refuse_unknown(fields, values, kind)
    rope = Rope(theta=float(theta or outer_theta or default_theta), kind=kind, **numbers)
    return rope if kind != "llama3" else _with_original_length(fields, values, rope)


def _kind(fields: Fields, values: Mapping[str, Any]) -> Any:
    names = {values[key] for key in ("rope_type", "type") if values.get(key) is not None}
    if len(names) > 1:
        raise fields.error("rope_type", "equal to its older spelling `type`", sorted(map(str, names)))
    kind = names.pop() if names else "default"
    if kind not in _KINDS:
        hint = "The positions would be wrong, so the model is refused."
        raise fields.error("rope_type", f"one of {', '.join(_KINDS)}", kind, hint)
    return kind


def _number(fields: Fields, values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    if not is_positive(value):
        got = f"{shown(value)} in {fields.where}"
        raise InputError(f"`{name}` of the rope settings must be a number above 0; got {got}. Is config.json damaged?")
    return float(value)  # pyright: ignore[reportArgumentType]


def _refuse_unknown(fields: Fields, values: Mapping[str, Any], kind: str) -> None:
    known = {"rope_type", "type", "rope_theta", *_KINDS[kind], *([_LENGTH] if kind == "llama3" else [])}
    for name, value in values.items():
        if name in known or is_off(value) or (name == "partial_rotary_factor" and value == 1):
            continue
        raise InputError(
            f"`{name}` must be absent from the rope settings of kind {kind}; got {shown(value)} in {fields.where}. "
            "It may change the positions, so it is refused."
        )


def _with_original_length(fields: Fields, values: Mapping[str, Any], rope: Rope) -> Rope:
    """Llama 3's original length: inside the settings, else beside them, else the model's own length."""
    inside, beside = values.get(_LENGTH), fields.get(_LENGTH)
    if inside is not None and beside is not None and inside != beside:
        raise fields.error(_LENGTH, f"the same inside and outside of the rope settings ({beside})", inside)
    length = inside or beside or fields.integer("max_position_embeddings")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise fields.error(_LENGTH, "a positive number of tokens", length)
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise fields.error("high_freq_factor", f"above low_freq_factor ({rope.low_freq_factor})", rope.high_freq_factor)
    return replace(rope, original_max_positions=length)
