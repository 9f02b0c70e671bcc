"""Files and data sets -> rows, each with its number over all of them and the place it came from."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.data.hub_rows import hub_digest, hub_entries, load_hub
from jaxpost.data.messages import kind_of
from jaxpost.data.names import PARQUET, SUFFIXES, DataName, parse_names
from jaxpost.data.parquet import read_parquet
from jaxpost.data.rows import COLUMNS, BadRow, Row, make_row

BOM = b"\xef\xbb\xbf"
Entry = tuple[Callable[[], dict[str, Any]], str]  # reads the columns of a row; its place


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One item of `--data`, opened.

    Attributes:
      name: what was asked for.
      dataset: the `datasets.Dataset` of a name of the hub; None for a file.
    """

    name: DataName
    dataset: Any = None

    def digest(self) -> str:
        """SHA-256 of the content (hex), whatever its name and age."""
        if self.name.path is None:
            return hub_digest(self.dataset)
        try:
            with self.name.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"cannot read {self.name.path}: {error.strerror}.") from error

    def rows(self, first: int = 1, *, keep_bad: bool = False) -> Iterator[Row | BadRow]:
        """The rows, numbered from `first`; a broken one raises, or with `keep_bad` comes as a `BadRow`."""
        for number, (read, where) in enumerate(self.entries(), start=first):
            try:
                yield make_row(read(), source=number, where=where)
            except InputError as error:
                if not keep_bad:
                    raise
                yield BadRow(source=number, where=where, reason=str(error))

    def entries(self, used: Collection[str] | None = COLUMNS) -> Iterator[Entry]:
        """How to read each row's columns, and its place."""
        path = self.name.path
        if path is not None and path.suffix.lower() != PARQUET:
            yield from _read_jsonl(path)
            return
        entries = hub_entries(self.name, self.dataset) if path is None else read_parquet(path, used)
        for columns, where in entries:
            yield functools.partial(dict, columns), where


def read_rows(data: str | Path | Sequence[str | Path], *, keep_bad: bool = False) -> Iterator[Row | BadRow]:
    """The rows of one or several items of `--data` (`jaxpost.data.names`), in order, read as they are asked for.

    Of JSON Lines, UTF-8 with or without a byte-order mark, LF or CRLF, blank lines and a last line without its end are
    all accepted. Weights are of no effect here.

    Args:
      keep_bad: a broken row comes as a `BadRow` instead of raising.

    Raises:
      InputError: an item that is missing or of another kind (at once), a broken row (when it is reached, with its line
        or number).
    """
    return _numbered(open_sources(data), keep_bad)


def read_columns(data: str | Path | Sequence[str | Path]) -> Iterator[tuple[dict[str, Any], str]]:
    """All columns of each row of such items, and its place; `read_rows` makes rows to train on of them."""
    entries = [source.entries(None) for source in open_sources(data, None)]
    return ((read(), where) for read, where in itertools.chain.from_iterable(entries))


def open_sources(data: str | Path | Sequence[str | Path], used: Collection[str] | None = COLUMNS) -> list[Source]:
    """The items of `--data`: every file checked, every data set fetched with the columns `used` (None: all).

    Raises:
      InputError: an item that is missing or of another kind.
    """
    names = parse_names([data] if isinstance(data, str | Path) else data)
    for name in names:
        if name.path is not None:
            _check_file(name.path)
    return [Source(name=name, dataset=None if name.path else load_hub(name, used)) for name in names]


def _numbered(sources: Sequence[Source], keep_bad: bool) -> Iterator[Row | BadRow]:
    number = 0
    for source in sources:
        for row in source.rows(number + 1, keep_bad=keep_bad):
            number = row.source
            yield row


def _check_file(file: Path) -> None:
    if not file.exists():
        raise InputError(f"`data` must be a file that exists; got {file}. Check the path.")
    if file.is_dir():
        raise InputError(f"`data` must be a file; got the folder {file}. Name the files in it.")
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"`data` must be JSON Lines (.jsonl or .json, one object a line) or Parquet ({PARQUET}); got {file}. "
            "Convert it to JSON Lines."
        )


def _read_jsonl(file: Path) -> Iterator[Entry]:
    with file.open("rb") as lines:
        # Bytes split at \n only: text mode would also split at a lone \r, and str.splitlines at U+2028.
        for number, line in enumerate(lines, start=1):
            line = (line.removeprefix(BOM) if number == 1 else line).strip()
            if line:
                where = f"{file} line {number}"
                yield functools.partial(_parse, line, where), where


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        columns = json.loads(line.decode("utf-8"))
        # JSON may spell half of a surrogate pair, which is no text: tokenizers fail on it without saying where.
        if b"\\ud" in line.lower():
            json.dumps(columns, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"`data` must be UTF-8; got byte {error.object[error.start]:#04x} at {where}. Save it as UTF-8."
        ) from None
    except UnicodeEncodeError:
        raise InputError(
            f"text must be Unicode; got a lone surrogate escape at {where}. Fix or remove the row."
        ) from None
    except json.JSONDecodeError as error:
        problem = f"{error.msg[0].lower()}{error.msg[1:]} (column {error.colno})"
        raise InputError(
            f"each line must be one JSON object; got {problem} at {where}. Fix or remove the line."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"each line must be one JSON object; got {error} at {where}. Fix or remove the line."
        ) from None
    if not isinstance(columns, dict):
        kind = kind_of(columns)
        raise InputError(f"each line must be one JSON object; got {kind} at {where}. Write one row a line as {{...}}.")
    return columns
