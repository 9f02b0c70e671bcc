"""Layers as stages of repeating periods, and the one map between layer index and place in the stacks.

A stage holds `repeats` copies of a period of layer kinds; its parameters are one stack per position of the period.
Layer order: all layers of stage 0 first; inside a stage repeat by repeat, inside a repeat position by position.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

Kind = TypeVar("Kind", bound=Hashable)

MAX_PERIOD = 8  # Gemma 3's period is six; longer ones are written out as stages of their own


@dataclass(frozen=True)
class Stage(Generic[Kind]):
    """`repeats` copies of the layers `kinds`, in this order."""

    kinds: tuple[Kind, ...]
    repeats: int

    @property
    def num_layers(self) -> int:
        return len(self.kinds) * self.repeats


class Slot(NamedTuple):
    """Where one layer lives: `params["layers"][stage][position]`, index `repeat` of each leaf."""

    stage: int
    position: int
    repeat: int


def group(kinds: Sequence[Kind]) -> tuple[Stage[Kind], ...]:
    """The stages of a list of layer kinds: at each point the period that covers most layers, the shortest such.

    >>> group("LLGLLGL")
    (Stage(kinds=('L', 'L', 'G'), repeats=2), Stage(kinds=('L',), repeats=1))
    """
    stages, start = [], 0
    while start < len(kinds):
        period, repeats = _best_period(kinds[start:])
        stages.append(Stage(tuple(kinds[start : start + period]), repeats))
        start += period * repeats
    return tuple(stages)


def _best_period(kinds: Sequence[Kind]) -> tuple[int, int]:
    best = (1, 1)
    for period in range(1, min(MAX_PERIOD, len(kinds)) + 1):
        repeats = 1
        while kinds[repeats * period : (repeats + 1) * period] == kinds[:period]:
            repeats += 1
        if repeats > 1 and period * repeats > best[0] * best[1]:
            best = (period, repeats)
    return best


def slots(stages: Sequence[Stage]) -> list[Slot]:
    """The slot of every layer, in layer order.

    >>> slots((Stage(("L", "G"), 2),))[2]
    Slot(stage=0, position=0, repeat=1)
    """
    return [
        Slot(s, position, repeat)
        for s, stage in enumerate(stages)
        for repeat in range(stage.repeats)
        for position in range(len(stage.kinds))
    ]


def layers_of(stages: Sequence[Stage], stage: int, position: int) -> list[int]:
    """The layer indices stacked at `params["layers"][stage][position]`, in stack order.

    >>> layers_of((Stage(("L", "G"), 2),), 0, 1)
    [1, 3]
    """
    return [i for i, slot in enumerate(slots(stages)) if (slot.stage, slot.position) == (stage, position)]


def hf_names(path: str, stages: Sequence[Stage]) -> tuple[str, ...]:
    """The Hugging Face names of a leaf or module path, one for each layer of its stack.

    >>> hf_names("layers/0/1/mlp/up_proj/weight", (Stage(("L", "G"), 2),))
    ('model.layers.1.mlp.up_proj.weight', 'model.layers.3.mlp.up_proj.weight')
    >>> hf_names("norm/weight", ()), hf_names("lm_head", ())
    (('model.norm.weight',), ('lm_head',))
    """
    root, *rest = path.split("/")
    if root == "layers" and stages:
        stage, position, *rest = rest
        return tuple(f"model.layers.{i}.{'.'.join(rest)}" for i in layers_of(stages, int(stage), int(position)))
    prefix = "model." if root in ("embed_tokens", "norm") else ""
    return (prefix + ".".join([root, *rest]),)
