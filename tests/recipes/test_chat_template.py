"""`jaxpost sft --chat-template`: new tokens have rows that are trained, and the folder tells others what was used."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from jaxpost.core.errors import InputError
from jaxpost.hub.checkpoint import load
from jaxpost.hub.grow import grow_vocabulary
from jaxpost.hub.tokenizer_files import adapter_tokenizer

SHORT = ("--steps", "2", "--batch-size", "1", "--max-length", "64", "--dtype", "float32")
NEW = "{% for m in messages %}{{ '<|new|>' + m.role + ': ' + m.content + '<|stop|>' }}{% endfor %}"
NEW += "{% if add_generation_prompt %}{{ '<|new|>assistant: ' }}{% endif %}"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Base models without a template, rows of messages, a template with tokens that are new."""
    folder = tmp_path_factory.mktemp("base")
    rows = folder / "rows.jsonl"
    turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    (folder / "new.jinja").write_text(NEW)
    for tied in (True, False):
        sizes = dict(num_hidden_layers=1, tie_word_embeddings=tied, vocab_size=260)
        tiny.make(folder / f"tied{tied}", template=None, **sizes)
    tiny.make(folder / "padded", template=None, num_hidden_layers=1)  # 260 tokens, 288 rows
    return folder


def train(sft, places, model, *flags):
    run = sft("--model", str(places / model), "--data", str(places / "rows.jsonl"), *flags, base=SHORT)
    return run


@pytest.mark.parametrize(("model", "size"), [("tiedTrue", 262), ("tiedFalse", 262), ("padded", 288)])
def test_full_training_grows_the_vocabulary_and_trains_the_new_rows(sft, places, model, size):
    """Embedding and head have a row for each new token, and it moves; config, tokenizer and template fit.

    Mutation: jaxpost/hub/grow.py: `hf_config={**model.hf_config, "vocab_size": size}` -> `hf_config=model.hf_config`
    Mutation: jaxpost/recipes/chat_template.py: `return model if option is None else` -> `return model if True else`
    """  # noqa: E501
    run = train(sft, places, model, "--full", "--chat-template", str(places / "new.jinja"))
    assert run.status == 0, run.stderr
    before = load_file(places / model / "model.safetensors")["model.embed_tokens.weight"]
    after = load(run.out)
    table = np.asarray(after.params["embed_tokens"]["weight"])
    assert table.shape[0] == size == after.config.vocab_size
    start = before[:260].mean(axis=0)
    for index in (260, 261):
        assert 0 < np.abs(table[index] - start).max() < 1e-3
    tokenizer = AutoTokenizer.from_pretrained(run.out)
    assert tokenizer.convert_tokens_to_ids(["<|new|>", "<|stop|>"]) == [260, 261]
    assert tokenizer.eos_token == "<|stop|>" and tokenizer.chat_template == NEW
    stops = json.loads((run.out / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [tiny.END, tiny.EOT, 261]
    assert json.loads((run.out / "config.json").read_text())["eos_token_id"] == tiny.END


def test_an_adapter_with_tokens_that_are_there(sft, places):
    """ChatML's are in the vocabulary: the base needs no new row, and the adapter's folder holds the template.

    Mutation: jaxpost/recipes/sft.py: `                write_tokenizer(aside, model.given_tokenizer)` -> `                pass`
    """  # noqa: E501
    run = train(sft, places, "padded", "--chat-template", "chatml")
    assert run.status == 0, run.stderr
    tokenizer = AutoTokenizer.from_pretrained(run.out)
    assert tokenizer.eos_token == "<|im_end|>" and "<|im_start|>" in tokenizer.chat_template
    assert run.column("trained_tokens")[0] == len("answer") + 1
    assert train(sft, places, "padded").status == 2  # without the option there is no template


def test_an_adapter_refuses_tokens_whose_rows_it_does_not_train(sft, places):
    """Mutation: jaxpost/recipes/chat_template.py: `    if new and not trains_rows:` -> `    if False:`"""
    run = train(sft, places, "padded", "--chat-template", str(places / "new.jinja"))
    assert run.status == 2 and not run.out.exists() and run.stderr.count("\n") == 1
    assert "<|new|>, <|stop|>" in run.stderr and "--full" in run.stderr


def test_an_exported_adapter_has_the_template_that_it_was_trained_with(sft, places, tmp_path):
    """Mutation: jaxpost/recipes/export.py: `config.adapter, None` -> `None, None`"""
    from jaxpost.cli import main

    run = train(sft, places, "padded", "--chat-template", "chatml")
    out = tmp_path / "merged"
    argv = ["export", "--model", str(places / "padded"), "--adapter", str(run.out), "--output", str(out)]
    assert main(argv) == 0
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(run.out).chat_template


def test_an_adapter_is_trained_further_with_its_own_template(sft, places):
    """The base has none; the second folder holds it again.

    Mutation: jaxpost/recipes/chat_template.py: `if own is not None:` -> `if False:`
    """
    first = train(sft, places, "padded", "--chat-template", "chatml")
    second = train(sft, places, "padded", "--adapter", str(first.out))
    assert second.status == 0, second.stderr
    assert AutoTokenizer.from_pretrained(second.out).eos_token == "<|im_end|>"


def test_the_template_of_an_adapter_may_lie_in_its_settings(sft, places, tmp_path):
    """As older writers put it; a tokenizer with more tokens than the base has rows is refused.

    Mutation: jaxpost/hub/tokenizer_files.py: `if (folder / "tokenizer.json").exists() else None` -> `if (folder / "chat_template.jinja").exists() else None`
    Mutation: jaxpost/hub/tokenizer_files.py: `>= vocab_size:` -> `>= 10**9:`
    """  # noqa: E501
    run = train(sft, places, "padded", "--chat-template", "chatml")
    folder = Path(shutil.copytree(run.out, tmp_path / "adapter"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = (folder / "chat_template.jinja").read_text()
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    (folder / "chat_template.jinja").unlink()
    assert adapter_tokenizer(folder, 10_000).chat_template == template
    with pytest.raises(InputError, match="below the base's 9 rows"):
        adapter_tokenizer(folder, 9)


def test_new_rows_are_the_mean_of_the_known_ones(places):
    """Rows that pad the vocabulary do not count, and are used.

    Mutation: jaxpost/hub/grow.py: `jnp.mean(table[:used]` -> `jnp.mean(table[:]`
    """
    model = load(places / "padded")
    grown = grow_vocabulary(model, [260, 261])
    for name in ("embed_tokens", "lm_head"):
        old, new = (np.asarray(each.params[name]["weight"]) for each in (model, grown))
        assert old.shape == new.shape
        np.testing.assert_allclose(new[260], old[:260].mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.delete(new, [260, 261], 0), np.delete(old, [260, 261], 0))
    more = grow_vocabulary(model, [290])
    assert more.config.vocab_size == more.hf_config["vocab_size"] == more.params["lm_head"]["weight"].shape[0] == 291
    assert grow_vocabulary(model, []) is model
