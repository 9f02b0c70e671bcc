"""Layer index <-> (stage, position, repeat): one order, found again from the stages."""

import numpy as np
import pytest

from jaxpost.stages import MAX_PERIOD, Slot, Stage, group, layers_of, slots


def written_out(stages):
    """The kinds of all layers, by the definition of a stage."""
    return [kind for stage in stages for _ in range(stage.repeats) for kind in stage.kinds]


@pytest.mark.parametrize("seed", range(40))
def test_stages_hold_the_layers_in_their_order(seed):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, rng.integers(1, 4), size=rng.integers(1, 40)).tolist()
    stages = group(kinds)
    assert written_out(stages) == kinds
    assert sum(stage.num_layers for stage in stages) == len(kinds)
    assert all(1 <= len(stage.kinds) <= MAX_PERIOD for stage in stages)


@pytest.mark.parametrize("seed", range(10))
def test_a_slot_is_where_the_layer_lies(seed):
    rng = np.random.default_rng(seed)
    stages = group(rng.integers(0, 3, size=30).tolist())
    found = slots(stages)
    assert len(set(found)) == len(found) == 30
    for layer, (stage, position, repeat) in enumerate(found):
        assert layers_of(stages, stage, position)[repeat] == layer
        assert stages[stage].kinds[position] == written_out(stages)[layer]


@pytest.mark.parametrize(
    ("kinds", "want"),
    [
        ("", []),
        ("L", [("L", 1)]),
        ("LLLL", [("L", 4)]),
        ("LG", [("L", 1), ("G", 1)]),
        ("LGLG", [("LG", 2)]),
        ("LLLLLG" * 5 + "LL", [("LLLLLG", 5), ("L", 2)]),  # Gemma 3 with 32 layers
        ("LGLGL", [("LG", 2), ("L", 1)]),
        ("GLLL", [("G", 1), ("L", 3)]),
        ("ABCDEFGHI" * 2, [(c, 1) for c in "ABCDEFGHI" * 2]),  # a period of nine is too long
        ("AABAABAAB", [("AAB", 3)]),  # the whole list rather than its first two layers
    ],
)
def test_the_period_that_covers_most_layers(kinds, want):
    assert [("".join(stage.kinds), stage.repeats) for stage in group(kinds)] == want


def test_all_layers_of_a_stage_come_before_the_next():
    stages = (Stage(("L", "G"), 2), Stage(("L",), 3))
    assert slots(stages) == [
        Slot(0, 0, 0),
        Slot(0, 1, 0),
        Slot(0, 0, 1),
        Slot(0, 1, 1),
        Slot(1, 0, 0),
        Slot(1, 0, 1),
        Slot(1, 0, 2),
    ]
    assert layers_of(stages, 0, 1) == [1, 3]
    assert layers_of(stages, 1, 0) == [4, 5, 6]


def test_stages_are_hashable_and_equal_by_value():
    assert hash(group("LGLG")) == hash(group(list("LGLG")))
    assert group("LGLG") == group(list("LGLG"))
