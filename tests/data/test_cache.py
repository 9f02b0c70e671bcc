"""Tokenised once: what a copy depends on, that it is the same as a fresh one, and what happens to a damaged one."""

import dataclasses
import datetime
import json
import logging
import os
import tracemalloc

import numpy as np
import pytest
import toy_tokenizer as toys

from jaxpost.core.errors import InputError, RunError
from jaxpost.data import cache, dataset, encode, store
from jaxpost.data.batches import BatchPlan
from jaxpost.data.cache import cache_folder
from jaxpost.data.dataset import prepare_data
from jaxpost.data.encode import EncodeOptions, encode_rows
from jaxpost.data.sources import read_rows

OPTIONS = EncodeOptions(max_length=64, overlong="truncate", vocab_size=10_000, skip_bad_rows=True)
ROWS = [
    {"messages": toys.messages("q", "a")},
    {"text": "the thing " * 9},
    {"prompt": "answer: ", "completion": " the"},
    {"text": ""},
    {"texts": "no form"},
    {"messages": toys.messages("only a question")},
]


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The cache in a folder of its own; the list of what was tokenised."""
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "cache"))
    names, stream = [], dataset.encode_stream

    def spy(tokenizer, rows, options, tally):
        names.append(options)
        return stream(tokenizer, rows, options, tally)

    monkeypatch.setattr(dataset, "encode_stream", spy)
    return names


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "rows.jsonl", ROWS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tokenizer(template=toys.CHATML, **changes):
    return toys.toy(template, merges=("t h", "th e", "Ġ Ġ"), **changes)


def contents(encoded):
    return [(e.ids.tolist(), e.trained.tolist(), e.source) for e in encoded.examples]


def test_a_copy_is_what_a_fresh_run_gives(made, data, caplog):
    """Examples, counts, warnings with their places, broken rows, fingerprint: of a fresh run, of its copy, of memory.

    Mutation: jaxpost/data/cache.py: `first=summary["first"], bad=summary["bad"])` -> `bad=summary["bad"])`
    Mutation: jaxpost/data/store.py: `[example.trained for example in chunk]).view(np.uint8)` -> `[example.trained ^ True for example in chunk]).view(np.uint8)`
    Mutation: jaxpost/data/cache.py: `    if found is not None:` -> `    if False:`
    """  # noqa: E501
    told = []
    with caplog.at_level(logging.WARNING):
        fresh = prepare_data(tokenizer(), data, OPTIONS)
        told.append([record.getMessage() for record in caplog.records])
        caplog.clear()
        again = prepare_data(tokenizer(), data, OPTIONS)
        told.append([record.getMessage() for record in caplog.records])
        caplog.clear()
        rows = read_rows(data, keep_bad=True)
        memory = encode_rows(tokenizer(), rows, **vars(OPTIONS))
        told.append([record.getMessage() for record in caplog.records])
    assert len(made) == 1 and told[0] == told[1] == told[2] and len(told[0]) == 2
    assert contents(fresh) == contents(again) == contents(memory) and len(memory.examples) == 3
    assert fresh.counts == again.counts == memory.counts and fresh.counts.merged_boundaries == 1
    assert fresh.fingerprint == again.fingerprint == memory.fingerprint
    assert int(fresh.fingerprint, 16) and len(fresh.fingerprint) == 64
    assert fresh.examples[0].ids.dtype == np.int32 and fresh.examples[0].trained.dtype == np.bool_
    assert fresh.examples[-1].source == fresh.examples[2].source == 3 and len(fresh.examples[0:2]) == 2
    with pytest.raises(IndexError):
        fresh.examples[3]


DEPENDS = {
    "content": lambda data: (tokenizer(), write(data, [*ROWS, {"text": "one more"}]), OPTIONS),
    "content of equal size": lambda data: (tokenizer(), write(data, [*ROWS[:1], *ROWS[2:], ROWS[1]]), OPTIONS),
    "name": lambda data: (tokenizer(), data.rename(data.parent / "other.jsonl"), OPTIONS),
    "template": lambda data: (tokenizer(toys.TAGGED), data, OPTIONS),
    "vocabulary": lambda data: (toys.toy(toys.CHATML), data, OPTIONS),
    "special tokens": lambda data: (tokenizer(eos="<|eot_id|>"), data, OPTIONS),
    "post-processor": lambda data: (tokenizer(adds_bos=True), data, OPTIONS),
    "max_length": lambda data: (tokenizer(), data, dataclasses.replace(OPTIONS, max_length=63)),
    "overlong": lambda data: (tokenizer(), data, dataclasses.replace(OPTIONS, overlong="drop")),
    "vocab_size": lambda data: (tokenizer(), data, dataclasses.replace(OPTIONS, vocab_size=999)),
    "stop ids": lambda data: (tokenizer(), data, dataclasses.replace(OPTIONS, stop_ids={5, 6})),
    "last only": lambda data: (tokenizer(), data, dataclasses.replace(OPTIONS, last_only=True)),
}


@pytest.mark.parametrize("what", DEPENDS)
def test_all_that_the_examples_depend_on_makes_another_copy(made, data, what):
    """Each change is tokenised, and once; the first stays and is found again.

    Mutation: jaxpost/data/cache.py: `        "template": tokenizer.chat_template,` -> ``
    Mutation: jaxpost/data/cache.py: `        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},` -> ``
    Mutation: jaxpost/data/dataset.py: `name=source.name.text, options=asked)` -> `options=asked)`
    Mutation: jaxpost/data/dataset.py: `key_of(tokenizer, data=source.digest(), ` -> `key_of(tokenizer, `
    Mutation: jaxpost/data/dataset.py: `, options=asked)` -> `)`
    """  # noqa: E501
    prepare_data(tokenizer(), data, OPTIONS)
    changed = DEPENDS[what](data)
    for _ in range(2):
        prepare_data(*changed)
    assert len(made) == 2


def test_the_day_counts_where_a_template_writes_it_and_nowhere_else(made, data):
    """Mutation: jaxpost/data/dataset.py: `str(options.date) if asks_for_the_day(tokenizer) else None` -> `None`
    Mutation: jaxpost/data/dataset.py: `str(options.date) if asks_for_the_day(tokenizer) else None` -> `str(options.date)`
    Mutation: jaxpost/data/encode.py: `rows = at_day(rows, options.date)` -> `rows = iter(rows)`
    Mutation: jaxpost/data/chat/template.py: `template if row.date is None else _at_day(template, row.date)` -> `template`
    """  # noqa: E501
    clock = "{{ strftime_now('%d %b %Y') }}" + toys.CHATML
    today = datetime.date.today()
    days = [
        dataclasses.replace(OPTIONS, date=day)
        for day in (datetime.date(2025, 1, 31), datetime.date(2025, 2, 1), None, today)
    ]
    plain = [prepare_data(tokenizer(), data, day).fingerprint for day in days]
    assert len(set(plain)) == 1 and len(made) == 1
    dated = [prepare_data(tokenizer(clock), data, day) for day in days]
    assert len({encoded.fingerprint for encoded in dated}) == 3 and len(made) == 4
    assert "31 Jan 2025" in tokenizer().decode(dated[0].examples[0].ids)


def test_other_code_and_other_versions_make_another_copy(made, data, monkeypatch):
    """Mutation: jaxpost/data/cache.py: `        "code": _code(),` -> ``
    Mutation: jaxpost/data/cache.py: `"versions": {name: importlib.metadata.version(name) for name in PACKAGES},` -> ``
    """
    prepare_data(tokenizer(), data, OPTIONS)
    monkeypatch.setattr(cache, "_code", lambda: "other")
    prepare_data(tokenizer(), data, OPTIONS)
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: f"{name} 99")
    prepare_data(tokenizer(), data, OPTIONS)
    assert len(made) == 3


def test_the_fingerprint_tells_the_examples_and_nothing_else(made, data, tmp_path):
    """Other names, options without effect: the same. Other ids, masks, order, weights: another.

    Mutation: jaxpost/data/examples.py: `        columns.append(b"".join(example.trained.tobytes() for example in examples))` -> `        columns.append(b"")`
    Mutation: jaxpost/data/encode.py: `json.dumps([told, weights])` -> `json.dumps([told])`
    """  # noqa: E501
    options = dataclasses.replace(OPTIONS, max_length=200)
    chats = [{"messages": toys.messages(f"q{n}", "a", "b", "c")} for n in range(5)]
    one = write(tmp_path / "one.jsonl", chats)
    prints = {
        "plain": prepare_data(tokenizer(), one, options).fingerprint,
        "mask": prepare_data(tokenizer(), one, dataclasses.replace(options, last_only=True)).fingerprint,
        "order": prepare_data(tokenizer(), write(tmp_path / "two.jsonl", chats[::-1]), options).fingerprint,
        "rows": prepare_data(tokenizer(), [one, one], options).fingerprint,
        "weights": prepare_data(tokenizer(), [f"{one}=1", f"{one}=1"], options).fingerprint,
        "others": prepare_data(tokenizer(), [f"{one}=1", f"{one}=2"], options).fingerprint,
    }
    assert len(set(prints.values())) == len(prints)
    longer = dataclasses.replace(options, max_length=99, overlong="error", stop_ids={3})
    assert prepare_data(tokenizer(), write(tmp_path / "x.jsonl", chats), longer).fingerprint == prints["plain"]


def damage_flip(file):
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)


DAMAGE = {
    "bit of the examples": lambda arrow, about: damage_flip(arrow),
    "bit of the counts": lambda arrow, about: about.write_text(about.read_text().replace('"rows": 6', '"rows": 7')),
    "cut off": lambda arrow, about: arrow.write_bytes(arrow.read_bytes()[:-9]),
    "empty": lambda arrow, about: arrow.write_bytes(b""),
    "no examples": lambda arrow, about: arrow.unlink(),
    "no JSON": lambda arrow, about: about.write_text("{"),
    "other JSON": lambda arrow, about: about.write_text("[]"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_copy_is_seen_and_made_anew(made, data, caplog, what):
    """Mutation: jaxpost/data/cache.py: `if held["sha256"] == _hash_json(summary) and summary["file"] == _hash(file):` -> `if True:`"""  # noqa: E501
    whole = prepare_data(tokenizer(), data, OPTIONS)
    expected = contents(whole)
    files = sorted(cache_folder().iterdir())
    assert [file.suffix for file in files] == [".arrow", ".json"] and files[0].stem == files[1].stem
    before = [file.read_bytes() for file in files]
    del whole
    DAMAGE[what](*files)
    again = prepare_data(tokenizer(), data, OPTIONS)
    assert contents(again) == expected and again.counts.rows == 6
    assert len(made) == 2 and sum("is damaged" in record.getMessage() for record in caplog.records) == 1
    assert [file.read_bytes() for file in sorted(cache_folder().iterdir())] == before


def test_a_row_that_is_refused_leaves_nothing_behind(made, data):
    """No half-written copy, and no folder beside."""
    with pytest.raises(InputError, match="line 5"):
        prepare_data(tokenizer(), data, dataclasses.replace(OPTIONS, skip_bad_rows=False))
    assert [path for path in cache_folder().parent.rglob("*") if path.is_file()] == []
    assert len(list(cache_folder().parent.iterdir())) == 1


def test_the_folder_is_the_users_cache(monkeypatch, tmp_path):
    """Mutation: jaxpost/data/cache.py: `os.environ.get("JAXPOST_CACHE") or Path(above, "jaxpost")` -> `Path(above, "jaxpost")`
    Mutation: jaxpost/data/cache.py: `os.environ.get("XDG_CACHE_HOME") or Path.home()` -> `Path.home()`
    """  # noqa: E501
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own" / "data"
    monkeypatch.delenv("JAXPOST_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "jaxpost" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_folder() == tmp_path / "me" / ".cache" / "jaxpost" / "data"


def test_without_a_folder_that_can_be_written_it_lies_in_a_temporary_one(made, data, monkeypatch, tmp_path):
    """A read-only home: nothing is kept, everything works. The file in the folder's place stands for it.

    Mutation: jaxpost/data/cache.py: `    except OSError:` -> `    except KeyError:`
    """
    expected = contents(prepare_data(tokenizer(), data, OPTIONS))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "file"))
    assert contents(prepare_data(tokenizer(), data, OPTIONS)) == expected
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "locked"))
    assert contents(prepare_data(tokenizer(), data, OPTIONS)) == expected
    assert len(made) == 3 and list((tmp_path / "locked" / "data").iterdir()) == []


def test_a_full_disk_is_one_line(made, data, monkeypatch):
    def full(path, examples):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_examples", full)
    with pytest.raises(RunError, match="No space left"):
        prepare_data(tokenizer(), data, OPTIONS)


def test_memory_does_not_grow_with_the_rows(made, tmp_path, monkeypatch):
    """Tokenising and reading batches of 1,500 rows: the peak over that of 300 is a few numbers a row.

    Mutation: jaxpost/data/cache.py: `write_examples(file, make(tally))` -> `write_examples(file, list(make(tally)))`
    """

    def peak(rows):
        text = " the thing" * 9
        path = write(tmp_path / f"{rows}.jsonl", [{"text": f"{n}{text}"} for n in range(rows)])
        options = dataclasses.replace(OPTIONS, max_length=200)
        tracemalloc.start()
        encoded = prepare_data(tok, path, options)
        sizes = dict(batch_size=4, micro_batch_size=2, max_length=200, packing=True, seed=0)
        plan = BatchPlan(examples=encoded.examples, **sizes)
        for step in range(3):
            plan.batch(step)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    monkeypatch.setattr(encode, "CHUNK_ROWS", 64)  # small, so that few rows are many chunks
    monkeypatch.setattr(store, "ROWS_AT_ONCE", 64)
    tok = tokenizer()
    peak(10)
    small, large = peak(300), peak(1500)
    # An example alone is 5 x 65 bytes and three objects.
    assert (large - small) / 1200 < 300
