"""Ids and masks against transformers and TRL, which are not needed to run jaxpost's own data code."""

import itertools
import json
import random
from pathlib import Path

import pytest
import toy_tokenizer as toys

from jaxpost.core.errors import InputError
from jaxpost.data.chat.masks import encode_chats
from jaxpost.data.chat.turns import Chat
from jaxpost.data.encode import encode_rows
from jaxpost.data.rows import make_row

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")

WORDS = ("the ", "thing ", "and\n", "naïve ", "日本語", "😀 ", "'s", "12", "\t")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Their tagged twins do not mark what the shipped ones render: GLM's turn ends with the next turn's header, and Qwen3's
# keeps the reasoning of every turn.
DIFFERENT = {"glm4moe", "qwen3"}


def text(draw):
    return "".join(draw.choices(WORDS, k=draw.randrange(1, 8))).strip() or "a"


def conversation(draw, turns=4):
    return toys.messages(*(text(draw) for _ in range(turns)))


def encode_chat(tokenizer, **columns):
    row = make_row(columns, source=1, where="row 1")
    (encoded,) = encode_chats(Chat(tokenizer=tokenizer), [row])
    return encoded


@pytest.mark.parametrize("regex", ["", "gpt2", "llama3"])
@pytest.mark.parametrize("seed", range(3))
def test_ids_and_mask_equal_those_of_transformers(regex, seed):
    """Where offsets are not trimmed transformers' own assistant mask is right, and ours is the same."""
    draw = random.Random(seed)
    tokenizer = toys.toy(toys.TAGGED, regex=regex)
    for _ in range(25):
        messages = conversation(draw, 2 * draw.randrange(1, 4))
        ours = encode_chat(tokenizer, messages=messages)
        theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert ours.ids.tolist() == theirs["input_ids"]
        assert ours.trained.tolist() == [bool(bit) for bit in theirs["assistant_masks"]]


def shipped_and_tagged():
    names = sorted(path.name.removesuffix("_training.jinja") for path in TEMPLATES.glob("*_training.jinja"))
    return [name for name in names if (TEMPLATES / f"{name}.jinja").exists()]


@pytest.mark.parametrize("name", shipped_and_tagged())
def test_D16_real_templates_by_tags_and_by_prefixes(name):
    """Templates as models ship them, beside the twins with tags that TRL trains with: where prefixes are accepted, they
    give the same spans as the tags; the ids are those of transformers in any case.

    Mutation: jaxpost/data/chat/spans.py: `spans.append((len(before), len(after)))` -> `spans.append((len(before), len(text)))`
    """  # noqa: E501
    draw = random.Random(0)
    for turns in (2, 4):
        messages, spans = conversation(draw, turns), {}
        for kind in ("", "_training"):
            tokenizer = toys.toy((TEMPLATES / f"{name}{kind}.jinja").read_text(encoding="utf-8"), regex="llama3")
            try:
                encoded = encode_chat(tokenizer, messages=messages)
            except InputError as error:
                assert "toy/folder" in str(error)
                continue
            assert encoded.ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
            pairs = zip(encoded.ids.tolist(), encoded.trained.tolist(), strict=True)
            groups = itertools.groupby(pairs, key=lambda pair: pair[1])
            spans[kind] = [tokenizer.decode([index for index, _ in group]).rstrip("\n") for on, group in groups if on]
            assert len(spans[kind]) == turns // 2
            answers = [message["content"] for message in messages[1::2]]
            assert all(answer in span for answer, span in zip(answers, spans[kind], strict=True))
        if len(spans) == 2 and name not in DIFFERENT:
            assert spans[""] == spans["_training"]


def trl_rows(tokenizer, rows, tmp_path, **settings):
    """(ids, labels that are not -100) of each row as TRL's trainer prepares it."""
    config = transformers.LlamaConfig(
        **dict(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1),
        **dict(num_attention_heads=1, num_key_value_heads=1),
    )
    args = trl.SFTConfig(
        **dict(output_dir=str(tmp_path), max_length=512, report_to=[], bf16=False, use_cpu=True, packing=False),
        **settings,
    )
    trainer = trl.SFTTrainer(
        model=transformers.LlamaForCausalLM(config),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    prepared = trainer.train_dataset
    return [(row["input_ids"], [label != -100 for label in row["labels"]]) for row in prepared]


def our_rows(tokenizer, rows):
    made = [make_row(json.loads(json.dumps(row)), source=n, where=f"row {n}") for n, row in enumerate(rows, start=1)]
    encoded = encode_rows(tokenizer, made, max_length=512, overlong="error", vocab_size=len(tokenizer))
    return [(example.ids.tolist(), example.trained.tolist()) for example in encoded.examples]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for (ids, trained), (their_ids, labelled) in zip(ours, theirs, strict=True):
        assert ids == their_ids
        assert trained == [False, *labelled[1:]]  # TRL's shift ignores the first label, ours says so


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("merges", [toys.MERGES, ("t h", "th e", "e Ġ", "the Ġ", "1 2")])
def test_D2_D7_plain_rows_equal_trl(tmp_path, adds_bos, merges):
    draw = random.Random(1)
    tokenizer = toys.toy(adds_bos=adds_bos, merges=merges)
    texts = [{"text": text(draw) + ("<|im_end|>" if n % 3 == 0 else "")} for n in range(12)]
    assert_same(our_rows(tokenizer, texts), trl_rows(tokenizer, texts, tmp_path))
    # A prompt that ends within a word or before a blank: some merge with their completion.
    pairs = [
        {"prompt": text(draw) + draw.choice(["the", " ", "1"]), "completion": draw.choice([" x", "2", "e"])}
        for _ in range(20)
    ]
    assert_same(our_rows(tokenizer, pairs), trl_rows(tokenizer, pairs, tmp_path))


def test_D3_conversations_equal_trl(tmp_path):
    draw = random.Random(2)
    tokenizer = toys.toy(toys.TAGGED)
    rows = [{"messages": conversation(draw, 2 * draw.randrange(1, 4))} for _ in range(12)]
    assert_same(our_rows(tokenizer, rows), trl_rows(tokenizer, rows, tmp_path, assistant_only_loss=True))
    pairs = [{"prompt": row[:3], "completion": row[3:]} for row in (conversation(draw) for _ in range(12))]
    assert_same(our_rows(tokenizer, pairs), trl_rows(tokenizer, pairs, tmp_path, assistant_only_loss=True))
