"""Files and rows: what is read, and what is refused with its file and line."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from jaxpost.core.errors import InputError
from jaxpost.data.rows import ChatRow, CompletionRow, TextRow, make_row
from jaxpost.data.sources import read_rows

CASES = Path(__file__).parents[1] / "cases"
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def refusal(path):
    with pytest.raises(InputError) as caught:
        list(read_rows(path))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_D02_bom_crlf_blank_lines_and_no_final_newline():
    """Case D02: three rows; no byte-order mark and no carriage return in the texts.

    Mutation: jaxpost/data/sources.py: `line.removeprefix(BOM) if number == 1 else line` -> `line`
    """
    rows = list(read_rows(CASES / "D02" / "data.jsonl"))
    assert [row.text for row in rows] == ["the thing", "naïve ünï", "in the other"]
    assert [row.source for row in rows] == [1, 2, 3]
    assert [row.where.rpartition(" line ")[2] for row in rows] == ["1", "3", "5"]


def test_rows_are_numbered_over_all_files_and_lines_within_each(tmp_path):
    files = [write(tmp_path / name, {"text": "a"}, "", {"text": "b"}) for name in ("one.jsonl", "two.JSON")]
    rows = list(read_rows([*files]))
    assert [row.source for row in rows] == [1, 2, 3, 4]
    assert rows[3].where == f"{files[1]} line 3"


def test_line_separators_inside_a_string_are_text(tmp_path):
    text = "a\u2028b\u0085c\x0bd"
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [row.text for row in read_rows(path)] == [text]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"', "column"),
        ('{"text": "a"} {"text": "b"}', "extra data"),
        ("plain words", "column 1"),
        ('["a"]', "a list"),
        ('"a"', "a string"),
        ("null", "null"),
        ('{"text": null}', '"text"'),
        ('{"text": 5}', "a number"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"conversation": []}', 'Did you mean "conversations"?'),
        ('{"conversations": {}}', "an object"),
        ('{"conversations": ["a"]}', "`conversations[0]`"),
        ('{"conversations": [{"from": "humn", "value": "a"}]}', 'Did you mean "human"?'),
        ('{"conversations": [{"from": null, "value": "a"}]}', "`conversations[0].from`"),
        ('{"conversations": [{"from": ["gpt"], "value": "a"}]}', "`conversations[0].from`"),
        ('{"conversations": [{"from": "human"}]}', "`from` and `value`"),
        ('{"conversations": [{"from": "gpt", "value": "a", "weight": 0}]}', "`conversations[0].weight`"),
        ('{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}', "`messages[0].weight`"),
        ('{"conversations": [{"from": "gpt", "value": "a"}], "system": ["x"]}', "`system`"),
        ('{"conversations": [{"from": "gpt", "value": null}]}', "null"),
        ('{"conversations": [{"from": "system", "value": "a"}], "system": "b"}', "one system turn"),
        ('{"conversations": [{"from": "gpt", "value": "a"}], "text": "b"}', "text, conversations"),
        ('{"prompts": "a", "completion": "b"}', 'Did you mean "prompt"?'),
        ('{"prompt": "a"}', "`completion`"),
        ('{"text": "a", "messages": [{"role": "user", "content": "b"}]}', "text, messages"),
        ('{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}', "a string"),
        ('{"messages": "a"}', "a string"),
        ('{"messages": ["a"]}', "`messages[0]`"),
        ('{"messages": [{"from": "human", "value": "a"}]}', "Name the column `conversations`"),
        ('{"messages": [{"role": "user", "content": null}]}', "null"),
        ('{"messages": [{"role": "user", "content": 5}]}', "a number"),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "`messages[0].content[0]`"),
        ('{"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]}', '"image"'),
        ('{"messages": [{"role": "user", "content": [{"type": "text", "text": null}]}]}', "`messages[0].content[0]`"),
        ('{"messages": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]}', "`tool_calls`"),
        ('{"messages": [{"role": "assistant", "content": "", "tool_calls": 1}]}', "a number"),
        ('{"messages": [{"role": "assistant", "content": "", "tool_calls": "[]"}]}', "a string"),
        ('{"messages": [{"role": "assistant", "content": "", "tool_calls": ["f"]}]}', "without a name"),
        ('{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}]}', "without a name"),
        ('{"messages": [{"role": "user", "content": "a", "x": ' + "[" * 700 + "]" * 700 + "}]}", "nested"),
        ('{"messages": [], "tools": "search"}', "`tools`"),
        ('{"messages": [], "tools": {"name": "search"}}', "an object"),
        ('{"messages": [], "tools": ["search"]}', "tool objects"),
        ('{"messages": [], "chat_template_kwargs": "x"}', "`chat_template_kwargs`"),
        ('{"messages": [], "chat_template_kwargs": {"add_generation_prompt": true}}', "`add_generation_prompt`"),
        ('{"text": "a", "tools": [{"name": "search"}]}', "`tools`"),
        ("[" * 100_000, "recursion"),
        ('{"text": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path, line, said):
    path = write(tmp_path / "data.jsonl", {"text": "good"}, "", line, {"text": "good"})
    message = refusal(path)
    assert f"{path} line 3" in message and said in message
    assert len(message) < 500


def test_bytes_that_are_not_utf8_are_named_by_file_and_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    assert "0xe9" in refusal(path) and "line 2" in refusal(path)
    path.write_text('{"text": "a"}\n', encoding="utf-16")
    assert "line 1" in refusal(path) and "UTF-8" in refusal(path)


@pytest.mark.parametrize("name", ["data.csv", "data.arrow", "data.jsonl.gz", "data"])
def test_other_kinds_of_file_are_refused_before_reading(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"\.jsonl"):
        read_rows(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused_before_reading(tmp_path):
    with pytest.raises(InputError, match="exists"):
        read_rows([write(tmp_path / "a.jsonl", {"text": "a"}), tmp_path / "none.jsonl"])
    with pytest.raises(InputError, match="folder"):
        read_rows(tmp_path)


def test_forms():
    assert make_row({"text": "a", "label": 3, "messages": None}, source=1, where="x") == TextRow(
        source=1, where="x", text="a"
    )
    strings = make_row({"prompt": "a", "completion": ""}, source=2, where="x")
    assert strings == CompletionRow(source=2, where="x", prompt="a", completion="")
    lists = make_row({"prompt": CHAT, "completion": CHAT[1:], "chat_template_kwargs": {"a": 1}}, source=3, where="x")
    assert lists == ChatRow(source=3, where="x", messages=[*CHAT, CHAT[1]], trained_from=2, template_kwargs={"a": 1})


def test_D14_empty_tools_are_no_tools():
    """Case D14: an empty list, null, their JSON and an absent column are all no tools; a list or its JSON is one.

    Mutation: jaxpost/data/messages.py: `if value is None or value == []:` -> `if value is None:`
    """
    rows = list(read_rows(CASES / "D14" / "data.jsonl"))
    assert [row.tools for row in rows] == [None] * 5
    tool = {"type": "function", "function": {"name": "search"}}
    for value in ([tool], json.dumps([tool])):
        assert make_row({"messages": CHAT, "tools": value}, source=1, where="x").tools == [tool]
    assert make_row({"messages": CHAT, "tools": " "}, source=1, where="x").tools is None


def test_sharegpt_is_a_spelling_of_messages():
    """Speakers become roles, a `system` column the first turn; turns that are messages already stay as they are.

    Mutation: jaxpost/data/sharegpt.py: `return [{"role": "system", "content": system}, *messages]` -> `return messages`
    Mutation: jaxpost/data/sharegpt.py: `"gpt": "assistant",` -> `"gpt": "user",`
    """
    said = [("human", "a"), ("gpt", "b"), ("observation", "c"), ("gpt", "d")]
    turns = [{"from": speaker, "value": text, "weight": 1} for speaker, text in said]
    roles = {"human": "user", "gpt": "assistant", "observation": "tool"}
    want = [{"role": roles[speaker], "content": text, "weight": 1} for speaker, text in said]
    made = lambda **columns: make_row(columns, source=1, where="x")  # noqa: E731
    assert made(conversations=turns) == made(messages=want) == made(conversations=turns, system="")
    system = {"role": "system", "content": "Be brief."}
    assert made(conversations=turns, system="Be brief.") == made(messages=[system, *want])
    told = {"from": "system", "value": "Be brief."}
    assert made(conversations=[told, *turns]) == made(messages=[system, *want])
    assert made(conversations=want, tools=[{"name": "f"}]) == made(messages=want, tools=[{"name": "f"}])
    assert made(messages=want, system="Be brief.") == made(messages=want), "a column beside messages is ignored"


def test_parquet_rows_are_those_of_json_lines(tmp_path):
    """Over several batches and files; a field that only some messages have is absent from the others.

    Mutation: jaxpost/data/parquet.py: `for name, item in value.items() if item is not None}` -> `for name, item in value.items()}`
    Mutation: jaxpost/data/parquet.py: `                    number += 1` -> `                    number = 1`
    """  # noqa: E501
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    chat = [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "1"}]
    rows = [{"messages": chat + [{"role": "assistant", "content": str(n)}], "id": n} for n in range(1003)]
    plain = [json.loads(line) for line in map(json.dumps, rows)]
    for row in plain:
        del row["messages"][1]["content"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = write(tmp_path / "b.jsonl", *plain)
    found = list(read_rows([tmp_path / "a.parquet", lines]))
    assert [row.source for row in found] == list(range(1, 2007))
    assert [row.messages for row in found[:1003]] == [row.messages for row in found[1003:]]
    assert found[1002].where == f"{tmp_path / 'a.parquet'} row 1003"


def test_parquet_that_is_broken_is_refused_by_name(tmp_path):
    """Not Parquet, cut off, a flipped page, and a row of no form: one line with the file."""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "x" * 50 + str(n)} for n in range(500)]), path)
    whole = path.read_bytes()
    for broken in (b"", b"{}", whole[:-9], whole[:2000], whole[:8] + bytes(100) + whole[108:]):
        path.write_bytes(broken)
        assert str(path) in refusal(path) and "Parquet" in refusal(path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}, {"text": None}]), path)
    assert f"{path} row 2" in refusal(path) and '"text"' in refusal(path)
    plain = {"compression": "none", "use_dictionary": False}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "a" * 400}]), path, **plain)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"a" * 400, b"a" * 399 + b"\xff"))
    assert str(path) in refusal(path)


def test_parquet_columns_that_are_not_used_are_not_read(tmp_path):
    """A date that Python has not, beside good text; a map is an object, as JSON has it.

    Mutation: jaxpost/data/parquet.py: `columns=read` -> `columns=names`
    Mutation: jaxpost/data/parquet.py: `to_pylist(maps_as_pydicts="strict")` -> `to_pylist()`
    """
    path = tmp_path / "a.parquet"
    columns = {
        "messages": pyarrow.array([CHAT]),
        "day": pyarrow.array([2**30], pyarrow.int32()).cast(pyarrow.date32()),
        "chat_template_kwargs": pyarrow.array([[("a", "1")]], pyarrow.map_(pyarrow.string(), pyarrow.string())),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    (row,) = read_rows(path)
    assert row.messages == CHAT and row.template_kwargs == {"a": "1"}
