"""Bad input to `jaxpost sft`: one line on stderr, exit status 2, no traceback, no output folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from jaxpost.cli import main


def edit_config(folder: Path, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    tiny.write_weights(folder, weights)


def rename(weights):
    weights["model.layers.0.self_attn.q_proj.bias"] = np.zeros(4, np.float32)


def truncate(folder: Path):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def only_pickle(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def second_copy(folder: Path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tiny.write_weights(folder, weights, shards=2)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "first.safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    (folder / "first.safetensors").rename(folder / "model-00002-of-00002.safetensors")


MODELS = {
    "architecture": (lambda f: edit_config(f, model_type="mamba", architectures=["MambaForCausalLM"]), ["mamba"]),
    "config key": (lambda f: edit_config(f, residual_multiplier=0.22), ["residual_multiplier"]),
    "rope kind": (lambda f: edit_config(f, rope_scaling={"rope_type": "yarn", "factor": 4.0}), ["yarn"]),
    "missing": (lambda f: edit_weights(f, lambda w: w.pop("model.norm.weight")), ["model.norm.weight"]),
    "extra": (lambda f: edit_weights(f, rename), ["q_proj.bias"]),
    "shape": (
        lambda f: edit_weights(f, lambda w: w.update({"model.norm.weight": np.ones(7, np.float32)})),
        ["model.norm.weight", "[7]"],
    ),
    "truncated": (truncate, ["model.safetensors"]),
    "pickle": (only_pickle, ["pytorch_model.bin"]),
    "duplicate": (second_copy, ["model-0000"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    "tokenizer": (lambda f: edit_config(f, vocab_size=0), ["vocab_size"]),
}


def refused(capsys, out: Path, *argv: str) -> str:
    """The one line that a refused command says."""
    assert main(["sft", *argv, "--output", str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("jaxpost: error: ") and said.err.count("\n") == 1, said.err
    assert not out.exists()
    return said.err


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_understood_is_refused_in_one_line(tmp_path, capsys, rows, name):
    change, mentions = MODELS[name]
    folder = tiny.make(tmp_path / "model", num_hidden_layers=1)
    change(folder)
    line = refused(capsys, tmp_path / "out", "--model", str(folder), "--data", str(rows))
    for mention in mentions:
        assert mention in line
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left beside the output either"


DATA = {
    "no file": (None, ["rows.jsonl"]),
    "broken line": ('{"text": "a"}\n{"text": \n', ["rows.jsonl", "2"]),
    "no form": ('{"texts": "a"}\n', ["rows.jsonl", "1"]),
    "two forms": ('{"text": "a", "messages": []}\n', ["rows.jsonl", "1"]),
    "nothing left": ('{"messages": [{"role": "user", "content": "a"}]}\n', ["1 rows"]),
    "empty": ("", ["0 rows"]),
    "not UTF-8": (b'{"text": "a"}\n{"text": "caf\xe9"}\n', ["rows.jsonl line 2", "0xe9"]),
    "nested": (
        '{"messages": [{"role": "user", "content": "a", "x": ' + "[" * 300 + "]" * 300 + "}]}",
        ["line 1", "100"],
    ),
    "image": ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', ["line 1", "image"]),
    "old call": (
        '{"messages": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]}',
        ["line 1", "tool_calls"],
    ),
    "weight": ('{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}', ["line 1", "weight"]),
    "speaker": ('{"conversations": [{"from": "humn", "value": "a"}]}', ["line 1", "human"]),
    "tools": ('{"messages": [], "tools": "search"}', ["line 1", "tools"]),
    "template argument": ('{"messages": [], "chat_template_kwargs": {"tools": 1}}', ["line 1", "tools"]),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_trained_on_is_refused_in_one_line(tmp_path, capsys, models, name):
    content, mentions = DATA[name]
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(capsys, tmp_path / "out", "--model", str(models()), "--data", str(file))
    for mention in mentions:
        assert mention in line


OTHER_FILES = {
    "kind of file": ("rows.csv", "a,b", [".jsonl", "rows.csv"]),
    "no Parquet": ("rows.parquet", "a,b", ["rows.parquet"]),
    "weight of nothing": ("rows.jsonl=0", None, ["rows.jsonl=0"]),
    "split of a file": ("rows.jsonl:train", None, ["rows.jsonl"]),
    "folder": (".", None, ["folder"]),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_what_is_no_data_is_refused_in_one_line(tmp_path, capsys, models, monkeypatch, name):
    item, content, mentions = OTHER_FILES[name]
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(item).write_text(content)
    line = refused(capsys, tmp_path / "out", "--model", str(models()), "--data", item)
    for mention in mentions:
        assert mention in line


EACH = "{% for m in messages %}"
TEMPLATES = {
    "no mask": (EACH + "{{ m['content'] }}{{ loop.index }}/{{ messages|length }}{% endfor %}", ["tags"]),
    "none": (None, ["--chat-template chatml"]),
    "no Jinja": (EACH + "{{ m['content' }}{% endfor %}", ["line 1"]),
    "refuses": (tiny.CHATML + "{{ raise_exception('only one turn') }}", ["only one turn", "line 1"]),
    "tag in a macro": (
        "{% macro say(m) %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endmacro %}"
        + EACH
        + "{{ say(m) }}{% endfor %}",
        ["generation"],
    ),
    "drops answers": (EACH + "{{ '<|im_start|>' + m['role'] + '<|im_end|>' }}{% endfor %}", ["content"]),
    "drops strings": (EACH + "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}", ["string"]),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_cannot_be_trained_is_refused_by_its_folder(tmp_path, capsys, name):
    template, mentions = TEMPLATES[name]
    folder = tiny.make(tmp_path / "model", num_hidden_layers=1, template=template)
    turns = [{"role": r, "content": f"{r} says"} for r in ("user", "assistant", "user", "assistant")]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    line = refused(capsys, tmp_path / "out", "--model", str(folder), "--data", str(tmp_path / "rows.jsonl"))
    assert "template" in line and str(folder) in line
    for mention in mentions:
        assert mention in line


def edit_adapter(folder: Path, **changes):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


ADAPTERS = {
    "no folder": (lambda f: shutil.rmtree(f), ["adapter"]),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), ["adapter_config.json"]),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), ["adapter_model.safetensors"]),
    "kind": (lambda f: edit_adapter(f, peft_type="IA3"), ["IA3"]),
    "option": (lambda f: edit_adapter(f, lora_bias=True), ["lora_bias"]),
    "rank": (lambda f: edit_adapter(f, r=5), ["5"]),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_is_not_understood_is_refused_in_one_line(tmp_path, capsys, models, rows, name):
    change, mentions = ADAPTERS[name]
    folder = tiny.make_adapter(tmp_path / "adapter", models(), rank=4, alpha=8)
    change(folder)
    argv = ["--model", str(models()), "--data", str(rows), "--adapter", str(folder)]
    line = refused(capsys, tmp_path / "out", *argv)
    for mention in mentions:
        assert mention in line


OPTIONS = {
    "typo": (["--lora.rnak", "4"], ["--lora.rank"]),
    "type": (["--batch-size", "two"], ["--batch-size", "two"]),
    "range": (["--lora.rank", "0"], ["--lora.rank", "0"]),
    "choice": (["--loss", "mse"], ["nll", "mse"]),
    "target": (["--lora.targets", "q_prj"], ["q_proj"]),
    "head": (["--lora.targets", "q_proj,lm_head"], ["lm_head"]),
    "micro": (["--batch-size", "4", "--micro-batch-size", "3"], ["3", "4"]),
    "mesh": (["--mesh", "data=2,pipe=4"], ["pipe"]),
    "steps and epochs": (["--steps", "3", "--epochs", "2"], ["--steps", "--epochs"]),
    "rank and adapter": (["--adapter", "x", "--lora.rank", "4"], ["--lora.rank", "--adapter"]),
    "full and adapter": (["--full", "--adapter", "x"], ["--adapter", "--full"]),
    "template file": (["--chat-template", "no.jinja"], ["no.jinja"]),
    "new tokens": (["--chat-template", "{news}"], ["<|news|>", "--full"]),
    "day": (["--date", "31.1.2025"], ["--date", "31.1.2025"]),
    "overlong": (["--max-length", "8", "--overlong", "error"], ["max_length", "line"]),
    "evaluation": (["--eval-data", "no.jsonl"], ["--eval-data", "no.jsonl"]),
    "best of nothing": (["--keep", "best"], ["--keep", "--eval-data"]),
    "config file": (["--config", "no.yaml"], ["no.yaml"]),
    "config": (["--config", "{config}"], ["learning_rat", "learning_rate"]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_wrong_is_refused_in_one_line(tmp_path, capsys, models, rows, name):
    argv, mentions = OPTIONS[name]
    (tmp_path / "news.jinja").write_text(tiny.CHATML.replace("<|im_end|>", "<|news|>"))
    (tmp_path / "run.yaml").write_text("learning_rat: 1e-4\n")
    argv = [part.format(news=tmp_path / "news.jinja", config=tmp_path / "run.yaml") for part in argv]
    line = refused(capsys, tmp_path / "out", "--model", str(models()), "--data", str(rows), *argv)
    for mention in mentions:
        assert mention in line


def test_an_output_folder_that_holds_something_is_left_alone(tmp_path, capsys, models, rows):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert main(["sft", "--model", str(models()), "--data", str(rows), "--output", str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_run_without_a_finite_gradient_fails_with_one_line_and_status_1(tmp_path, capsys, rows):
    """The base holds a NaN: steps are skipped and counted, the run ends after --max-skipped-steps of them."""
    folder = tiny.make(tmp_path / "model", num_hidden_layers=1)
    edit_weights(folder, lambda w: w["model.norm.weight"].__setitem__(0, np.nan))
    argv = ["sft", "--model", str(folder), "--data", str(rows), "--output", str(tmp_path / "out"), "--steps", "9"]
    assert main([*argv, "--max-skipped-steps", "3", "--max-length", "64", "--batch-size", "2"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("jaxpost: error: ") and "3 steps" in said[-1]
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [record["skipped"] for record in records] == [1, 2, 3]
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
