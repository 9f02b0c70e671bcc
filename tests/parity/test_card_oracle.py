"""The Python of a model card, run as it stands by transformers and PEFT on the folder that it describes."""

import contextlib
import io
import json

import numpy as np
import oracle
import pytest
import tiny
from fenced_blocks import blocks
from tolerances import FLOAT32_CPU

from jaxpost.cli import main

pytest.importorskip("peft")


@pytest.mark.parametrize("flags", [(), ("--full",)], ids=["adapter", "full"])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_the_code_of_the_card_loads_and_answers(tmp_path, flags, chat):
    """It answers, with the weights that were trained; a folder whose name needs quoting.

    Mutation: jaxpost/report/card.py: `lines += ["model = PeftModel.from_pretrained(model, folder)"] if card.adapter else []` -> `pass`
    Mutation: jaxpost/recipes/reporting.py: `folder=str(config.output),` -> `folder=config.output.name,`
    """  # noqa: E501
    model = tiny.make(tmp_path / "it's a model", num_hidden_layers=1)
    if not chat:
        settings = json.loads((model / "tokenizer_config.json").read_text())
        settings.pop("chat_template")
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"q{i} ", "completion": "word " * (1 + i)}) + "\n" for i in range(4)))
    argv = ["--model", str(model), "--data", str(data), "--steps", "3", "--batch-size", "2", "--learning-rate", "0.05"]
    assert main(["sft", *argv, "--max-length", "64", "--output", str(tmp_path / "out"), *flags]) == 0
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (source,) = [content for language, content in blocks(text) if language == "python"]
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "card", "exec"), names)
    prompt = names["inputs"]["input_ids"].shape[1]
    assert names["output"].shape[1] > prompt > 1
    tokens, loaded = np.arange(10, 30), names["model"]
    change = np.abs(oracle.logits(loaded, tokens) - oracle.logits(oracle.load(model), tokens)).max()
    assert change > 1e-2, "what the code loads is not the trained model"
    if "--full" in flags:
        want = oracle.logits(oracle.load(tmp_path / "out"), tokens)
        assert np.abs(oracle.logits(loaded, tokens) - want).max() < FLOAT32_CPU["logits"].absolute
