"""The model card of a run: read by the Hub's own reader, true to the run, with the tokenizer's template verbatim."""

import json

import pytest
import yaml
from fenced_blocks import blocks
from huggingface_hub import ModelCard

from jaxpost.cli import main
from jaxpost.recipes import reporting

BREAKING = "{# ```` #}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n```\n' + m['content'] + '<|im_end|>' }}"
BREAKING += "\n---\n{% endfor %}"


def page(run) -> str:
    return (run.out / "README.md").read_text(encoding="utf-8")


def test_the_front_matter_says_what_the_folder_is(sft):
    adapter, full = (ModelCard.load(run.out / "README.md").data.to_dict() for run in (sft(), sft("--full")))
    assert (adapter["library_name"], full["library_name"]) == ("peft", "transformers")
    assert adapter["tags"] == ["jaxpost", "sft", "lora"] and full["tags"] == ["jaxpost", "sft"]
    assert adapter["pipeline_tag"] == "text-generation" and "base_model" not in adapter, "a folder is no Hub id"


def test_it_tells_data_counts_steps_losses_and_options(sft, models):
    """Mutation: jaxpost/recipes/reporting.py: `(("first", train[:window]), ("last", train[-window:]))` -> `(("first", train[-window:]), ("last", train[:window]))`
    Mutation: jaxpost/recipes/reporting.py: `return {**told, "micro_batch_size": setup.plan.micro_batch_size}` -> `return told`
    """  # noqa: E501
    run = sft("--learning-rate", "1e-2")
    text, loss = page(run), run.column("loss")
    assert f"- Data: `rows.jsonl`: {run.stderr.splitlines()[0]}\n" in text
    assert f"- Training loss, first step: {loss[0]:.4f}\n" in text
    assert f"- Training loss, last step: {loss[-1]:.4f}\n" in text
    assert f"{sum(run.column('trained_tokens')):,} trained, {run.column('num_tokens')[-1]:,} seen" in text
    assert "- Steps: 4\n" in text and "jax " in text and "- Hardware: 8 x cpu (cpu)\n" in text
    (options,) = [yaml.safe_load(content) for language, content in blocks(text) if language == "yaml"]
    assert (options["learning_rate"], options["lora.rank"], options["micro_batch_size"]) == (0.01, 16, 2)
    assert str(run.out.parent.parent) not in "".join(c for language, c in blocks(text) if language == "yaml")


def test_data_is_named_without_its_folders(tmp_path):
    """Mutation: jaxpost/recipes/reporting.py: `shown = name.text if name.path is None else name.path.name` -> `shown = name.text`
    Mutation: jaxpost/recipes/reporting.py: `return shown if name.weight is None else` -> `return shown if True else`
    """  # noqa: E501
    assert reporting._data_names([f"{tmp_path}/a.jsonl=0.7", "org/name:test=2"]) == ["a.jsonl=0.7", "org/name:test=2"]
    assert reporting._data_names([f"{tmp_path}/a.parquet"]) == ["a.parquet"]


def test_the_template_is_the_tokenizers_byte_for_byte(models, rows, tmp_path):
    """One that tries to end its block.

    Mutation: jaxpost/recipes/reporting.py: `chat_templates=_chat_templates(setup.model.tokenizer),` -> `chat_templates={},`
    """  # noqa: E501
    model = tmp_path / "model"
    model.mkdir()
    for file in models().iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": BREAKING}))
    argv = ["--model", str(model), "--data", str(rows), "--steps", "1", "--batch-size", "2", "--max-length", "64"]
    assert main(["sft", *argv, "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (template,) = [content for language, content in blocks(text) if language == "jinja"]
    assert template == BREAKING + "\n"
    assert ModelCard(text).data.to_dict()["library_name"] == "peft"


def test_a_template_that_was_given_is_the_one_in_the_card(models, rows, tmp_path):
    """It lies in the output folder with its tokenizer, from which the card's Python then takes both.

    Mutation: jaxpost/recipes/reporting.py: `(config.output / "tokenizer_config.json").exists()` -> `False`
    Mutation: jaxpost/recipes/reporting.py: `if isinstance(value, str | Path) and Path(value).is_file():` -> `if False:`
    """
    given, out = tmp_path / "given.jinja", tmp_path / "out"
    given.write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    argv = ["--model", str(models()), "--data", str(rows), "--steps", "1", "--batch-size", "2", "--max-length", "64"]
    assert main(["sft", *argv, "--chat-template", str(given), "--output", str(out)]) == 0
    found = dict(blocks((out / "README.md").read_text(encoding="utf-8")))
    assert found["jinja"] == given.read_text() + "\n"
    assert "AutoTokenizer.from_pretrained(folder)" in found["python"]
    assert yaml.safe_load(found["yaml"])["chat_template"] == "given.jinja"


def test_an_adapter_that_was_trained_further_is_named(sft, tmp_path):
    run = sft("--adapter", str(sft().out))
    assert f"- Started from: the adapter `{sft().out.name}`\n" in page(run)
    assert "- Started from" not in page(sft())


def test_the_weights_may_be_of_an_earlier_step():
    """The run stopped early and kept its best step: the card says which, with the loss that it had.

    Mutation: jaxpost/recipes/reporting.py: `found["Evaluation loss"] = evals[written]` -> `found["Evaluation loss"] = min(evals.values())`
    Mutation: jaxpost/recipes/reporting.py: `        if written != train[-1]["step"]:` -> `        if False:`
    """  # noqa: E501
    records = [
        {"step": s, "loss": 9.0 - s, "trained_tokens": s, "num_tokens": 10 * s, "epoch": s / 4} for s in (1, 2, 3)
    ]
    records += [{"step": 2, "eval_loss": 2.5}, {"step": 3, "eval_loss": 2.0}, {"step": 4, "eval_loss": None}]
    told = reporting._results(records, 2)
    assert (told["Steps"], told["Weights"], told["Evaluation loss"]) == (3, "of step 2", 2.5)
    assert "Weights" not in reporting._results(records, 3)
    assert reporting._results(
        [{"step": 1, "loss": None, **dict.fromkeys(("trained_tokens", "num_tokens", "epoch"), 1)}], 1
    )


@pytest.mark.parametrize(("base", "on_hub"), [("org/model", True), (".", False)])
def test_a_hub_id_is_told_from_a_folder(base, on_hub):
    """Mutation: jaxpost/recipes/reporting.py: `return not Path(base).expanduser().exists()` -> `return True`"""
    assert reporting.on_hub(base) == on_hub


def test_several_templates_are_all_shown():
    class Two:
        chat_template = {"default": "a", "tool_use": "b"}

    class None_:
        chat_template = None

    assert reporting._chat_templates(Two()) == {"default": "a", "tool_use": "b"}
    assert reporting._chat_templates(None_()) == {}
