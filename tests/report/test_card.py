"""The model card: front matter that the Hub's own reader takes, and texts that cannot break out of their blocks."""

import dataclasses
import re

import pytest
import yaml
from fenced_blocks import blocks
from huggingface_hub import ModelCard

from jaxpost.report import Card, model_card
from jaxpost.report.card import code, fenced

HOSTILE = "{{ x }}\n```\n---\nlibrary_name: evil\n---\n`````\n# Heading\n~~~\n</script>"
CARD = Card(
    name="out",
    folder="runs/out",
    base_model="org/base-1B",
    on_hub=True,
    adapter="LoRA adapter",
    has_tokenizer=False,
    started_from=None,
    method=("sft", "supervised fine-tuning"),
    data=("rows.jsonl",),
    counts="10 rows: 9 kept",
    options={"seed": 0, "lora.rank": 16},
    results={"Steps": 4, "Training loss, last step": 0.12345},
    versions={"jax": "0.10.2"},
    hardware="1 x cpu",
    chat_templates={"default": "{{ messages }}"},
)


def test_the_hubs_reader_takes_the_front_matter():
    """Mutation: jaxpost/report/card.py: `{"base_model": card.base_model} if card.on_hub else {}` -> `{}`
    Mutation: jaxpost/report/card.py: `"peft" if card.adapter else "transformers"` -> `"transformers"`
    """
    data = ModelCard(model_card(CARD)).data.to_dict()
    assert data == {
        "base_model": "org/base-1B",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["jaxpost", "sft", "lora"],
    }


def test_a_folder_is_no_base_model_for_the_hub():
    """The Hub refuses a `base_model` that is no id.

    Mutation: jaxpost/report/card.py: `if card.on_hub else {}` -> `if True else {}`
    """
    card = dataclasses.replace(CARD, base_model="models/base", on_hub=False, adapter=None)
    data = ModelCard(model_card(card)).data.to_dict()
    assert "base_model" not in data
    assert data["library_name"] == "transformers" and data["tags"] == ["jaxpost", "sft"]


@pytest.mark.parametrize("text", [HOSTILE, "`" * 40, "a\n```", "```python\n", "", "x\r\n```\r\ny", "ends without"])
def test_the_template_is_verbatim_in_a_block_that_it_cannot_end(text):
    """Mutation: jaxpost/report/card.py: `fence = "`" * max(3, longest + 1)` -> `fence = "`" * 3`"""
    page = model_card(dataclasses.replace(CARD, chat_templates={"default": text, "other": "o"}))
    found = [content for language, content in blocks(page) if language == "jinja"]
    assert [part.rstrip("\n") for part in found] == [text.rstrip("\n"), "o"]
    assert ModelCard(page).data.to_dict()["library_name"] == "peft"
    assert "# Heading" not in re.sub(re.escape(text), "", page)


def test_hostile_names_stay_what_they_are():
    """Mutation: jaxpost/report/card.py: `    line = " ".join(text.split())` -> `    line = text`"""
    name = "a`b\n---\nlibrary_name: evil\n# x"
    card = dataclasses.replace(CARD, name=name, base_model=name, data=(name,), folder=name, options={"mesh": name})
    page = model_card(card)
    data = ModelCard(page).data.to_dict()
    assert data["library_name"] == "peft" and data["base_model"] == name
    assert "\n# x" not in page.split("\n---\n", 1)[1]
    (options,) = [yaml.safe_load(content) for language, content in blocks(page) if language == "yaml"]
    assert options == {"mesh": name}


def test_it_tells_how_the_model_was_made():
    page = model_card(dataclasses.replace(CARD, started_from="first"))
    for line in (
        "- Started from: the adapter `first`",
        "- Data: `rows.jsonl`: 10 rows: 9 kept",
        "- Steps: 4",
        "- Training loss, last step: 0.1235",
        "- Versions: jax 0.10.2",
    ):
        assert f"\n{line}\n" in page
    without = model_card(dataclasses.replace(CARD, chat_templates={}))
    assert "no row went through one" in without and "apply_chat_template" not in without


@pytest.mark.parametrize(("has_tokenizer", "source"), [(False, "base"), (True, "folder")])
def test_the_tokenizer_is_taken_from_where_it_is(has_tokenizer, source):
    """Mutation: jaxpost/report/card.py: `"folder" if card.has_tokenizer else "base"` -> `"base"`"""
    page = model_card(dataclasses.replace(CARD, has_tokenizer=has_tokenizer))
    assert f"AutoTokenizer.from_pretrained({source})" in page and "AutoModelForCausalLM.from_pretrained(base, " in page


def test_the_python_is_python():
    """Names are quoted as Python does."""
    for card in (
        CARD,
        dataclasses.replace(CARD, adapter=None, has_tokenizer=True, chat_templates={}, folder="it's\n\\here"),
    ):
        (source,) = [content for language, content in blocks(model_card(card)) if language == "python"]
        compile(source, "card", "exec")
        assert f"folder = {card.folder!r}" in source


def test_a_fence_is_longer_than_any_run():
    assert fenced("`" * 7).startswith("`" * 8 + "\n") and code("``") == "``` `` ```"
