"""Tokenised data kept in the user's cache folder, found again by everything that it depends on.

A copy is two files, `KEY.arrow` with the examples and `KEY.json` with what became of the rows and the hash of the
former. One that does not match its hash is made anew.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxpost.core.errors import RunError
from jaxpost.core.files import fill_folder, write_json
from jaxpost.data.examples import Example, Tally
from jaxpost.data.store import Stored, write_examples

PACKAGES = ("transformers", "tokenizers", "jinja2")  # whose versions decide what a row becomes
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """A copy of tokenised data: its examples, what became of the rows, and the examples' fingerprint."""

    examples: Stored
    tally: Tally
    fingerprint: str


def cache_folder() -> Path:
    """`$JAXPOST_CACHE/data`, or `jaxpost/data` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("JAXPOST_CACHE") or Path(above, "jaxpost")) / "data"


def key_of(tokenizer: Any, **depends: Any) -> str | None:
    """The hash (hex) of all that tokenised data depends on; None for a tokenizer that cannot tell what it does.

    Args:
      tokenizer: a fast one; its vocabulary, normaliser, special tokens, chat template and name count.
      depends: JSON values: the data's content and name, the options.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    about = {
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "folder": tokenizer.name_or_path,  # warnings that are kept name it, and the data's files
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "code": _code(),
    }
    return hashlib.sha256(json.dumps({**about, **depends}, sort_keys=True).encode()).hexdigest()


def kept(key: str | None, make: Callable[[Tally], Iterator[Example]]) -> Kept:
    """The copy of that key, made by `make` (which fills the tally) where there is none, or only a damaged one.

    Without a key, or a cache folder that can be written, it lies in the temporary folder for as long as it is used.

    Raises:
      RunError: it cannot be written.
    """
    folder = cache_folder()
    found = None if key is None else _read(folder, key)
    if found is not None:
        return found
    with _place(folder if key is not None else None) as folder:
        name = key or "examples"
        with fill_folder(folder) as aside:
            _write(aside, name, make)
        made = _read(folder, name)
    if made is None:
        raise RunError(f"the tokenised data in {folder} is not what was written. Check the disk.")
    return made


@contextlib.contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    if folder is not None and _writable(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        yield Path(temporary) / "data"  # the mapped file stays readable when its name is gone


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _write(folder: Path, name: str, make: Callable[[Tally], Iterator[Example]]) -> None:
    import pyarrow

    tally = Tally()
    file = folder / f"{name}.arrow"
    try:
        fingerprint = write_examples(file, make(tally))
        told = {"counts": dict(tally.counts), "first": tally.first, "bad": tally.bad}
        summary = {**told, "fingerprint": fingerprint, "file": _hash(file)}
        write_json(folder / f"{name}.json", {"summary": summary, "sha256": _hash_json(summary)})
    except (OSError, pyarrow.ArrowException) as error:
        raise RunError(f"cannot write the tokenised data to {folder.parent}: {error}.") from error


def _read(folder: Path, name: str) -> Kept | None:
    """None where there is no whole copy."""
    file, about = folder / f"{name}.arrow", folder / f"{name}.json"
    if not about.exists():
        return None
    try:
        held = json.loads(about.read_bytes())
        summary = held["summary"]
        if held["sha256"] == _hash_json(summary) and summary["file"] == _hash(file):
            tally = Tally(counts=collections.Counter(summary["counts"]), first=summary["first"], bad=summary["bad"])
            return Kept(examples=Stored(file), tally=tally, fingerprint=summary["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    log.warning("the tokenised copy of the data at %s is damaged; it is made anew.", file)
    return None


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _hash_json(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """The hash of this room's files: what another version tokenised is not taken for this version's."""
    files = sorted(path for path in Path(__file__).parent.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
