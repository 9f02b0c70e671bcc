"""Files and folders that appear whole or not at all, and JSON with one-line errors.

Each is written beside its place under a hidden name, flushed to the disk and renamed, so that a crash at any moment
leaves the old state or the new one.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxpost.core.errors import InputError


def write_file(path: str | Path, data: str | bytes) -> None:
    """Writes a whole file atomically (text as UTF-8); an existing one is replaced."""
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's 0600 would hide the file from others
        _publish(Path(name), path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` when the block ends without an error, and vanishes otherwise.

    `path` may exist if it is empty; parents are made.

    Raises:
      InputError: `path` is a file or a folder that holds something.
    """
    path = Path(path)
    refuse_existing(path)
    with _beside(path) as folder:
        yield folder
        if path.is_dir():
            path.rmdir()  # empty, as checked; a rename onto a folder is not possible everywhere
        _publish(folder, path)


@contextmanager
def fill_folder(path: str | Path) -> Iterator[Path]:
    """A folder whose files move into `path`, each whole, when the block ends without an error.

    For an output folder that already holds other things (checkpoints, metrics): files of the same name are replaced,
    the others stay.
    """
    path = Path(path)
    with _beside(path) as folder:
        yield folder
        path.mkdir(parents=True, exist_ok=True)
        for file in sorted(item for item in folder.rglob("*") if item.is_file()):
            target = path / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _publish(file, target)


def refuse_existing(path: str | Path, name: str = "--output") -> None:
    """`InputError` unless `path` is free or an empty folder; `name` is the option that gave it."""
    path = Path(path)
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"`{name}` must be a new or empty folder; got {path}, which is not empty. Choose another.")
    if path.exists() and not path.is_dir():
        raise InputError(f"`{name}` must be a new or empty folder; got the file {path}. Choose another.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        problem = "may not be written" if above.is_dir() else "is a file"
        raise InputError(f"`{name}` must be a folder that can be made; got {path}, but {above} {problem}.")


def refuse_existing_file(path: str | Path, name: str = "--output") -> None:
    """`InputError` unless a new file can be written at `path`; `name` is the option that gave it."""
    path = Path(path)
    if path.exists():
        raise InputError(f"`{name}` must be a new file; got {path}, which exists. Choose another.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        problem = "may not be written" if above.is_dir() else "is a file"
        raise InputError(f"`{name}` must be a file that can be made; got {path}, but {above} {problem}.")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; `InputError` names the file, and the line where it is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: line {error.lineno} column {error.colno}: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text; byte {error.start} is not.") from error


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` atomically as indented JSON with a final newline; a NaN or infinity is an error."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A hidden folder on the same file system as `path`, gone at the end if it was not renamed."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        os.chmod(folder, 0o777 & ~_umask())
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(source: Path, target: Path) -> None:
    """Renames onto `target` after everything in `source` is on the disk."""
    for item in [*source.rglob("*"), source] if source.is_dir() else [source]:
        _flush(item)
    os.replace(source, target)
    _flush(target.absolute().parent)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
