"""Atomic files and folders: the old state or the new one, whatever happens in between."""

import json
import os
import stat

import pytest

from jaxpost.core.errors import InputError
from jaxpost.core.files import (
    fill_folder,
    is_leftover,
    new_folder,
    read_json,
    refuse_existing,
    remove_folder,
    remove_leftovers,
    write_file,
    write_json,
)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_replaced_whole(tmp_path):
    write_file(tmp_path / "a", "one")
    write_file(tmp_path / "a", b"\x00\xff")
    assert tree(tmp_path) == {"a": b"\x00\xff"}


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_file(tmp_path / "a", "old")

    def broken(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_file(tmp_path / "a", "new")
    assert tree(tmp_path) == {"a": b"old"}


def test_files_and_folders_are_readable_by_the_same_users_as_others(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_file(tmp_path / "atomic", "x")
    with new_folder(tmp_path / "folder") as folder:
        (folder / "x").write_text("x")
    (tmp_path / "plain_folder").mkdir()
    mode = lambda name: stat.S_IMODE((tmp_path / name).stat().st_mode)  # noqa: E731
    assert mode("atomic") == mode("plain") and mode("folder") == mode("plain_folder")


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_folder_appears_whole(exists, tmp_path):
    path = tmp_path / "deep" / "out"
    if exists:
        path.mkdir(parents=True)
    with new_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not tree(path), "nothing there before the end"
    assert tree(tmp_path) == {"deep/out/sub/a": b"1"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("maker", [new_folder, fill_folder])
def test_an_error_leaves_no_folder(maker, error, tmp_path):
    with pytest.raises(error), maker(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("1")
    with pytest.raises(InputError, match="not empty"), new_folder(tmp_path / "out"):
        raise AssertionError("the block must not run")
    with pytest.raises(InputError, match="`--output`.*the file"):
        refuse_existing(tmp_path / "out" / "precious")
    refuse_existing(tmp_path / "free")
    assert tree(tmp_path) == {"out/precious": b"1"}


def test_filling_a_folder_replaces_only_what_it_brings(tmp_path):
    path = tmp_path / "out"
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / "1").write_text("state")
    (path / "config.json").write_text("old")
    with fill_folder(path) as folder:
        (folder / "config.json").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("b")
        assert (path / "config.json").read_text() == "old"
    assert tree(tmp_path) == {"out/checkpoints/1": b"state", "out/config.json": b"new", "out/sub/b": b"b"}


@pytest.mark.parametrize("maker", [new_folder, fill_folder])
def test_filling_happens_where_leftovers_are_looked_for(maker, tmp_path):
    """New folders beside their place, fillings inside the folder that is theirs: nothing is put beside it.

    Mutation: jaxpost/core/files.py: `with _made(path), _aside_in(path) as folder:` -> `with _made(path), _aside_in(path.parent) as folder:`
    """  # noqa: E501
    (tmp_path / "above").mkdir()
    with maker(tmp_path / "above" / "out") as folder:
        (folder / "a").write_text("1")
        assert is_leftover(folder.name)
        assert folder.parent == (tmp_path / "above" if maker is new_folder else tmp_path / "above" / "out")
    assert tree(tmp_path) == {"above/out/a": b"1"}


def test_a_folder_that_failed_to_be_filled_is_gone_if_it_was_not_there(tmp_path):
    """Mutation: jaxpost/core/files.py: `if not there and not any(path.iterdir()):` -> `if not any(path.iterdir()):`"""
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("1")
    for name in ("empty", "full", "new"):
        with pytest.raises(ValueError, match="no"), fill_folder(tmp_path / name):
            raise ValueError("no")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"] and tree(tmp_path) == {"full/a": b"1"}


def test_leftovers_are_told_by_their_names(tmp_path, monkeypatch):
    """What each function leaves when the process dies is removed, and nothing that is called otherwise.

    Mutation: jaxpost/core/files.py: `folder.with_name(_ASIDE + secrets.token_hex(4))` -> `folder.with_name(".removed")`
    Mutation: jaxpost/core/files.py: `tempfile.mkstemp(dir=path.parent, prefix=_ASIDE)` -> `tempfile.mkstemp(dir=path.parent, prefix=".")`
    """  # noqa: E501
    others = [
        ".git",
        ".jaxpost",
        ".jaxpost-aside-",
        ".jaxpost-aside-k3_x9ab2.txt",
        ".out.abcdefgh",
        "jaxpost-aside-k3_x9ab2",
    ]
    for name in [*others, "old", "out"]:
        (tmp_path / name / "inside").mkdir(parents=True)

    def crash(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxpost.core.files._publish", crash)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # a killed process tidies nothing up
    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
    remove_folder(tmp_path / "old")
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", "x")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "b"):
        pass
    with pytest.raises(KeyboardInterrupt), fill_folder(tmp_path / "out") as folder:
        (folder / "c").write_text("x")
    monkeypatch.undo()
    left = [path for place in (tmp_path, tmp_path / "out") for path in place.iterdir() if is_leftover(path.name)]
    assert len(left) == 4
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "out")
    remove_leftovers(tmp_path / "nothing")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "out"])
    assert all(any(path.iterdir()) for path in tmp_path.iterdir())


def test_json_goes_there_and_back(tmp_path):
    value = {"ä": [1, 2.5, None, "x\ny"], "nested": {"b": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "b.json", {"loss": float("nan")})
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [(b'{"a": 1,\n oops}', "line 2"), (b"", "line 1"), (b'{"a": "\xff"}', "UTF-8"), (None, "No such file")],
)
def test_a_bad_json_file_is_one_line_that_names_it(content, part, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=part) as caught:
        read_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_json_of_windows_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json(tmp_path / "a.json") == {"a": 1}


def event(kind, status):
    return kind, (status.st_dev, status.st_ino)


@pytest.fixture
def events(monkeypatch):
    """What is flushed to the disk and what is renamed, in order, each by its device and inode; and folders made."""
    seen, fsync, replace, mkdir = [], os.fsync, os.replace, os.mkdir

    def flushing(handle):
        seen.append(event("flush", os.fstat(handle)))
        fsync(handle)

    def renaming(source, target):
        seen.append(event("rename", os.stat(source)))
        replace(source, target)

    def making(path, *mode, **options):
        mkdir(path, *mode, **options)
        seen.append(event("make", os.stat(path)))

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", renaming)
    monkeypatch.setattr(os, "mkdir", making)
    return seen


def where(events, kind, path):
    return [n for n, seen in enumerate(events) if seen == event(kind, path.stat())]


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be flushed there")
@pytest.mark.parametrize("how", ["file", "new", "fill"])
def test_all_of_it_is_on_the_disk_before_it_has_its_name(how, tmp_path, events):
    """Files and folders before the rename, the folder that holds the name after it, and every folder made above.

    Mutation: jaxpost/core/files.py: `    for item in [*source.rglob("*"), source] if source.is_dir() else [source]:` -> `    for item in ():`
    Mutation: jaxpost/core/files.py: `    for item in [*source.rglob("*"), source] if source.is_dir() else [source]:` -> `    for item in [source]:`
    Mutation: jaxpost/core/files.py: `    _flush(target.absolute().parent)` -> `    pass`
    Mutation: jaxpost/core/files.py: `        _flush(path.absolute().parent)` -> `        pass`
    """  # noqa: E501
    out = tmp_path / "above" / "out"
    if how == "file":
        out.mkdir(parents=True)
        write_file(out / "a", "1")
    else:
        with {"new": new_folder, "fill": fill_folder}[how](out) as folder:
            (folder / "sub" / "deep").mkdir(parents=True)
            for name in ("a", "sub/b", "sub/deep/c"):
                (folder / name).write_text(name)
    renamed = [out] if how == "new" else [path for path in out.rglob("*") if path.is_file()]
    assert len(renamed) == {"file": 1, "new": 1, "fill": 3}[how]
    for path in renamed:
        (at,) = where(events, "rename", path)
        for inside in [path, *path.rglob("*")] if path.is_dir() else [path]:
            assert min(where(events, "flush", inside), default=at) < at, f"{inside} is not flushed before"
        assert max(where(events, "flush", path.parent), default=at) > at, f"{path.parent} is not flushed after"
    made = {
        "file": [],
        "new": [tmp_path / "above"],
        "fill": [tmp_path / "above", out, out / "sub", out / "sub" / "deep"],
    }
    for path in made[how]:
        (at,) = where(events, "make", path)
        assert max(where(events, "flush", path.parent), default=at) > at, f"that {path} is there is not flushed"
