"""A folder belongs to one process at a time."""

import os
import subprocess
import sys

import pytest

from jaxpost.core import lock
from jaxpost.core.errors import InputError
from jaxpost.core.lock import LOCK, FolderLock

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="the system has no such locks")


def test_the_second_is_refused_until_the_first_is_done(tmp_path):
    """Mutation: jaxpost/core/lock.py: `        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)` -> `        pass`"""
    with FolderLock(tmp_path) as first, FolderLock(tmp_path) as second:
        first.take()
        first.take()
        with pytest.raises(InputError, match=f"no other run writes into; got {tmp_path}"):
            second.take()
        assert first.taken and not second.taken
    with FolderLock(tmp_path) as third:
        third.take()
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_not_taken_leaves_the_others_file(tmp_path):
    """Mutation: jaxpost/core/lock.py: `        if self._file is not None:` -> `        if True:`"""
    with FolderLock(tmp_path) as first:
        first.take()
        with pytest.raises(InputError), FolderLock(tmp_path) as second:
            second.take()
        assert (tmp_path / LOCK).exists()


def test_a_killed_process_locks_nothing(tmp_path):
    """Its file is still there."""
    code = (
        "import os, signal, sys\nfrom jaxpost.core.lock import FolderLock\n"
        f"with FolderLock({str(tmp_path)!r}) as lock:\n    lock.take()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9 and (tmp_path / LOCK).exists()
    with FolderLock(tmp_path) as mine:
        mine.take()
        assert mine.taken
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_removed_after_it_was_opened_locks_nothing(tmp_path, monkeypatch):
    """The other run ends between our opening of its file and our lock: a third one must not get another file.

    Mutation: jaxpost/core/lock.py: `if file is not None and not _is_at(file, self._path):` -> `if False:`
    """
    flock, held = lock.fcntl.flock, FolderLock(tmp_path)

    def slow(file, how):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        (tmp_path / LOCK).unlink()
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", slow)
    with held:
        held.take()
        with pytest.raises(InputError), FolderLock(tmp_path) as other:
            other.take()


@pytest.mark.parametrize("how", ["no such call", "no such file system", "not ours"])
def test_where_nothing_can_be_locked_nothing_is(how, tmp_path, monkeypatch):
    """Windows, file systems without locks, folders that may not be written: that is told by whoever writes."""

    def none(*_):
        raise OSError(38, "Function not implemented")

    if how == "no such call":
        monkeypatch.setattr(lock, "fcntl", None)
    elif how == "no such file system":
        monkeypatch.setattr(lock.fcntl, "flock", none)
    else:
        monkeypatch.setattr("pathlib.Path.open", none)
    with FolderLock(tmp_path) as one, FolderLock(tmp_path) as two:
        one.take()
        two.take()
        assert one.taken and two.taken and os.listdir(tmp_path) == []
