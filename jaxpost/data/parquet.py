"""Parquet files -> the columns of each row, as JSON would have them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpost.core.errors import InputError

ROWS_AT_ONCE = 1000


def read_parquet(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Columns and place (`FILE row N`) of each row, some at a time.

    A struct has all its fields in every row; those that are null are left out, as a JSON writer would have done: chat
    templates ask whether a message has `tool_calls`, not whether they are null.

    Raises:
      InputError: what is no Parquet file, or is cut off.
    """
    import pyarrow  # slow to import, and JSON Lines do without
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield _without_nulls(row), f"{file} row {number}"
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"`data` must be a whole Parquet file; got {file}, of which row {number + 1} cannot be read "
            f"({' '.join(str(error).split())[:120]}). Write or fetch it again."
        ) from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
