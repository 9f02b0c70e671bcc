"""`--eval-data`: the mean over all held-out tokens, no dropout, no noise, in any batches; best step; early stop."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from sft_runs import run_command, write_rows

import jaxpost
from jaxpost.core.config import load_config
from jaxpost.recipes import sft as recipe
from jaxpost.recipes.sft_config import SftConfig
from jaxpost.recipes.sft_setup import prepare

LEARN = ("--steps", "6", "--batch-size", "2", "--max-length", "64", "--dtype", "float32", "--learning-rate", "3e-2")


def evaluations(run):
    return [record for record in run.records if "eval_loss" in record]


def losses(run):
    return [record["eval_loss"] for record in evaluations(run)]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Seven rows of very different lengths, one cut at 64 tokens."""
    rows = [{"prompt": f"z{i} ", "completion": "other " * (1 + 3 * i)} for i in range(6)] + [{"text": "end " * 2}]
    return str(write_rows(tmp_path_factory.mktemp("held_out") / "held_out.jsonl", rows))


def by_hand(model, rows_file, adapter=None):
    """Mean negative log-likelihood and accuracy of the rows' trained tokens, one document at a time."""
    config = load_config(SftConfig, ["--model", str(model), "--data", rows_file, "--output", "x", "--max-length", "64"])
    examples = prepare(config).plan.examples
    loaded = jaxpost.load(model, dtype="float32")
    params = loaded.params if adapter is None else jaxpost.bind(loaded.params, jaxpost.load_adapter(adapter, loaded))
    tokens, ids, trained = np.zeros((3, len(examples), 64), np.int32)
    for row, example in enumerate(examples):
        here = slice(0, len(example.ids))
        tokens[row, here], ids[row, here], trained[row, here] = example.ids, 1, example.trained
    logp = jax.jit(jaxpost.token_logprobs, static_argnums=0)(loaded.config, params, tokens, ids)
    logits = jax.jit(jaxpost.forward, static_argnums=0)(loaded.config, params, tokens, ids)
    scored = trained[:, 1:] > 0
    hits = np.asarray(logits)[:, :-1].argmax(-1) == tokens[:, 1:]
    return -np.asarray(logp)[scored].mean(dtype=np.float64), hits[scored].mean()


def test_the_mean_is_over_all_tokens_of_the_set(sft, models, held_out):
    """Against each document alone: before the first step the base, at the end the adapter that was written.

    Mutation: jaxpost/recipes/sft_evaluation.py: `loss, correct = (float(value / sums[2]) for value in sums[:2])` -> `loss, correct = (float(value / self.plan.steps_per_epoch) for value in sums[:2])`
    Mutation: jaxpost/recipes/sft_evaluation.py: `info.trained_tokens]` -> `info.num_tokens]`
    """  # noqa: E501
    run = sft("--eval-data", held_out, base=LEARN)
    first, *_, last = evaluations(run)
    for record, adapter in ((first, None), (last, run.out)):
        loss, accuracy = by_hand(models(), held_out, adapter)
        assert abs(record["eval_loss"] - loss) < 1e-5
        assert abs(record["eval_mean_token_accuracy"] - accuracy) < 1e-9
    assert first["step"] == 0 and last["step"] == 6 and last["eval_loss"] < first["eval_loss"]


def test_records_have_the_fields_names(sft, held_out):
    run = sft("--eval-data", held_out, base=LEARN)
    names = {"step", "epoch", "eval_loss", "eval_mean_token_accuracy", "eval_num_tokens", "eval_runtime"}
    assert all(record.keys() == names for record in evaluations(run))
    results = json.loads((run.out / "train_results.json").read_text())
    assert results["eval_loss"] == losses(run)[-1] and results["step"] == results["written_step"] == 6
    assert f"step 6: eval_loss {losses(run)[-1]:.4f}" in run.stderr


def test_S10_packing_changes_no_eval_loss(sft, models, held_out):
    """The same adapter, and the base, evaluated in packed rows and in rows of one document.

    Mutation: jaxpost/data/batches.py: `segment_ids[row, start:end] = segment` -> `segment_ids[row, start:end] = 1`
    """
    on, off = (sft("--eval-data", held_out, "--packing", value, base=LEARN) for value in ("on", "off"))
    assert abs(losses(on)[0] - losses(off)[0]) < 2e-6
    trained = [
        sft("--eval-data", held_out, "--packing", value, "--adapter", str(on.out), "--learning-rate", "0", base=LEARN)
        for value in ("on", "off")
    ]
    assert abs(losses(trained[0])[0] - losses(trained[1])[0]) < 2e-6
    assert abs(losses(trained[0])[0] - losses(on)[-1]) < 2e-6 and losses(trained[0])[0] != losses(on)[0]
    assert len({b for b in off.buckets if len(b) == 2}) >= 1


def test_the_micro_batch_and_the_mesh_change_no_eval_loss(sft, held_out):
    one = sft("--eval-data", held_out, base=LEARN)
    for flags in (("--micro-batch-size", "1"), ("--mesh", "data=2,tensor=4")):
        other = sft("--eval-data", held_out, *flags, base=LEARN)
        np.testing.assert_allclose(losses(other), losses(one), rtol=1e-4)
        np.testing.assert_allclose(losses(other)[0], losses(one)[0], rtol=1e-6)


def test_S7_no_dropout_and_no_noise(sft, held_out):
    """Rates at which training is another: evaluation of the same weights is the same, and twice the same.

    Mutation: jaxpost/recipes/sft_setup.py: `score=make_score(model.config, policy, dtype=dtype),` -> `score=make_score(model.config, lambda t, f, k: policy(t, f, jax.random.key(1)), dtype=dtype),`
    """  # noqa: E501
    frozen = ("--learning-rate", "0", "--eval-data", held_out, "--eval-steps", "1", "--lora.dropout", "0.5")
    first = sft("--eval-data", held_out, base=LEARN)
    noisy = sft(*frozen, "--neftune-alpha", "50", "--adapter", str(first.out), base=LEARN)
    assert len(set(losses(noisy))) == 1 and len(noisy.records) == 6 + 7
    assert abs(losses(noisy)[0] - losses(first)[-1]) < 2e-6


def test_evaluation_changes_no_training(sft, held_out):
    """The weights, and every record of a step, are those of the run without."""
    plain, watched = sft(base=LEARN), sft("--eval-data", held_out, "--eval-steps", "1", base=LEARN)
    assert plain.digest() == watched.digest()
    steps = [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in watched.records if "loss" in r]
    assert steps == [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in plain.records]


@pytest.mark.parametrize(("flags", "steps"), [((), [0, 5, 6]), (("--eval-steps", "4"), [0, 4, 6])])
def test_it_is_done_at_the_start_each_epoch_or_interval_and_at_the_end(flags, steps, sft, held_out):
    """Mutation: jaxpost/recipes/sft.py: `(config.eval_steps or setup.plan.steps_per_epoch)` -> `setup.steps`"""
    run = sft("--eval-data", held_out, "--packing", "off", *flags, base=LEARN)
    assert [record["step"] for record in evaluations(run)] == steps
    assert evaluations(run)[-1]["epoch"] == round(6 / 5, 4)


def test_its_programs_are_compiled_before_step_0_and_their_memory_is_said(sft, held_out):
    """Mutation: jaxpost/recipes/sft_setup.py: `found |= setup.evaluation.sized(micro).programs(` -> `setup.evaluation.sized(micro).programs(`"""  # noqa: E501
    run = sft("--eval-data", held_out, base=LEARN)
    said = run.stderr[: run.stderr.index("step 0: ")]
    assert run.status == 0 and "evaluation bucket 2 x 64: " in said and "bucket 1 x 2 x 64: " in said
    assert run.buckets == [(1, 2, 64), (2, 64)]
    assert "evaluation: 7 rows: 7 kept" in said


def test_eval_loss_is_the_likelihood_whatever_is_trained_on(sft, held_out):
    nll, dft = (sft("--eval-data", held_out, "--loss", loss, base=LEARN) for loss in ("nll", "dft"))
    assert losses(nll)[0] == losses(dft)[0] and losses(nll)[-1] != losses(dft)[-1]


BEST = ("--steps", "8", "--eval-steps", "1")


@pytest.fixture(scope="module")
def contrary(tmp_path_factory):
    """Rows of characters that training never shows: their loss is lowest before the model is sure of the others."""
    rows = [{"prompt": f"q{i} ", "completion": "}{|~^" * (1 + i)} for i in range(3)]
    return str(write_rows(tmp_path_factory.mktemp("contrary") / "contrary.jsonl", rows))


def test_keep_best_writes_the_step_with_the_lowest_loss(sft, models, contrary):
    """The folder holds its weights, the results and the card name it, its checkpoint outlives the limit.

    Mutation: jaxpost/recipes/sft.py: `with_best=best)` -> `with_best=False)`
    Mutation: jaxpost/recipes/sft.py: `kept = state if written == step else restore(` -> `kept = state if True else restore(`
    Mutation: jaxpost/recipes/sft.py: `            save_best=best,` -> `            save_best=False,`
    """  # noqa: E501
    common = ("--eval-data", contrary, *BEST, "--save-steps", "7", "--save-total-limit", "1")
    best, last = sft(*common, "--keep", "best", base=LEARN), sft(*common, base=LEARN)
    assert best.status == 0, best.stderr
    tail = evaluations(best)[1:]
    lowest = min(tail, key=lambda record: record["eval_loss"])
    assert 0 < lowest["step"] < 7, "the case must be one where the last step is not the best"
    assert abs(by_hand(models(), contrary, best.out)[0] - lowest["eval_loss"]) < 1e-5
    results = json.loads((best.out / "train_results.json").read_text())
    assert (results["written_step"], results["eval_loss"]) == (lowest["step"], lowest["eval_loss"])
    assert f"of step {lowest['step']}" in (best.out / "README.md").read_text()
    names = sorted(path.name for path in (best.out / "checkpoints").iterdir())
    assert names == sorted([str(lowest["step"]), "8"])
    assert best.digest() != last.digest() and losses(best) == losses(last)


def test_early_stop_ends_the_run_and_going_on_ends_it_too(sft, contrary, tmp_path):
    """A kill between its last checkpoint and the weights: no step more is made afterwards.

    Mutation: jaxpost/recipes/sft.py: `patience=config.early_stopping_patience,` -> `patience=None,`
    Mutation: jaxpost/recipes/sft.py: `        if stop or milestones.patience_is_over:` -> `        if stop:`
    """  # noqa: E501
    common = ("--eval-data", contrary, *BEST, "--save-steps", "7", "--save-total-limit", "1")
    whole, early = sft(*common, base=LEARN), sft(*common, "--early-stopping-patience", "2", base=LEARN)
    tail = losses(whole)[1:]
    end = next(n for n in range(2, 9) if min(tail[n - 2 : n]) >= min(tail[: n - 2], default=np.inf))
    assert early.status == 0 and end < 8
    assert early.records[-1]["step"] == evaluations(early)[-1]["step"] == end
    assert json.loads((early.out / "train_results.json").read_text())["step"] == end
    killed = shutil.copytree(early.out, tmp_path / "killed")
    for name in ("train_results.json", "adapter_model.safetensors"):
        (killed / name).unlink()
    again = run_command(killed, ("sft", "--config", str(killed / "run.yaml"), "--resume"))
    assert again.status == 0 and again.records == early.records and again.digest() == early.digest()
    assert (killed / "train_results.json").read_text() == (early.out / "train_results.json").read_text()


def test_the_threshold_says_what_counts_as_better(sft, held_out):
    """Mutation: jaxpost/recipes/sft.py: `            threshold=config.early_stopping_threshold,` -> `            threshold=0.0,`"""  # noqa: E501
    flags = ("--eval-data", held_out, "--eval-steps", "1", "--early-stopping-patience", "1")
    any_gain, large_gain = sft(*flags, base=LEARN), sft(*flags, "--early-stopping-threshold", "9", base=LEARN)
    assert any_gain.records[-1]["step"] == 6 and large_gain.records[-1]["step"] == 2


REFUSED = {
    "best without rows": (("--keep", "best"), "`--keep`"),
    "interval without rows": (("--eval-steps", "2"), "--eval-steps"),
    "patience without rows": (("--early-stopping-patience", "2"), "--early-stopping-patience"),
    "threshold without patience": (
        ("--eval-data", "{rows}", "--early-stopping-threshold", "0.1"),
        "--early-stopping-threshold",
    ),
    "best without checkpoints": (
        ("--eval-data", "{rows}", "--keep", "best", "--save-steps", "none"),
        "--save-steps none",
    ),
    "no such file": (("--eval-data", "nothing.jsonl"), "--eval-data"),
    "rows that are none": (("--eval-data", "{broken}"), "--eval-data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name, sft, held_out, tmp_path_factory):
    """Mutation: jaxpost/recipes/sft_config.py: `    _check_evaluation(config)` -> `    pass`"""
    flags, mention = REFUSED[name]
    broken = tmp_path_factory.mktemp("broken") / "broken.jsonl"
    broken.write_text('{"text": \n')
    run = sft(*(flag.format(rows=held_out, broken=broken) for flag in flags), base=LEARN)
    assert run.status == 2 and mention in run.stderr and run.stderr.count("\n") == 1
    assert not run.out.exists()


def test_a_base_that_is_not_finite_gives_null_and_is_never_the_best(tmp_path, held_out, rows):
    """The run fails as it does without an evaluation, and metrics.jsonl stays JSON."""
    folder = tiny.make(tmp_path / "model", num_hidden_layers=1)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = np.nan
    tiny.write_weights(folder, weights)
    argv = ("sft", "--model", str(folder), "--data", str(rows), "--eval-data", held_out, *LEARN, "--eval-steps", "1")
    run = run_command(tmp_path / "out", (*argv, "--early-stopping-patience", "2"))
    assert run.status == 1 and "nothing was trained" in run.stderr
    assert losses(run) == [None, None, None] and not (run.out / "train_results.json").exists()
    assert [record["skipped"] for record in run.records if "loss" in record] == [1, 2]


def test_skipped_steps_are_counted_in_the_summary(sft, monkeypatch, models, rows, tmp_path):
    """Mutation: jaxpost/recipes/sft.py: `skipped=step - int(state.updates)` -> `skipped=0`"""
    original = recipe.device_batch

    def poisoned(setup, step):
        batch, facts = original(setup, step)
        totals = {"tokens": np.float32(np.nan)} if step in (1, 3) else batch["totals"]
        return {**batch, "totals": totals}, facts

    monkeypatch.setattr(recipe, "device_batch", poisoned)
    run = run_command(tmp_path / "out", ("sft", "--model", str(models()), "--data", str(rows), *LEARN))
    assert run.status == 0 and "2 skipped as not finite" in run.stderr
    assert json.loads((run.out / "train_results.json").read_text())["skipped_steps"] == 2
    assert [record["skipped"] for record in run.records] == [0, 1, 0, 1, 0, 0]
