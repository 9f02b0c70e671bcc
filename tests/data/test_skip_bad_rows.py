"""Broken rows: refused by file and line, or with `skip_bad_rows` counted, named, and left out."""

import json
import logging

import pyarrow
import pyarrow.parquet
import pytest
import toy_tokenizer as toys
from refusals import refused

from jaxpost.core.errors import InputError
from jaxpost.data.encode import encode_rows
from jaxpost.data.rows import BadRow, TextRow
from jaxpost.data.sources import read_rows

BROKEN = {
    "parse": '{"text": ',
    "UTF-8": b'{"text": "caf\xe9"}',
    "form": '{"texts": "a"}',
    "null message": '{"messages": [{"role": "user", "content": null}]}',
    "template": json.dumps({"messages": [{"role": "system", "content": "s"}, *toys.messages("q", "a")]}),
}
GOOD = [json.dumps({"messages": toys.messages(f"q{n}", f"a{n}")}) for n in range(4)]


def write(path, *lines):
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def encode(path, skip=True, template=toys.GEMMA, **options):
    limits = dict(max_length=99, overlong="error", vocab_size=10_000)
    rows = read_rows(path, keep_bad=skip)
    return encode_rows(toys.toy(template), rows, **{**limits, **options}, skip_bad_rows=skip)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_row_is_refused_or_skipped(tmp_path, caplog, kind):
    """Without the option one line with the file and the line; with it the others are trained, in their order.

    The template refuses a row among others that it tokenises at once.

    Mutation: jaxpost/data/encode.py: `            # One of them: each alone says which.` -> `            raise`
    Mutation: jaxpost/data/encode.py: `        log.warning("skipped: %s", reason)` -> `        pass`
    """
    path = write(tmp_path / "rows.jsonl", *GOOD[:2], BROKEN[kind], *GOOD[2:])
    refused(lambda: encode(path, skip=False), f"{path} line 3")
    encoded = encode(path)
    assert [example.source for example in encoded.examples] == [1, 2, 4, 5]
    assert (encoded.counts.rows, encoded.counts.dropped_bad) == (5, 1)
    assert "1 skipped as broken" in str(encoded.counts)
    (record,) = caplog.records
    assert f"{path} line 3" in record.getMessage() and record.levelno == logging.WARNING


@pytest.mark.parametrize("kind", ["parse", "UTF-8", "form", "null message"])
def test_reading_ends_at_a_broken_row_unless_they_are_kept(tmp_path, kind):
    """Mutation: jaxpost/data/sources.py: `                if not keep_bad:` -> `                if False:`"""
    path = write(tmp_path / "rows.jsonl", GOOD[0], BROKEN[kind], GOOD[1])
    refused(lambda: list(read_rows(path)), f"{path} line 2")
    assert [type(row) is BadRow for row in read_rows(path, keep_bad=True)] == [False, True, False]


def test_the_first_are_named_and_all_are_counted(tmp_path, caplog):
    """Mutation: jaxpost/data/examples.py: `        self.bad = [*self.bad, reason][:SHOWN]` -> `        self.bad = [*self.bad, reason]`
    Mutation: jaxpost/data/examples.py: `        self.counts["dropped_bad"] += 1` -> `        self.counts["dropped_bad"] = 1`
    """  # noqa: E501
    path = write(tmp_path / "rows.jsonl", *[line for line in BROKEN.values() for _ in range(3)], GOOD[0])
    counts = encode(path).counts
    assert (counts.rows, counts.examples, counts.dropped_bad) == (16, 1, 15)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 6 and said[-1] == "and 10 more broken rows"
    assert [f"line {n} " in f"{text} ".replace(".", " ") for n, text in enumerate(said[:-1], start=1)] == [True] * 5


def test_rows_that_are_all_broken_are_an_error(tmp_path):
    """With the reason of the first. A template that no row gets through is that, too."""
    refused(lambda: encode(write(tmp_path / "a.jsonl", *BROKEN.values())), "5 rows", "5 skipped as broken", "line 1")
    refused(lambda: encode(write(tmp_path / "b.jsonl", *GOOD), template=None), "4 skipped as broken", "chat template")


def test_what_tells_of_the_options_or_the_checkpoint_is_not_skipped(tmp_path):
    """A row over `max_length` with `overlong` "error", an id over the vocabulary, a damaged file.

    Mutation: jaxpost/data/encode.py: `        _check_vocabulary(tokenizer, row, example, options.vocab_size)` -> `        pass`
    """  # noqa: E501
    path = write(tmp_path / "rows.jsonl", *GOOD)
    refused(lambda: encode(path, max_length=5), "max_length")
    refused(lambda: encode(path, vocab_size=9), "embedding")
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in GOOD]), file)
    file.write_bytes(file.read_bytes()[:-9])
    refused(lambda: encode(file), str(file))


def test_parquet_rows_are_skipped_too(tmp_path):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}, {"text": None}, {"text": "b"}]), file)
    rows = list(read_rows(file, keep_bad=True))
    assert [type(row) is BadRow for row in rows] == [False, True, False] and rows[1].where == f"{file} row 2"
    assert [row.source for row in rows] == [1, 2, 3]


def test_broken_rows_that_came_unasked_are_an_error():
    """`encode_rows` is not told to skip: a `BadRow` among good rows is refused with its reason.

    Mutation: jaxpost/data/encode.py: `                raise InputError(row.reason)` -> `                pass`
    """
    row = BadRow(source=1, where="x line 1", reason="the reason at x line 1.")
    good = TextRow(source=2, where="x line 2", text="a")
    with pytest.raises(InputError, match="^the reason"):
        encode_rows(toys.toy(), [row, good], max_length=9, overlong="error", vocab_size=999)
