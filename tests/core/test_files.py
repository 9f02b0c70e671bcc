"""Atomic files and folders: the old state or the new one, whatever happens in between."""

import json
import os
import stat

import pytest

from jaxpost.core.errors import InputError
from jaxpost.core.files import fill_folder, new_folder, read_json, refuse_existing, write_file, write_json


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
