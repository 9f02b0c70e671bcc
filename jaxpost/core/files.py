"""Files and folders that appear whole or not at all, and JSON with one-line errors.

Each is written beside its place under a hidden name, flushed to the disk and renamed, so that a crash at any moment
leaves the old state or the new one. The hidden names are `.jaxpost-aside-` and eight characters, whatever is written:
nobody else's files have them, so what a crash left can be told and removed.
"""

import functools
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.core.signals import unfinished

_ASIDE = ".jaxpost-aside-"


def write_file(path: str | Path, data: str | bytes) -> None:
    """Writes a whole file atomically (text as UTF-8); an existing one is replaced."""
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_ASIDE)
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
    _make_folder(path.absolute().parent)
    with _aside_in(path.absolute().parent) as folder:
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
    with _made(path), _aside_in(path) as folder:
        yield folder
        for file in sorted(item for item in folder.rglob("*") if item.is_file()):
            target = path / file.relative_to(folder)
            _make_folder(target.parent)
            _publish(file, target)


def is_leftover(name: str) -> bool:
    """Whether a file or folder is one that a crash left half written or half removed, by its name.

    >>> is_leftover(".jaxpost-aside-k3_x9ab2"), is_leftover(".gitignore"), is_leftover(".jaxpost-aside-notes.txt")
    (True, False, False)
    """
    return re.fullmatch(re.escape(_ASIDE) + "[a-z0-9_]{8}", name) is not None


def remove_leftovers(folder: str | Path) -> None:
    """Removes what crashes left in a folder, not below it; nothing else, and nothing where there is no folder."""
    folder = Path(folder)
    for item in [item for item in folder.iterdir() if is_leftover(item.name)] if folder.is_dir() else ():
        shutil.rmtree(item, ignore_errors=True) if item.is_dir() else item.unlink()


def remove_folder(folder: str | Path) -> None:
    """Removes a folder that is hidden before it is emptied: a crash in between leaves no half under its name, and
    whoever is about to rename it either was faster, with all that is in it (then OSError), or cannot any more."""
    folder = Path(folder)
    hidden = folder.with_name(_ASIDE + secrets.token_hex(4))
    folder.rename(hidden)
    for _ in range(2):  # another thread may still fill files that it has open
        shutil.rmtree(hidden, ignore_errors=True)


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
    """Writes `value` atomically as `json_text`."""
    write_file(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON with a final newline; a NaN or infinity is a ValueError."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """Makes the folder `path` if need be, and unmakes it where the block fails and it is still empty."""
    there = path.is_dir()
    _make_folder(path)
    try:
        yield
    except BaseException:
        if not there and not any(path.iterdir()):
            path.rmdir()
        raise


@contextmanager
def _aside_in(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent`, gone at the end if it was not renamed."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=_ASIDE))
    try:
        os.chmod(folder, 0o777 & ~_umask())
        with unfinished(functools.partial(remove_folder, folder)):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(source: Path, target: Path) -> None:
    """Renames onto `target` after everything in `source` is on the disk."""
    for item in [*source.rglob("*"), source] if source.is_dir() else [source]:
        _flush(item)
    os.replace(source, target)
    _flush(target.absolute().parent)


def _make_folder(path: Path) -> None:
    """With its parents; that they are there is on the disk too."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _flush(path.absolute().parent)


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
