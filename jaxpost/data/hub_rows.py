"""Data sets of the Hugging Face hub -> the columns of each row, as JSON would have them."""

import hashlib
import sys
from collections.abc import Collection, Iterator
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.data.names import DataName
from jaxpost.data.parquet import without_nulls

ROWS_AT_ONCE = 1000


def load_hub(name: DataName, used: Collection[str] | None) -> Any:
    """The split as a `datasets.Dataset` of its `used` columns (None: all), from the library's own cache if it is there.

    No code of a data set runs: `datasets` has not run any since its version 4.

    Raises:
      InputError: no such data set, configuration, revision or split; no network; none of the columns.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(name.repository, name.config, split=name.split, revision=name.revision)
    except Exception as error:  # whatever the hub's client, a reader or the network raises is about this name
        raise InputError(_refusal(name, error)) from None
    columns = [column for column in found.column_names if used is None or column in used]
    if not columns:
        raise InputError(
            f"a row must have `text`, or `prompt` and `completion`, or `messages`, or `conversations`; got the columns "
            f"{', '.join(found.column_names)[:120]} in {name.text}. Rename or convert the columns."
        )
    return found.select_columns(columns)


def hub_entries(name: DataName, dataset: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Columns and place (`NAME row N`) of each row, some at a time; null fields of a struct are left out."""
    number = 0
    for batch in dataset.iter(ROWS_AT_ONCE):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield without_nulls(dict(zip(batch, values, strict=True))), f"{name.text} row {number}"


def hub_digest(dataset: Any) -> str:
    """SHA-256 of the rows' Arrow form (hex), with the names of the columns."""
    digest = hashlib.sha256(str(dataset.features).encode())
    for table in dataset.with_format("arrow").iter(ROWS_AT_ONCE):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def _refusal(name: DataName, error: Exception) -> str:
    while isinstance(error.__cause__, Exception):  # "an error occurred while generating the dataset"
        error = error.__cause__
    reason = " ".join(str(error).split())[:240] or type(error).__name__
    return (
        f"`data` must be a file that exists, or a data set that the hub or the local cache has; got {name.text} "
        f"({type(error).__name__}: {reason}). Check the path or the name, its split, and the network."
    )
