"""Rows to examples: special tokens, labels, cutting, counting."""

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import toy_tokenizer as toys
from transformers import AutoTokenizer

from jaxpost.core.errors import InputError
from jaxpost.data.encode import CHUNK_ROWS, encode_rows
from jaxpost.data.examples import Counts
from jaxpost.data.rows import make_row
from jaxpost.data.sources import read_rows

CASES = Path(__file__).parents[1] / "cases"
EOS = "<|im_end|>"
# The last letters of a prompt and the first of a completion become one token.
MERGING = ("t h", "th e", ": Ġ", "a b", "ab c")


def rows_of(*columns):
    return [make_row(c, source=n, where=f"data.jsonl line {n}") for n, c in enumerate(columns, start=1)]


def encode(tokenizer, *columns, max_length=256, overlong="truncate", vocab_size=10_000, **options):
    limits = dict(max_length=max_length, overlong=overlong, vocab_size=vocab_size)
    return encode_rows(tokenizer, rows_of(*columns), **limits, **options)


def encode_case(name, tokenizer=None):
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(CASES / "tokenizer")
    rows = read_rows(CASES / name / "data.jsonl")
    return encode_rows(tokenizer, rows, max_length=1024, overlong="truncate", vocab_size=288)


@pytest.mark.parametrize(("name", "examples", "trained"), [("D02", 3, 23), ("D11", 3, 14), ("H28", 2, 16)])
def test_cases_have_the_tokens_that_they_should(name, examples, trained):
    """23 is the number in case D02; the others are counted by hand."""
    counts = encode_case(name).counts
    assert (counts.rows, counts.examples, counts.trained_tokens) == (examples, examples, trained)


def test_D14_five_rows_without_tools():
    """30 trained tokens, the number in case D14, and five equal rows.

    Mutation: jaxpost/data/messages.py: `json.loads(value) if value.strip() else None` -> `value or None`
    """
    tokenizer = AutoTokenizer.from_pretrained(CASES / "tokenizer")
    tokenizer.chat_template = (CASES / "D14" / "chat_template.jinja").read_text()
    encoded = encode_case("D14", tokenizer)
    assert encoded.counts.trained_tokens == 30
    assert len({tuple(example.ids.tolist()) for example in encoded.examples}) == 1
    rows = rows_of(*({"messages": toys.messages("q", "a"), "tools": tools} for tools in ("", "null", None)))
    again = encode_rows(tokenizer, rows, max_length=99, overlong="error", vocab_size=288)
    assert len({tuple(example.ids.tolist()) for example in again.examples}) == 1


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("form", ["text", "completion"])
def test_D2_text_gets_one_eos(adds_bos, adds_eos, form):
    """One EOS, whether the text ends with it, the tokenizer adds it, or neither; one BOS if the tokenizer adds it.

    Mutation: jaxpost/data/plain.py: `return text if text.endswith(eos) else text + eos` -> `return text + eos`
    Mutation: jaxpost/data/plain.py: `return text.removesuffix(eos)` -> `return text`
    Mutation: jaxpost/data/plain.py: `text.removeprefix(self.added[0]) for text in texts` -> `text for text in texts`
    """
    tokenizer = toys.toy(adds_bos=adds_bos, adds_eos=adds_eos)
    bos = [tokenizer.bos_token_id] if adds_bos else []
    body = tokenizer("the thing", add_special_tokens=False)["input_ids"]
    for text in ("the thing", f"the thing{EOS}", *([f"<|bos|>the thing{EOS}"] if adds_bos else [])):
        columns = {"text": text} if form == "text" else {"prompt": text[:-6], "completion": text[-6:]}
        if form == "completion" and text.endswith(EOS):
            columns = {"prompt": text[: -6 - len(EOS)], "completion": text[-6 - len(EOS) :]}
        example = encode(tokenizer, columns).examples[0]
        assert example.ids.tolist() == [*bos, *body, tokenizer.eos_token_id]
        assert example.trained[-1]
    assert example.ids.dtype == np.int32 and example.trained.dtype == np.bool_


def test_D2_a_text_is_trained_but_for_its_first_token():
    example = encode(toys.toy(adds_bos=True), {"text": "the thing"}).examples[0]
    assert example.trained.tolist() == [False] + [True] * (len(example.ids) - 1)


def test_D2_a_tokenizer_without_eos_is_refused():
    with pytest.raises(InputError, match="EOS.*toy/folder"):
        encode(toys.toy(eos=None), {"text": "the thing"})


def test_D3_the_eos_of_a_completion_is_trained():
    """The completion and its EOS, not the prompt.

    Mutation: jaxpost/data/plain.py: `start=max(1, shared)` -> `start=1`
    """
    tokenizer = toys.toy()
    example = encode(tokenizer, {"prompt": "the question:", "completion": " nothing"}).examples[0]
    assert tokenizer.decode(example.ids[example.trained]) == f" nothing{EOS}"
    assert tokenizer.decode(example.ids) == f"the question: nothing{EOS}"


def test_D4_pad_equal_to_eos_leaves_the_eos_trained():
    """Mutation: jaxpost/data/plain.py: `trained=np.arange(len(ids)) >= start` -> `trained=np.array(ids) != ids[-1]`"""
    example = encode(toys.toy(pad=EOS), {"text": f"the{EOS}thing"}).examples[0]
    assert example.trained.all() == (len(example.ids) == 1) and example.trained[1:].all()


def test_D7_boundary_merge_is_split_at_the_longest_common_prefix(caplog):
    """A token over the prompt's end: ids are those of the full string, the whole token is trained, one warning counts.

    Mutation: jaxpost/data/plain.py: `merged=shared < len(prompt)` -> `merged=False`
    Mutation: jaxpost/data/plain.py: `shared = common_prefix(prompt, ids)` -> `shared = len(prompt)`
    """
    tokenizer = toys.toy(merges=MERGING)
    columns = (
        {"prompt": "answer: ", "completion": " the"},
        {"prompt": "xa", "completion": "bc"},
        {"prompt": "x", "completion": "y"},
    )
    with caplog.at_level(logging.WARNING):
        encoded = encode(tokenizer, *columns)
    for row, example in zip(columns, encoded.examples, strict=True):
        assert example.ids.tolist() == tokenizer(row["prompt"] + row["completion"] + EOS)["input_ids"]
    trained = [tokenizer.decode(example.ids[example.trained]) for example in encoded.examples]
    assert trained == [f" the{EOS}", f"abc{EOS}", f"y{EOS}"]
    assert encoded.counts.merged_boundaries == 1
    (record,) = caplog.records
    assert "in 1 rows" in record.getMessage() and "line 2" in record.getMessage()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("adds_eos", [False, True])
def test_D7_any_split_of_a_text_has_the_ids_of_the_text(seed, adds_eos):
    draw = random.Random(seed)
    tokenizer = toys.toy(merges=MERGING, adds_bos=bool(seed % 2), adds_eos=adds_eos, regex="gpt2" if seed else "")
    text = "".join(draw.choices(["the ", "abc", ": ", "é", "日本", "\n"], k=30))
    cuts = range(len(text))
    encoded = encode(tokenizer, *({"prompt": text[:cut], "completion": text[cut:]} for cut in cuts))
    assert len({tuple(example.ids.tolist()) for example in encoded.examples}) == 1
    for cut, example in zip(cuts, encoded.examples, strict=True):
        start = int(np.argmax(example.trained))
        assert example.trained[start:].all()
        # Trained from the token that holds the completion's first letter, but for the first token of all.
        assert len(tokenizer.decode(example.ids[:start], skip_special_tokens=True)) <= cut or start == 1
        assert len(tokenizer.decode(example.ids[: start + 1], skip_special_tokens=True)) > cut or cut == len(text)


@pytest.mark.parametrize("max_length", [2, 7, 14, 15])
def test_D9_truncation_keeps_the_start_and_counts(max_length):
    """Cut rows are counted; a row that is left without label is dropped and counted.

    Mutation: jaxpost/data/encode.py: `        if not trained.any():` -> `        if not len(trained):`
    """
    tokenizer = toys.toy()
    rows = {"prompt": "the question", "completion": "nothing"}, {"text": "the question, nothing"}
    whole = encode(tokenizer, *rows)
    encoded = encode(tokenizer, *rows, max_length=max_length)
    prompt = len(tokenizer("the question")["input_ids"])
    for example in encoded.examples:
        full = whole.examples[example.source - 1]
        assert example.ids.tolist() == full.ids[:max_length].tolist()
        assert example.trained.any() and example.trained.tolist() == full.trained[:max_length].tolist()
    dropped = int(max_length <= prompt)
    assert encoded.counts.dropped_truncated == dropped
    assert encoded.counts.truncated == sum(len(full.ids) > max_length for full in whole.examples) - dropped
    assert encoded.counts.examples == len(encoded.examples) == 2 - dropped


def test_D9_an_empty_text_has_no_label_and_is_dropped():
    encoded = encode(toys.toy(), {"text": ""}, {"text": "a"})
    assert [example.source for example in encoded.examples] == [2]
    assert encoded.counts.dropped_empty == 1


def test_overlong_drop_and_error():
    tokenizer = toys.toy()
    rows = {"text": "short"}, {"text": "a long one, as texts go"}
    dropped = encode(tokenizer, *rows, max_length=10, overlong="drop")
    assert dropped.counts.dropped_overlong == 1 and [e.source for e in dropped.examples] == [1]
    with pytest.raises(InputError, match="10 tokens; got 23 at data.jsonl line 2"):
        encode(tokenizer, *rows, max_length=10, overlong="error")
    with pytest.raises(InputError, match="truncate, drop, error"):
        encode(tokenizer, *rows, overlong="cut")
    with pytest.raises(InputError, match="max_length"):
        encode(tokenizer, *rows, max_length=1)


def test_D18_an_id_beyond_the_embedding_is_an_error():
    """Mutation: jaxpost/data/encode.py: `>= vocab_size` -> `> vocab_size`"""
    tokenizer = toys.toy()
    top = max(tokenizer("the thing")["input_ids"])
    encode(tokenizer, {"text": "the thing"}, vocab_size=top + 1)
    with pytest.raises(InputError, match=rf"{top} rows; got {top} .*line 2.*toy/folder"):
        encode(tokenizer, {"text": "h"}, {"text": "the thing"}, vocab_size=top)


def test_D19_a_run_without_rows_is_an_error_that_says_why():
    """How many rows there were, how many were dropped, and for what.

    Mutation: jaxpost/data/encode.py: `    if not counts.examples:` -> `    if not counts.rows:`
    """
    tokenizer = toys.toy(toys.CHATML)
    rows = {"messages": toys.messages("q")}, {"text": ""}, {"prompt": "a long prompt", "completion": "b"}
    with pytest.raises(InputError) as caught:
        encode(tokenizer, *rows, max_length=4)
    message = str(caught.value)
    assert "3 rows" in message and "\n" not in message
    for reason in ("1 dropped as having no assistant turn", "1 dropped as empty", "1 dropped as truncation"):
        assert reason in message
    with pytest.raises(InputError, match="0 rows"):
        encode(tokenizer)


def test_rows_of_all_forms_keep_their_order_over_chunks():
    tokenizer = toys.toy(toys.TAGGED)
    forms = (
        lambda n: {"text": f"text {n}"},
        lambda n: {"prompt": "p", "completion": f"completion {n}"},
        lambda n: {"messages": toys.messages("q", f"answer {n}")},
        lambda n: {"messages": toys.messages(f"only {n}")},
    )
    number = 2 * CHUNK_ROWS + 5
    encoded = encode(tokenizer, *(forms[n % 4](n) for n in range(number)))
    sources = [example.source for example in encoded.examples]
    assert sources == [n + 1 for n in range(number) if n % 4 != 3]
    assert all(str(e.source - 1) in tokenizer.decode(e.ids[e.trained]) for e in encoded.examples)
    assert encoded.counts.rows == number and encoded.counts.dropped_no_assistant == number // 4


def test_an_answer_that_no_stop_token_ends_is_counted_and_said_once(caplog):
    tokenizer = toys.toy("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}")
    with caplog.at_level(logging.WARNING):
        encoded = encode(tokenizer, *[{"messages": toys.messages("q", "a")}] * 3)
    assert encoded.counts.unstopped == 3
    (record,) = caplog.records
    assert "in 3 rows" in record.getMessage() and "toy/folder" in record.getMessage()


def test_counts_print_as_one_line():
    counts = Counts(
        **dict(rows=1234, examples=1230, tokens=99999, trained_tokens=5, truncated=7, dropped_overlong=3),
        **dict(dropped_empty=1, merged_boundaries=2),
    )
    assert str(counts) == (
        "1,234 rows: 1,230 kept; 99,999 tokens, 5 of them trained; 3 dropped as longer than max_length, 1 dropped as "
        "empty; 7 truncated, 2 with a token across the end of the prompt"
    )


def test_files_to_examples(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": toys.messages("q", "a")}) + "\n")
    tokenizer = toys.toy(toys.CHATML)
    limits = dict(max_length=64, overlong="error", vocab_size=len(tokenizer))
    encoded = encode_rows(tokenizer, read_rows(path), **limits)
    assert tokenizer.decode(encoded.examples[0].ids).endswith("assistant\na<|im_end|>\n")
