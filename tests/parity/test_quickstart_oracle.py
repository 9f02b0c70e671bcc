"""scripts/reproduce_quickstart.py: transformers and PEFT answer as scripts/evaluate_sql.py does, on a tiny model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny

import jaxpost

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(output folder, model) as the quickstart leaves them, with an adapter that changes what the model says."""
    output = tmp_path_factory.mktemp("quickstart")
    model = tiny.make(output / "model", max_position_embeddings=1024, vocab_size=260)  # no id without a token
    make = [sys.executable, SCRIPTS / "make_sql_task.py", "--output", output / "task"]
    subprocess.run([*make, "--train-rows", "1", "--heldout-rows", "3"], check=True, stdout=subprocess.DEVNULL)
    loaded = jaxpost.load(model, dtype="float32")
    adapters = jaxpost.adapters.init(jax.random.key(1), loaded, rank=4, alpha=8.0)
    factors = jax.tree.map(
        lambda leaf: 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), adapters.factors
    )
    jaxpost.save_adapter(output / "adapter", jaxpost.adapters.Adapters(factors, adapters.spec), loaded)
    evaluate = script("evaluate_sql")
    rows = evaluate.read_questions(output / "task", 6)
    for name, adapter in (("base", None), ("tuned", output / "adapter")):
        texts = evaluate.answer(str(model), adapter, rows, name)
        lines = [json.dumps(record) + "\n" for record in evaluate.scored(rows, texts, output / "task")]
        (output / f"{name}.jsonl").write_text("".join(lines))
    return output, model


def test_answers_are_those_of_transformers_and_peft(finished, monkeypatch, capsys):
    output, model = finished
    monkeypatch.setattr("sys.argv", ["reproduce", str(output), "--model", str(model), "--questions", "4"])
    assert script("reproduce_quickstart").main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(";")[1] for line in lines] == [" 4 of 4 answers are the same text"] * 2
    answers = [[json.loads(line)["answer"] for line in (output / f"{n}.jsonl").open()] for n in ("base", "tuned")]
    assert answers[0] != answers[1]


def test_other_scores_are_seen(finished, monkeypatch, capsys):
    output, model = finished
    records = [json.loads(line) for line in (output / "tuned.jsonl").read_text().splitlines()]
    (output / "tuned.jsonl").write_text("".join(json.dumps(r | {"correct": True}) + "\n" for r in records))
    monkeypatch.setattr("sys.argv", ["reproduce", str(output), "--model", str(model), "--questions", "2"])
    assert script("reproduce_quickstart").main() == 1
    assert "100.0 % here, 0.0 % in transformers" in capsys.readouterr().out
