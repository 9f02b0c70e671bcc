"""JSON Lines and Parquet files -> rows, each with its number over all files and the place it came from."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.data.parquet import read_parquet
from jaxpost.data.rows import COLUMNS, Row, kind_of, make_row

PARQUET = ".parquet"
SUFFIXES = (".jsonl", ".json", PARQUET)
BOM = b"\xef\xbb\xbf"


def read_rows(paths: str | Path | Sequence[str | Path]) -> Iterator[Row]:
    """The rows of one or several files, JSON Lines or Parquet by their endings, in order, read as they are asked for.

    Of JSON Lines, UTF-8 with or without a byte-order mark, LF or CRLF, blank lines and a last line without its end are
    all accepted.

    Raises:
      InputError: a file that is missing or of another kind (at once), a broken row (when it is reached, with its line
        or number).
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    for file in files:
        _check_file(file)
    return _rows(files)


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


def _rows(files: Sequence[Path]) -> Iterator[Row]:
    source = 0
    for file in files:
        parquet = file.suffix.lower() == PARQUET
        for columns, where in read_parquet(file, COLUMNS) if parquet else _read_jsonl(file):
            source += 1
            yield make_row(columns, source=source, where=where)


def _read_jsonl(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with file.open("rb") as lines:
        # Bytes split at \n only: text mode would also split at a lone \r, and str.splitlines at U+2028.
        for number, line in enumerate(lines, start=1):
            line = (line.removeprefix(BOM) if number == 1 else line).strip()
            if line:
                where = f"{file} line {number}"
                yield _parse(line, where), where


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
