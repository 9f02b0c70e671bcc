"""Whether two results of queries are the same: columns by place, numbers by value, rows in any order unless asked."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Value = None | int | float | str | bytes
Row = Sequence[Value]
Numbers = tuple[int | float, ...]
RELATIVE = 1e-9  # sums of floats depend on the order in which they are made
ABSOLUTE = 1e-12  # what is left of terms that cancel


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a query gave: the number of columns and the rows, and whether it needs a table or view of the database."""

    columns: int
    rows: Sequence[tuple[Value, ...]]
    reads: bool = False


def same_result(first: Result, second: Result, *, ordered: bool) -> bool:
    """Whether both have the same columns by place, and the same rows: as a sequence if `ordered`, else as a multiset.

    Integers, texts and blobs are compared exactly; NULL equals NULL, NaN equals NaN, True is 1, and a text never equals
    a number or a blob. Two numbers of which one is a float at least (1 and 1.0) are equal where
    `|a - b| <= max(1e-9 max(|a|, |b|), 1e-12)`. Names of columns do not matter.

    As multisets: every row of one has a row of its own in the other that equals it in all columns, whatever the order
    of either. n rows take n log n steps, except m rows of equal values but for floats that lie close together, each
    within the tolerance of the next: where sorting does not pair these, all pairs are compared (m^2), and pairing them
    takes m^3 steps at most, with m no more than `Limits.rows`.

    >>> a, b = ((Result(columns=1, rows=rows)) for rows in ([(1,), ("x",)], [("x",), (1.0,)]))
    >>> same_result(a, b, ordered=False), same_result(a, b, ordered=True)
    (True, False)
    """
    if first.columns != second.columns or len(first.rows) != len(second.rows):
        return False
    if ordered:
        return all(all(map(_same, *rows)) for rows in zip(first.rows, second.rows, strict=True))
    hoods = [_neighbourhoods(column) for column in zip(*first.rows, *second.rows, strict=True)]
    ours, theirs = (_groups(result.rows, hoods) for result in (first, second))
    return ours.keys() == theirs.keys() and all(_same_numbers(ours[key], theirs[key]) for key in ours)


def _same(a: Value, b: Value) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return _same_number(a, b)
    return type(a) is type(b) and a == b


def _same_number(a: int | float, b: int | float) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE) or (math.isnan(a) and math.isnan(b))


def _neighbourhoods(column: Iterable[Value]) -> dict[int | float, int] | None:
    """The numbers of a column that holds floats, each with the number of its neighbourhood; None if it holds none.

    Neighbourhoods are parted by more than the tolerance, so that numbers of two are never the same; those of one need
    not be. A NaN has none.
    """
    numbers = [value for value in column if isinstance(value, int | float)]
    if not any(isinstance(value, float) for value in numbers):
        return None
    found: dict[int | float, int] = {}
    last = None
    for value in sorted(value for value in numbers if not math.isnan(value)):
        near = last is not None and math.isclose(last, value, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        found[value] = found[last] + (not near) if last is not None else 0
        last = value
    return found


def _groups(rows: Iterable[Row], hoods: Sequence[Mapping[int | float, int] | None]) -> dict[Any, list[Numbers]]:
    """Rows that may be the same: for each key, the numbers that its rows have in the columns which hold floats."""
    groups: dict[Any, list[Numbers]] = defaultdict(list)
    for row in rows:
        key, numbers = [], []
        for value, hood in zip(row, hoods, strict=True):
            if hood is None or not isinstance(value, int | float):
                key.append(value)
            else:
                key.append((hood.get(value),))  # a tuple, which no value equals
                numbers.append(value)
        groups[tuple(key)].append(tuple(numbers))
    return groups


def _same_numbers(first: Sequence[Numbers], second: Sequence[Numbers]) -> bool:
    """Whether rows of numbers can be paired off so that those of a pair are the same."""
    if len(first) != len(second):
        return False
    first, second = sorted(first), sorted(second)
    if all(all(map(_same_number, *rows)) for rows in zip(first, second, strict=True)):
        return True
    # Sorting does not pair them where noise in one column turned round the order by the next, and that one has steps.
    partners = []
    for row in first:
        partners.append([at for at, other in enumerate(second) if all(map(_same_number, row, other))])
        if not partners[-1]:
            return False
    return _can_pair(partners)


def _can_pair(partners: Sequence[Sequence[int]]) -> bool:
    """Whether each row can have a partner of its own among `partners[row]`: a perfect matching, by augmenting paths.

    "The same within a tolerance" is not transitive, so that to take the first that is free can be a mistake.

    >>> _can_pair([[0, 1], [0]]), _can_pair([[0], [0]])
    (True, False)
    """
    owner: dict[int, int] = {}  # partner to row
    held: dict[int, int] = {}  # row to partner
    return all(_finds_partner(row, partners, owner, held) for row in range(len(partners)))


def _finds_partner(row: int, partners: Sequence[Sequence[int]], owner: dict[int, int], held: dict[int, int]) -> bool:
    """Whether `row` gets a partner, where those who have one may change it; `owner` and `held` are kept up to date."""
    asked_by: dict[int, int] = {}
    queue = [row]
    for asking in queue:  # grows on the way
        for free in partners[asking]:
            if free in asked_by:
                continue
            asked_by[free] = asking
            if free in owner:
                queue.append(owner[free])
                continue
            while free is not None:  # back along the path: each takes what it asked for, and leaves what it had
                taker = owner[free] = asked_by[free]
                held[taker], free = free, held.get(taker)
            return True
    return False
