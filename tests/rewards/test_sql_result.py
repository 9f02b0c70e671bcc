"""When two results of queries are the same: exact values, floats within a tolerance, rows in any order."""

import itertools
import math
import random
import time

import pytest

from jaxpost.rewards.sql_result import Result, same_result


def same(first, second, *, ordered=False):
    """Of rows, or of values that are rows of one column; the answer must not depend on which comes first."""
    results = []
    for rows in (first, second):
        rows = [row if isinstance(row, tuple) else (row,) for row in rows]
        results.append(Result(columns=max(map(len, rows), default=1), rows=rows))
    answer = same_result(*results, ordered=ordered)
    assert same_result(*reversed(results), ordered=ordered) is answer
    return answer


LARGE = {
    "seconds since 1970": [1_700_000_001, 1_700_000_002, 1_700_000_003],
    "ids": [100_000_001, 100_000_002, 9_007_199_254_740_993, 9_007_199_254_740_992],
    "money": [1_234_567.89, 1_234_567.91],
    "money and ids": [(1_234_567.89, 7), (1_234_567.91, 7), (1_234_567.89, 8)],
    "seconds with fractions": [1_700_000_001.25, 1_700_000_011.25, 1_700_000_021.25],
}


@pytest.mark.parametrize("name", LARGE)
def test_large_numbers_that_are_near_match_in_any_order(name):
    """Numbers that agree in the first eight digits are still told apart, whatever order each query gives them in.

    Mutation: jaxpost/rewards/sql_result.py: `ours.keys() == theirs.keys()` -> `list(ours) == list(theirs)`
    Mutation: jaxpost/rewards/sql_result.py: `RELATIVE = 1e-9` -> `RELATIVE = 1e-7`
    """
    rows = LARGE[name]
    for other in itertools.permutations(rows):
        assert same(rows, other)
        assert same(rows, other, ordered=True) is (list(other) == rows)
    assert not same(rows, [*rows[:-1], rows[0]])
    noisy = [row * (1 + 1e-13) if isinstance(row, float) else row for row in reversed(rows)]
    assert same(rows, noisy)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # floats: relative, down to what is left where terms cancel
        (3e-10, 9e-10, False),
        (5e-10, 0.0, False),
        (2e-9, 2.0000000001e-9, True),
        (0.1 + 0.2 - 0.3, 0.0, True),
        (1.0, 1.0 + 1e-10, True),
        (1.0, 1.0 + 1e-8, False),
        (1e300, 1.00000000001e300, True),
        (-1e300, 1e300, False),
        (0.0, -0.0, True),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (math.inf, 1.7e308, False),
        (math.inf, 9, False),
        (math.nan, math.nan, True),
        (math.nan, None, False),
        (math.nan, math.inf, False),
        # integers: exact
        (1_700_000_001, 1_700_000_002, False),
        (2**53, 2**53 + 1, False),
        (2**63 - 1, 2**63 - 2, False),
        (1, 1.0, True),
        (3, 2.9999999999999996, True),
        (2**53 + 1, 2.0**53, True),
        (True, 1, True),
        (False, 0.0, True),
        (True, "1", False),
        # no other type is like another
        (None, None, True),
        (None, 0, False),
        (None, 0.0, False),
        (None, "", False),
        (None, b"", False),
        ("1", 1, False),
        ("1.5", 1.5, False),
        ("a", b"a", False),
        (b"a\0", b"a\0", True),
        (b"a\0", b"a", False),
        ("a", "A", False),
        ("a", "a ", False),
        ("\udcff", "\udcff", True),
    ],
)
def test_values_of_every_type(first, second, expected, ordered):
    """Mutation: jaxpost/rewards/sql_result.py: `ABSOLUTE = 1e-12` -> `ABSOLUTE = 1e-9`

    Mutation: jaxpost/rewards/sql_result.py: `ABSOLUTE = 1e-12` -> `ABSOLUTE = 0.0`
    Mutation: jaxpost/rewards/sql_result.py: ` or (math.isnan(a) and math.isnan(b))` -> ``
    Mutation: jaxpost/rewards/sql_result.py: `if isinstance(a, int) and isinstance(b, int):` -> `if False:`
    Mutation: jaxpost/rewards/sql_result.py: `return type(a) is type(b) and a == b` -> `return str(a) == str(b)`
    """
    assert same([first], [second], ordered=ordered) is expected
    further = ["x", 0.25, None]  # the column has other types too, and floats
    assert same([first, *further], [second, *further], ordered=ordered) is expected
    if not ordered:
        assert same([first, *further], [*further, second]) is expected


def test_no_duplicate_is_lost():
    """Mutation: jaxpost/rewards/sql_result.py: `if len(first) != len(second):` -> `if not first:`"""
    for a, b in [
        (1, 2),
        (1.5, 2.5),
        ("a", "b"),
        (b"a", b"b"),
        (None, 0),
        ((1, 0.5), (2, 0.5)),
        ((1.5, "x"), (1.5, "y")),
    ]:
        assert same([a, a, b], [b, a, a])
        assert not same([a, a, b], [a, b, b])
        assert not same([a, a], [a])


@pytest.mark.parametrize("seed", range(5))
def test_noise_in_several_columns_does_not_hide_a_row(seed):
    """Sums over one group are equal but for the last bits, which then decide how the rows sort.

    Mutation: jaxpost/rewards/sql_result.py: `found[last] + (not near)` -> `found[last] + 1`
    """
    rng = random.Random(seed)

    def noise(value):
        return value * (1 + rng.uniform(-1e-13, 1e-13))

    rows = [(0.3, 0.7, rng.choice("ab"), rng.uniform(0, 9)) for _ in range(50)]
    other = [(noise(a), noise(b), c, noise(d)) for a, b, c, d in rng.sample(rows, len(rows))]
    assert same(rows, other)
    a, b, c, d = other[7]
    assert not same(rows, [*other[:7], (a, b, c, d * 1.001), *other[8:]])
    assert not same(rows, [*other[:7], (a, b, "c", d), *other[8:]])


@pytest.mark.parametrize("seed", range(200))
def test_as_multisets_results_are_the_same_where_some_order_of_rows_is(seed):
    """Against all orders, on values within a tolerance of several others, where the nearest free row can be a mistake.

    Mutation: jaxpost/rewards/sql_result.py: `queue.append(owner[free])` -> `pass`
    Mutation: jaxpost/rewards/sql_result.py: `return _can_pair(partners)` -> `return True`
    Mutation: jaxpost/rewards/sql_result.py: `return _can_pair(partners)` -> `return False`
    """
    rng = random.Random(seed)
    places = [[2e9 + step for step in (0, 1, 2, 3, 4)], [2 * 10**9 + step for step in (0, 1, 2)], [0, 0.0, 1]]
    pool = [value for place in places[: rng.randint(1, 3)] for value in place]
    columns = rng.randint(1, 2)

    def row():
        return tuple(rng.choice(pool) for _ in range(columns))

    first = [row() for _ in range(rng.randint(1, 5))]
    second = [tuple(v + rng.choice([0, 1]) for v in row) for row in rng.sample(first, len(first))]
    expected = any(same(first, list(order), ordered=True) for order in itertools.permutations(second))
    assert same(first, second) is expected


def test_many_rows_of_noisy_floats_take_a_moment():
    """Mutation: jaxpost/rewards/sql_result.py: `found[last] + (not near)` -> `found[last]`"""
    rng = random.Random(0)
    rows = [(1.0, rng.random()) for _ in range(3000)]
    other = [(1.0 + rng.uniform(0, 1e-13), b) for _, b in rng.sample(rows, len(rows))]
    started = time.process_time()
    assert same(rows, other)
    assert not same(rows, [*other[1:], (1.0, 2.0)])
    assert time.process_time() - started < 5
