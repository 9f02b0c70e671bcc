"""Three kills of `scripts/soak`, and Ctrl-C and SIGTERM, in processes of their own."""

import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "soak"


def script():
    loader = importlib.machinery.SourceFileLoader("soak_script", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("soak_script", loader))
    loader.exec_module(module)
    return module


@pytest.mark.slow
def test_R10_three_kills_change_nothing():
    """Mutation: jaxpost/train/checkpoint.py: `jax.random.wrap_key_data(plain["key"]` -> `jax.random.wrap_key_data(plain["key"] + 1`"""  # noqa: E501
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "3", "--seed", "3", "--steps", "12"], capture_output=True, text=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert result["kills"] == 3 and result["identical"] == result["finished"] >= 1


@pytest.mark.parametrize(("status", "name"), [(1, "SIGKILL"), (-11, "SIGTERM"), (143, "SIGKILL"), (-9, "SIGINT")])
def test_a_run_that_breaks_down_is_no_kill(status, name, monkeypatch, tmp_path):
    """Nor one that ends as another signal would end it: what it said is shown."""
    soak = script()
    moment = soak.Moment(signal.Signals[name], 0.0, from_start=True)
    monkeypatch.setattr(soak, "make_command", lambda *_: [])
    monkeypatch.setattr(soak, "reference", lambda *_: 1.0)
    monkeypatch.setattr(soak, "outcome", lambda *_: {})
    monkeypatch.setattr(soak.Moment, "draw", lambda *_: moment)
    monkeypatch.setattr(soak, "run", lambda *_: (status, "the trace"))
    with pytest.raises(SystemExit, match=f"status {status}:\nthe trace"):
        soak.soak(tmp_path, random.Random(0), kills=1, steps=1)


@pytest.mark.parametrize(("status", "name"), [(-9, "SIGKILL"), (143, "SIGTERM"), (-15, "SIGTERM"), (130, "SIGINT")])
def test_a_kill_is_counted(status, name, monkeypatch, tmp_path):
    """The run ends as its signal ends it, then goes on to its end; one that ended before its moment is none."""
    soak = script()
    moment, left = soak.Moment(signal.Signals[name], 0.0, from_start=True), [0, status, 0]
    monkeypatch.setattr(soak, "make_command", lambda *_: [])
    monkeypatch.setattr(soak, "reference", lambda *_: 1.0)
    monkeypatch.setattr(soak, "outcome", lambda *_: {})
    monkeypatch.setattr(soak.Moment, "draw", lambda *_: moment)
    monkeypatch.setattr(soak, "run", lambda _, out, __: (out.mkdir(exist_ok=True), (left.pop(0), ""))[1])
    count = soak.soak(tmp_path, random.Random(0), kills=1, steps=1)
    assert (count["kills"], count["finished"], left) == (1, 2, [])


def test_a_moment_counts_from_the_first_step_that_this_start_saved(tmp_path):
    """Not from an evaluation before the first step, nor from what an earlier start left."""
    soak, polls = script(), []
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    os.utime(tmp_path / "checkpoints" / "3", (0, 0))

    class Process:
        def poll(self):
            polls.append(1)
            (tmp_path / "metrics.jsonl").write_text(f'{{"step": 3, "eval_loss": {len(polls)}}}')
            if len(polls) == 5:
                (tmp_path / "checkpoints" / "4").mkdir()

    soak.wait_for(Process(), tmp_path)
    assert len(polls) == 5


@pytest.mark.slow
def test_R10_a_signal_saves_and_the_run_goes_on(tmp_path):
    """SIGTERM, then Ctrl-C: status 143 and 130, one line that says how to go on, an end as of the undisturbed run.

    Mutation: jaxpost/recipes/sft.py: `status=128 + stop.signal,` -> `status=1,`
    Mutation: jaxpost/recipes/sft.py: `stop=lambda: bool(stop),` -> `stop=lambda: False,`
    """
    soak = script()
    command, out, before = soak.make_command(tmp_path, 60), tmp_path / "run", 0
    soak.reference(command, tmp_path / "whole")
    for number in (signal.SIGTERM, signal.SIGINT):
        status, said = soak.run(command, out, soak.Moment(number, 0.1, from_start=False))
        assert status == 128 + number, said
        last = said.splitlines()[-1]
        assert number.name in last and f"--config {out / 'run.yaml'} --resume" in last
        step = max(int(path.name) for path in out.glob("checkpoints/*"))
        assert f"after step {step} of 60" in last and before < step < 60
        before = step
    status, said = soak.run(command, out, None)
    assert status == 0 and f"goes on from {out / 'checkpoints' / str(before)}" in said
    assert soak.outcome(out) == soak.outcome(tmp_path / "whole")


def test_the_quickstart_runs_once_a_task_seed_and_its_shares_are_told(monkeypatch, tmp_path, capsys):
    """With the seeds and the number of questions that are asked for; one that fails ends it."""
    soak = script()
    (tmp_path / "scripts").mkdir()
    fake = tmp_path / "scripts" / "quickstart"
    table = "base    both             0.3 %  [  0.0,   1.0]   60 questions\ntuned   new schemas     7$2.3 %  [ 65.5,"
    fake.write_text(
        f'#!/bin/sh\necho "$@"\necho "{table}"\necho "  order   0 -> 5 of 9"\n[ "$2" = 4 ] || [ "$2" = 7 ]\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    assert soak.quickstarts([4, 7], 2, 60) == 0
    *lines, told = capsys.readouterr().out.splitlines()
    assert [line.partition(" --output")[0] for line in lines[::4]] == [
        f"--task-seed {task} --seed 2 --heldout 60" for task in (4, 7)
    ]
    wanted = {str(task): {"base, both": 0.3, "tuned, new schemas": 70.3 + task} for task in (4, 7)}
    assert json.loads(told) == {"seed": 2, "heldout": 60, "tasks": wanted}
    assert soak.quickstarts([4, 5], 2, 60) == 1
