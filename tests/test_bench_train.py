"""scripts/bench_train.py on a tiny model: the blocks, the loss and the fields of its line."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxpost

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_train.py"
TEXTS = ["some words here", "and a second text, longer", "12 + 12 = 24"] * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tiny.make(folder / "model", "llama", seed=1)


def run(model, mode):
    flags = ["--model", str(model), "--mode", mode, "--batch", "3", "--seq", "16", "--steps", "2", "--lr", "0.01"]
    done = subprocess.run([sys.executable, str(SCRIPT), *flags], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def test_first_loss_is_the_mean_over_shifted_tokens_of_the_corpus_in_order(model):
    """Full and LoRA start at the same loss, that of the plain model on the first blocks; both then learn."""
    loaded = jaxpost.load(model, dtype="float32")
    ids = [i for text in TEXTS for i in (*loaded.tokenizer(text, add_special_tokens=False)["input_ids"], 2)]
    tokens = jnp.array(ids[: 3 * 16], jnp.int32).reshape(3, 16)
    want = -float(np.mean(jaxpost.token_logprobs(loaded.config, loaded.params, tokens)))
    for mode, rank in (("full", None), ("lora", 16)):
        line = run(model, mode)
        assert line["losses"][0] == pytest.approx(want, abs=2e-5)
        assert line["losses"][-1] < line["losses"][0]
        assert (line["mode"], line["batch"], line["seq"], line["rank"]) == (mode, 3, 16, rank)
        assert len(line["losses"]) == len(line["steps_s"]) == 3
        assert line["first_step_s"] == line["steps_s"][0] > line["best_step_s"] > 0
        assert line["tokens_per_s"] == pytest.approx(3 * 16 / line["step_s"], rel=0.05)
        assert line["peak_rss_mb"] > 50 and (line["trainable"] == line["params"]) == (mode == "full")


def test_too_short_a_corpus_is_named(model):
    command = [sys.executable, str(SCRIPT), "--model", str(model), "--mode", "lora", "--seq", "4096"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.startswith("bench_train: error: the corpus has ")
