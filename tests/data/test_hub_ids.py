"""Data sets of the hub, by a folder that stands for it: no test has a network."""

import json
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from refusals import refused

from jaxpost.data import hub_rows
from jaxpost.data.names import parse_name
from jaxpost.data.rows import COLUMNS
from jaxpost.data.sources import open_sources, read_rows

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CARD = """---
configs:
- config_name: main
  default: true
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
- config_name: chat
  data_files:
  - {split: train, path: chat.jsonl}
- config_name: other
  data_files:
  - {split: train, path: other.jsonl}
---
"""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one data set, `org/name`; `hub.asked` holds what was loaded."""
    folder = tmp_path / "hub" / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    write(folder / "train.jsonl", [{"text": f"row {n}", "id": n} for n in range(2005)])
    turns = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "1"}]
    write(folder / "test.jsonl", [{"text": f"test {n}", "id": n} for n in range(3)])
    chats = [{"messages": CHAT}, {"messages": [*turns, CHAT[1]]}]
    write(folder / "chat.jsonl", chats)
    (tmp_path / "hub" / "org" / "table").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), tmp_path / "hub" / "org" / "table" / "train.parquet")
    write(folder / "other.jsonl", [{"question": "a", "answer": "b"}])
    load, asked = datasets.load_dataset, []

    def from_folder(path, name=None, *, split, revision):
        asked.append((path, name, split, revision))
        return load(str(tmp_path / "hub" / path), name, split=split, cache_dir=str(tmp_path / f"cache{len(asked)}"))

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    from_folder.asked, from_folder.folder = asked, folder
    return from_folder


def test_rows_are_those_of_the_split(hub):
    """`train` unless another is asked for; all batches, numbered on over what follows; a slice is a split.

    Mutation: jaxpost/data/hub_rows.py: `            number += 1` -> `            number = 1`
    Mutation: jaxpost/data/hub_rows.py: `split=name.split, revision=name.revision)` -> `split="train", revision=None)`
    """
    rows = list(read_rows(["org/name", "org/name@v1:train[2000:]"]))
    assert [row.text for row in rows] == [f"row {n}" for n in [*range(2005), *range(2000, 2005)]]
    assert [row.source for row in rows] == list(range(1, 2011))
    assert rows[2004].where == "org/name row 2005" and rows[2009].where == "org/name@v1:train[2000:] row 5"
    assert hub.asked == [("org/name", None, "train", None), ("org/name", None, "train[2000:]", "v1")]


def test_messages_are_as_json_lines_have_them(hub):
    """A field that only some messages have is absent from the others, though a table has it in all.

    Mutation: jaxpost/data/hub_rows.py: `yield without_nulls(dict(zip(batch, values, strict=True))), f` -> `yield dict(zip(batch, values, strict=True)), f`
    """  # noqa: E501
    lines = [row.messages for row in read_rows(hub.folder / "chat.jsonl")]
    assert [row.messages for row in read_rows("org/name/chat")] == lines
    assert [row.messages for row in read_rows("org/table")] == lines


def test_a_digest_is_of_the_rows_and_of_nothing_else(hub, tmp_path):
    """The same of a slice that holds all, another of other rows, of other columns, of another order.

    Mutation: jaxpost/data/hub_rows.py: `digest.update(batch.serialize())` -> `pass`
    """
    digest = lambda text: open_sources(text)[0].digest()  # noqa: E731
    whole = digest("org/name")
    assert whole == digest("org/name@v2:train[:2005]") and len(whole) == 64
    assert len({whole, digest("org/name:train[:2004]"), digest("org/name:train[1:]"), digest("org/name:test")}) == 4
    rows = [json.loads(line) for line in (hub.folder / "train.jsonl").read_text().splitlines()]
    write(hub.folder / "train.jsonl", [{**row, "id": -row["id"]} for row in rows])
    assert digest("org/name") == whole, "a column that is not used does not count"
    write(hub.folder / "train.jsonl", rows[::-1])
    assert digest("org/name") != whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("org/name:validation", "validation"),
        ("org/name/third", "third"),
        ("org/none", "org/none"),
        ("org/name/other", "question, answer"),
        ("org/name:train[", "train["),
    ],
)
def test_what_the_hub_has_not_is_refused_in_one_line(hub, text, said):
    """Unknown split, configuration and data set, columns of no form, a split that is none: before anything is read."""
    refused(lambda: open_sources(text), text, said)


def test_without_a_network_it_is_refused_in_one_line():
    """`datasets` itself, offline: nothing is in its cache.

    Mutation: jaxpost/data/hub_rows.py: `except Exception as error:` -> `except KeyError as error:`
    """
    refused(lambda: open_sources("org/of-no-cache"), "org/of-no-cache", "network")


def test_the_library_is_loaded_when_it_is_asked_for_and_only_used_columns_are_read(hub):
    """Mutation: jaxpost/data/hub_rows.py: `return found.select_columns(columns)` -> `return found`"""
    assert "datasets" not in vars(hub_rows) and "datasets" in sys.modules
    assert hub_rows.load_hub(parse_name("org/name"), COLUMNS).column_names == ["text"]
