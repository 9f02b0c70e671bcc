"""Whether two results of queries are the same: columns by place, numbers by value, rows in any order unless asked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Value = None | int | float | str | bytes
RELATIVE = 1e-9  # sums of floats depend on the order in which they are made


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a query gave: the number of columns, the rows, and the tables of the database that it read."""

    columns: int
    rows: Sequence[tuple[Value, ...]]
    tables: frozenset[str] = field(default=frozenset())


def same_result(first: Result, second: Result, *, ordered: bool) -> bool:
    """Whether both have the same columns by place, and the same rows: as a sequence if `ordered`, else as a multiset.

    1 equals 1.0, floats equal within 1e-9 (relative), NULL equals NULL; a text never equals a number. Names of columns
    do not matter.

    >>> a, b = ((Result(columns=1, rows=rows)) for rows in ([(1,), ("x",)], [("x",), (1.0,)]))
    >>> same_result(a, b, ordered=False), same_result(a, b, ordered=True)
    (True, False)
    """
    if first.columns != second.columns or len(first.rows) != len(second.rows):
        return False
    rows = (first.rows, second.rows) if ordered else (sorted(first.rows, key=_key), sorted(second.rows, key=_key))
    return all(_same(a, b) for one, other in zip(*rows, strict=True) for a, b in zip(one, other, strict=True))


def _key(row: Sequence[Value]) -> Any:
    """Sorts rows of mixed types; floats are rounded, so that noise in a column does not undo the next one's order."""
    return tuple(_value_key(value) for value in row)


def _value_key(value: Value) -> Any:
    if value is None:
        return (0, 0)
    if isinstance(value, int | float):
        return (1, _rounded(value))
    return (2, value) if isinstance(value, str) else (3, value)


def _rounded(value: int | float) -> int | float:
    exact = isinstance(value, int) and abs(value) > 2**53
    return value if exact or not math.isfinite(value) else float(f"{value:.8g}")


def _same(a: Value, b: Value) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        both_whole = isinstance(a, int) and isinstance(b, int)
        return a == b if both_whole else math.isclose(a, b, rel_tol=RELATIVE, abs_tol=RELATIVE)
    return type(a) is type(b) and a == b
