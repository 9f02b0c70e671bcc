"""Which tokens each layer sees: the sliding windows of a config.json, by family."""

from typing import Any

from jaxpost.models.hf_fields import Fields


def no_window(fields: Fields, layers: int) -> list[int | None]:
    """Llama: no layer has a window."""
    return _fixed_windows(fields, [None] * layers)


def one_window(fields: Fields, layers: int) -> list[int | None]:
    """Mistral: all layers share `sliding_window` (null: none)."""
    return _fixed_windows(fields, [_window(fields, fields.optional("sliding_window", 4096))] * layers)


def upper_windows(fields: Fields, layers: int) -> list[int | None]:
    """Qwen: windows above `max_window_layers`, if `use_sliding_window`."""
    window = fields.optional("sliding_window", 4096)
    first = fields.integer("max_window_layers", 28, minimum=0)
    window = _window(fields, window) if fields.flag("use_sliding_window", False) else None
    return _typed_windows(fields, window, [window is not None and i >= first for i in range(layers)])


def alternating_windows(fields: Fields, layers: int) -> list[int | None]:
    """Gemma 2: layers 0, 2, 4, ... have the window."""
    window = _window(fields, fields.optional("sliding_window", 4096))
    older = fields.get("sliding_window_size", window)  # early folders say it twice
    if older != window:
        raise fields.error("sliding_window_size", f"equal to sliding_window ({window})", older)
    return _typed_windows(fields, window, [i % 2 == 0 for i in range(layers)])


def patterned_windows(fields: Fields, layers: int) -> list[int | None]:
    """Gemma 3: every sixth layer sees everything; `layer_types` rules over `sliding_window_pattern`."""
    window = _window(fields, fields.optional("sliding_window", 4096))
    pattern = fields.integer("sliding_window_pattern", 6)
    written = fields.integer("_sliding_window_pattern", pattern)  # transformers writes it and reads `layer_types`
    if fields.get("layer_types") is None and written != pattern:
        raise fields.error("_sliding_window_pattern", f"equal to sliding_window_pattern ({pattern})", written)
    return _typed_windows(fields, window, [(i + 1) % pattern != 0 for i in range(layers)])


def _window(fields: Fields, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise fields.error("sliding_window", "a positive number of tokens or null", value)
    return value


def _typed_windows(fields: Fields, window: int | None, sliding: list[bool]) -> list[int | None]:
    """The window of each layer by `layer_types`, or by the family's rule `sliding` without that key."""
    sliding = _sliding_types(fields, len(sliding)) or sliding
    if window is None and any(sliding):
        hint = "Give sliding_window in tokens (Qwen: with use_sliding_window true), or make the layers full_attention."
        raise fields.error("sliding_window", "set where layers are of type sliding_attention", None, hint)
    return [window if local else None for local in sliding]


def _fixed_windows(fields: Fields, windows: list[int | None]) -> list[int | None]:
    """`windows`, in a family that does not read `layer_types`: the key may only repeat them."""
    sliding = _sliding_types(fields, len(windows))
    if sliding and sliding != [window is not None for window in windows]:
        raise fields.error("layer_types", "what sliding_window says in this family", fields.get("layer_types"))
    return windows


def _sliding_types(fields: Fields, layers: int) -> list[bool] | None:
    types = fields.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers:
        rule = f"a list of num_hidden_layers = {layers} names"
        raise fields.error("layer_types", rule, len(types) if isinstance(types, list) else types)
    for name in types:
        if name not in ("sliding_attention", "full_attention"):
            raise fields.error("layer_types", "made of sliding_attention and full_attention", name)
    return [name == "sliding_attention" for name in types]
