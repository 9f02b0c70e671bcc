"""`jaxpost rows`: the rows of a step by file and line, the step again bit for bit, each row's own loss and gradient."""

import contextlib
import hashlib
import io
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import assert_near
from tolerances import FLOAT32_CPU

import jaxpost
from jaxpost.cli import main
from jaxpost.core.config import load_config
from jaxpost.recipes.sft_config import SftConfig
from jaxpost.recipes.sft_setup import prepare

ROWS, BATCH, STEP = 200, 8, 18
TRAIN = ("--full", "--learning-rate", "1e-2", "--batch-size", str(BATCH), "--max-length", "64")


def command(*argv):
    """Exit status, stdout and stderr of `jaxpost rows ARGV`."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = main(["rows", *map(str, argv)])
    return status, stdout.getvalue(), stderr.getvalue()


def answer(run, step, path, *flags):
    status, stdout, stderr = command("--run", run.out, "--step", step, "--json", path, *flags)
    assert status == 0, stderr
    return json.loads(path.read_text()), stdout


def digest(folder):
    """Names, bytes and times of everything in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(p), hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files]


def clean_rows():
    words = ("alpha", "beta", "gamma", "delta")
    return [{"prompt": f"{i % 7} {words[i % 4]}? ", "completion": f"{words[i % 4]} it is"} for i in range(ROWS)]


def poisoned_rows(chosen):
    """The rows with other answers of the same length at `chosen`, so that packing and order stay."""
    rng, made = random.Random(0), clean_rows()
    for number in chosen:
        text = "".join(rng.choice("XQZJKVW#@%&") for _ in made[number - 1]["completion"])
        made[number - 1] = {**made[number - 1], "completion": text}
    return made


@pytest.mark.parametrize("packing", ["on", "off"])
def test_poisoned_rows_of_one_step_head_the_table(packing, models, tmp_path, sft):
    """Two per cent of the rows, all in one step: by loss and by gradient norm they stand first, by file and line.

    Mutation: jaxpost/recipes/rows.py: `_rank(getattr(row, config.sort)), reverse=True` -> `_rank(getattr(row, config.sort))`
    Mutation: jaxpost/recipes/sft_replay.py: `        if number == step - 1:` -> `        if number == first:`
    Mutation: jaxpost/recipes/row_figures.py: `places[source]` -> `places[sources[0]]`
    """  # noqa: E501
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in clean_rows()))
    flags = (*TRAIN, "--packing", packing, "--data", str(data), "--steps", str(STEP))
    plan = prepare(load_config(SftConfig, [*flags, "--model", str(models()), "--output", str(tmp_path / "x")])).plan
    step = STEP if packing == "off" else STEP - 3
    sources = [source for row in plan.batch(step - 1)[2].sources for source in row]
    chosen = sorted(sources[:: max(1, len(sources) // 4)][: ROWS // 50])
    data.write_text("".join(json.dumps(row) + "\n" for row in poisoned_rows(chosen)))
    run = sft(*flags, base=())
    assert run.status == 0, run.stderr
    for sort in ("loss", "grad_norm"):
        found, stdout = answer(run, step, tmp_path / "rows.json", "--sort", sort)
        assert [row["source"] for row in found["rows"]] != sources
        assert sorted(row["source"] for row in found["rows"]) == sorted(sources)
        assert sorted(row["source"] for row in found["rows"][: len(chosen)]) == chosen
        printed = stdout.splitlines()[2 : 2 + len(chosen)]
        for row, line in zip(found["rows"], printed, strict=False):
            assert f"{data} line {row['source']}: " in line and row["excerpt"] in line
        assert found["equal"] and "as the run recorded, bit for bit" in stdout


def test_each_row_has_the_loss_and_gradient_it_would_have_alone(models, rows, tmp_path, sft):
    """Packed rows against each document by itself, by `token_logprobs`; the sum over the rows is the step's loss.

    Mutation: jaxpost/recipes/row_figures.py: `optax.tree.norm(gradients)` -> `value`
    Mutation: jaxpost/recipes/row_figures.py: `int(example.trained[1:].sum())` -> `len(example.ids)`
    """
    run = sft("--full")
    found, _ = answer(run, 1, tmp_path / "rows.json")
    setup = prepare(load_config(SftConfig, [], run.out / "run.yaml"))
    model = jaxpost.load(models())
    examples = {example.source: example for example in setup.plan.examples}

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradient(params, ids, trained):
        logp = jaxpost.token_logprobs(model.config, params, ids[None])[0]
        return -(logp * trained[1:]).sum() / trained[1:].sum()

    for row in found["rows"]:
        example = examples[row["source"]]
        padding = (0, 64 - len(example.ids))  # behind: no token sees it
        ids, trained = (jnp.asarray(np.pad(a, padding)) for a in (example.ids, example.trained.astype(np.float32)))
        value, gradients = loss_and_gradient(model.params, ids, trained)
        norm = np.sqrt(sum(float((g.astype(jnp.float32) ** 2).sum()) for g in jax.tree.leaves(gradients)))
        assert_near(row["loss"], float(value), FLOAT32_CPU["same_maths"])
        assert_near(row["grad_norm"], norm, FLOAT32_CPU["gradients"])
        assert (row["tokens"], row["trained_tokens"]) == (len(example.ids), int(example.trained[1:].sum()))
    total = sum(row["loss"] * row["trained_tokens"] for row in found["rows"])
    assert_near(total / run.column("trained_tokens")[0], run.column("loss")[0], FLOAT32_CPU["packed"])


@pytest.mark.parametrize(
    ("flags", "steps"),
    [((), (1, 4)), (("--lora.dropout", "0.3", "--neftune-alpha", "5", "--micro-batch-size", "1"), (3,))],
)
def test_a_step_is_run_again_bit_for_bit_and_nothing_is_written(flags, steps, sft, tmp_path):
    """From the start, as there is no checkpoint; dropout and noise follow from the step's key.

    Mutation: jaxpost/recipes/sft_replay.py: `for number in range(first, step):` -> `for number in range(step - 1, step):`
    """  # noqa: E501
    run = sft(*flags)
    before = digest(run.out.parent)
    for step in steps:
        found, stdout = answer(run, step, tmp_path / "rows.json")
        want = {name: run.column(name)[step - 1] for name in ("loss", "grad_norm")}
        assert found["figures"] == found["recorded"] == want and found["checkpoint"] is None
        assert stdout.startswith(f"step {step}, from the start: ")
    assert digest(run.out.parent) == before


def test_a_step_is_run_again_from_the_nearest_checkpoint(rows, sft, tmp_path):
    """Those after the step are of no use, damaged ones are passed over; evaluations are left out.

    Mutation: jaxpost/recipes/sft_replay.py: `at_most=step - 1)` -> `at_most=0)`
    Mutation: jaxpost/recipes/sft_replay.py: `setup = prepare(dataclasses.replace(config, **NO_EVALUATION))` -> `setup = prepare(config)`
    """  # noqa: E501
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(rows.read_text())
    flags = ("--eval-data", str(held_out), "--eval-steps", "2", "--keep", "best", "--lora.dropout", "0.2")
    run = sft(*flags, "--save-steps", "1", "--save-total-limit", "9", "--neftune-alpha", "5")
    held_out.unlink()
    assert run.status == 0, run.stderr
    for step, checkpoint in ((1, None), (2, 1), (4, 3)):
        found, _ = answer(run, step, tmp_path / "rows.json")
        assert (found["checkpoint"], found["equal"]) == (checkpoint, True)
    copy = shutil.copytree(run.out, tmp_path / "copy")
    for file in (copy / "checkpoints" / "3").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    status, stdout, stderr = command("--run", copy, "--step", "4")
    assert status == 0 and "from checkpoint 2" in stdout and "bit for bit" in stdout and "is not used" in stderr


def test_rows_that_are_others_by_now_are_refused(rows, sft, tmp_path):
    """Whether the step starts from a checkpoint or, the only one being that of the end, from the start.

    Mutation: jaxpost/recipes/sft_replay.py: `        check(fingerprints(setup), saved, newest)` -> `        pass`
    Mutation: jaxpost/recipes/sft_replay.py: `    if newest is not None:  #` -> `    if newest is not None and step > 2:  #`
    """  # noqa: E501
    data = tmp_path / "rows.jsonl"
    data.write_text(rows.read_text())
    run = sft("--data", str(data), "--save-steps", "2")
    data.write_text(rows.read_text().replace("word", "work"))
    status, stdout, stderr = command("--run", run.out, "--step", "3")
    assert status == 2 and stdout == "" and "`--data` must hold what the run was started on" in stderr
    data.write_text(rows.read_text())
    run = sft("--data", str(data))
    assert [path.name for path in (run.out / "checkpoints").iterdir()] == ["4"]
    assert command("--run", run.out, "--step", "2")[0] == 0
    data.write_text("".join(reversed(rows.read_text().splitlines(keepends=True))))
    status, stdout, stderr = command("--run", run.out, "--step", "2")
    assert status == 2 and stdout == "" and "`--data` must hold what the run was started on" in stderr


def test_top_cuts_the_table_and_not_the_file(sft, tmp_path):
    """Mutation: jaxpost/recipes/rows.py: `for row in found[:top]:` -> `for row in found:`"""
    found, stdout = answer(sft(), 1, tmp_path / "rows.json", "--top", "1")
    assert len(found["rows"]) > 1 and len(stdout.splitlines()) == 4
    assert stdout.splitlines()[-1] == f"{len(found['rows']) - 1} more rows: --top none prints them"
    _, all_of_it = answer(sft(), 1, tmp_path / "rows.json", "--top", "none")
    assert len(all_of_it.splitlines()) == 2 + len(found["rows"])


def test_a_step_that_was_recorded_otherwise_is_said(sft, tmp_path):
    """Mutation: jaxpost/recipes/rows.py: `    elif done.equal:` -> `    elif True:`"""
    run = sft("--seed", "11")
    path = run.out / "metrics.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps({**json.loads(first), "loss": 1.25}) + "\n", *others[:1]]))
    found, stdout = answer(run, 1, tmp_path / "rows.json")
    assert not found["equal"] and "the run recorded loss 1.25, grad_norm" in stdout
    found, stdout = answer(run, 4, tmp_path / "rows.json")
    assert found["recorded"] is None and "the run has no record of it" in stdout


def test_rows_on_a_mesh(sft, tmp_path):
    """Mutation: jaxpost/recipes/row_figures.py: `mesh.shape["data"] * mesh.shape["fsdp"]` -> `1`"""
    one, many = (answer(sft(*flags), 2, tmp_path / "r.json")[0] for flags in [(), ("--mesh", "data=2,tensor=4")])
    assert many["equal"] and one["equal"]
    for a, b in zip(one["rows"], many["rows"], strict=True):
        assert (a["source"], a["where"], a["excerpt"]) == (b["source"], b["where"], b["excerpt"])
        np.testing.assert_allclose((b["loss"], b["grad_norm"]), (a["loss"], a["grad_norm"]), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        ({"--step": "5"}, "`--step` must be at most 4"),
        ({"--step": "0"}, "`--step` must be"),
        ({"--run": "{tmp}"}, "`--run` must be the output folder of a run"),
        ({"--json": "{tmp}/missing/a.json"}, "`--json` must be a file in a folder that exists"),
        ({"--sort": "tokens"}, "`--sort` must be"),
    ],
)
def test_wrong_input_is_refused_in_a_line(change, mentions, sft, tmp_path):
    """Mutation: jaxpost/recipes/sft_replay.py: `    if step > setup.steps:` -> `    if False:`"""
    options = {"--run": str(sft().out), "--step": "1", **change}
    argv = [part.format(tmp=tmp_path) for pair in options.items() for part in pair]
    status, stdout, stderr = command(*argv)
    assert status == 2 and stdout == "" and stderr.count("\n") == 1 and mentions in stderr
    assert list(tmp_path.iterdir()) == []


def test_an_excerpt_moves_no_cursor(tmp_path, models, sft):
    """Mutation: jaxpost/recipes/row_figures.py: `character if character.isprintable() else` -> `character if True else`"""  # noqa: E501
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "q", "completion": "a\u001b[2J\u0007 " + "b " * 60}) + "\n")
    run = sft("--data", str(data), "--max-length", "200", "--steps", "1")
    found, stdout = answer(run, 1, tmp_path / "rows.json")
    assert found["rows"][0]["excerpt"].startswith("a\ufffd[2J\ufffd b b") and len(found["rows"][0]["excerpt"]) == 60
    assert "\u001b" not in stdout
