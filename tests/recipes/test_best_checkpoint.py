"""`--keep best` with a damaged checkpoint of the best step: told, nothing healthy is lost, and there is a way on."""

import json

import pytest
from sft_runs import interrupted, resume, run_command, write_rows

from jaxpost.recipes import sft as recipe
from jaxpost.train.checkpoint import read_meta, steps_of

EIGHT = ("--steps", "8", "--batch-size", "2", "--max-length", "64", "--dtype", "float32", "--learning-rate", "3e-2")
BEST = ("--eval-steps", "1", "--save-steps", "7", "--keep", "best")


@pytest.fixture(scope="module")
def contrary(tmp_path_factory):
    """Rows of characters that training never shows: their loss is lowest before the last steps."""
    rows = [{"prompt": f"q{i} ", "completion": "}{|~^" * (1 + i)} for i in range(3)]
    return str(write_rows(tmp_path_factory.mktemp("contrary") / "contrary.jsonl", rows))


def spoil(folder):
    """Cuts a byte off a file of the state."""
    file = next(path for path in (folder / "state").rglob("*") if path.is_file() and path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])


def best_of(out):
    root = out / "checkpoints"
    best = read_meta(root / str(steps_of(root)[-1])).counters.best_step
    assert best is not None and best < steps_of(root)[-1], "the case must be one where the last step is not the best"
    return root / str(best)


@pytest.fixture
def harmed(sft, contrary, tmp_path):
    """A run that was killed before its end, its best step's checkpoint damaged, and the run without a harm."""
    whole = sft("--eval-data", contrary, *BEST, base=EIGHT)
    assert whole.status == 0, whole.stderr
    run = interrupted(whole, tmp_path / "run", 8)
    spoil(best_of(run.out))
    return run


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_damaged_best_checkpoint_is_told_and_no_healthy_one_is_lost(harmed):
    """One line that names both and what to do; nothing is written or removed.

    Mutation: jaxpost/recipes/sft_resume.py: `        _check_best(folder, meta.counters)` -> `        pass`
    """
    before = contents(harmed.out)
    again = resume(harmed)
    assert again.status == 2 and again.stderr.count("\n") == 1 and "`--keep last`" in again.stderr
    assert str(harmed.out / "checkpoints" / "8") in again.stderr and f"{best_of(harmed.out)}: " in again.stderr
    assert contents(harmed.out) == before


def test_it_goes_on_with_keep_last(harmed, sft, contrary, tmp_path):
    """And ends as a run that kept the last from the start. From last to best is no way: the best may not be there.

    Mutation: jaxpost/recipes/sft_resume.py: `if ONE_WAY.get(name) == (old, now[name]) and not finished:` -> `if False:`
    """
    last = sft("--eval-data", contrary, *BEST[:-2], base=EIGHT)
    again = resume(harmed, "--keep", "last")
    assert again.status == 0 and "--keep last instead of best" in again.stderr
    assert again.digest() == last.digest() and "keep: last\n" in (again.out / "run.yaml").read_text()
    back = resume(interrupted(last, tmp_path / "last", 7), "--keep", "best")
    assert back.status == 2 and "`--keep` must stay last" in back.stderr


def test_of_a_finished_run_the_weights_stay_the_best(sft, contrary):
    """Mutation: jaxpost/recipes/sft_resume.py: `(old, now[name]) and not finished:` -> `(old, now[name]):`"""
    again = resume(sft("--eval-data", contrary, *BEST, base=EIGHT), "--keep", "last")
    assert again.status == 2 and "`--keep` must stay best" in again.stderr


def test_a_damage_that_comes_while_it_runs_is_told_at_the_end(sft, models, rows, contrary, tmp_path, monkeypatch):
    """No weights but the best step's are written; the last step's checkpoint is there, and the message's way works.

    Mutation: jaxpost/recipes/sft.py: `    if written != step and (wrong := damage(best)):` -> `    if wrong := "":`
    """
    out, original = tmp_path / "out", recipe.save_checkpoint

    def harming(root, state, meta):
        original(root, state, meta)
        if meta.step == 8:
            spoil(root / str(meta.counters.best_step))

    monkeypatch.setattr(recipe, "save_checkpoint", harming)
    argv = ("sft", "--model", str(models()), "--data", str(rows), *EIGHT, "--eval-data", contrary, *BEST)
    run = run_command(out, argv)
    error = run.stderr.splitlines()[-1]
    assert run.status == 1 and f"{best_of(out)}, is damaged: " in error and "--keep last --resume" in error
    assert not (out / "train_results.json").exists() and not list(out.glob("*.safetensors"))
    monkeypatch.undo()
    again = resume(run, "--keep", "last")
    assert again.status == 0 and json.loads((out / "train_results.json").read_text())["written_step"] == 8
    assert again.digest() == sft("--eval-data", contrary, *BEST[:-2], base=EIGHT).digest()
