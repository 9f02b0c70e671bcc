"""Parquet files -> the columns of each row, as JSON would have them."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from jaxpost.core.errors import InputError

ROWS_AT_ONCE = 1000


def read_parquet(file: Path, used: Collection[str] | None) -> Iterator[tuple[dict[str, Any], str]]:
    """Columns and place (`FILE row N`) of each row, some at a time; a column that is not `used` is read as null
    (None uses all).

    A struct has all its fields in every row, so an absent one and a null look alike: null fields are left out, for chat
    templates ask whether a message has `tool_calls`, not whether they are null. Maps are objects.

    Raises:
      InputError: what is no Parquet file, is damaged, or holds values that Python has not.
    """
    import pyarrow  # slow to import, and JSON Lines do without
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            read = [name for name in names if used is None or name in used]
            for batch in opened.iter_batches(ROWS_AT_ONCE, columns=read):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    columns = {name: without_nulls(row.get(name)) for name in names}
                    yield columns, f"{file} row {number}"
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise InputError(
            f"`data` must be a whole Parquet file of plain values; got {file}, which cannot be read after row {number} "
            f"({' '.join(str(error).split())[:120]}). Write or fetch it again, or convert it to JSON Lines."
        ) from None


def without_nulls(value: Any) -> Any:
    """The value with the null fields of every object in it left out.

    >>> without_nulls({"a": None, "b": [{"c": None}]})
    {'b': [{}]}
    """
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
