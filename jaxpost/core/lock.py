"""One process at a time writes into a folder."""

import os
from pathlib import Path
from typing import IO

from jaxpost.core.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has none, and no lock then
    fcntl = None

LOCK = ".lock"


class FolderLock:
    """A lock on `folder / ".lock"`, from `take` to the end of the `with` block.

    The system gives it up when the process ends, however it ends. The file is removed with the lock; one that a kill
    left is nobody's. Where the file system or the system has no locks, nothing is locked.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / LOCK
        self._file: IO[bytes] | None = None
        self.taken = False

    def take(self) -> None:
        """Takes the lock, unless it is taken here already; the folder must be there.

        Raises:
          InputError: another process has it.
        """
        while not self.taken:
            file = _locked(self._path)
            if file is not None and not _is_at(file, self._path):
                file.close()  # the run before removed it after we had opened it: it keeps nobody out
                continue
            self._file, self.taken = file, True

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
        self._file, self.taken = None, False


def _locked(path: Path) -> IO[bytes] | None:
    """The file, open and locked; None where nothing can be locked."""
    if fcntl is None:
        return None
    try:
        file = path.open("ab")
    except OSError:
        return None  # a folder that may not be written, which is told by whoever writes
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(
            f"`--output` must be a folder that no other run writes into; got {path.parent}, where one is at work. "
            "Wait for its end, or choose another."
        ) from error
    except OSError:  # a file system without locks
        file.close()
        path.unlink(missing_ok=True)
        return None
    return file


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
