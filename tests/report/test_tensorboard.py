"""Events that are on the disk after each step, and go on after a resume."""

import time

import pytest
from event_files import events, scalars

from jaxpost.report.tensorboard import TensorBoard

pytest.importorskip("tensorboardX")


def test_scalars_are_there_after_each_step(tmp_path):
    """A killed run keeps what it wrote.

    Mutation: jaxpost/report/tensorboard.py: `        self.sync()` -> `        pass`
    Mutation: jaxpost/report/tensorboard.py: `self._write(record["step"], summary` -> `self._write(1, summary`
    """
    board = TensorBoard(tmp_path / "runs")
    board.write({"step": 1, "loss": 2.5, "grad_norm": None})
    assert scalars(tmp_path / "runs") == [(1, "train/loss", 2.5)]
    board.write({"step": 2, "eval_loss": 1.5, "loss": 2.0})
    board.close()
    assert scalars(tmp_path / "runs")[1:] == [(2, "eval/loss", 1.5), (2, "train/loss", 2.0)]
    (file,) = (tmp_path / "runs").iterdir()
    assert file.name.startswith("events.out.tfevents.") and events(file)[0].file_version == "brain.Event:2"


def test_a_resumed_run_takes_a_file_of_its_own_and_purges_what_it_repeats(tmp_path, monkeypatch):
    """Both opened within one second.

    Mutation: jaxpost/report/tensorboard.py: `f".{os.getpid()}.{kept}"` -> `""`
    Mutation: jaxpost/report/tensorboard.py: `self._write(kept + 1, session_log=log)` -> `pass`
    """
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    for kept, steps in ((-1, (1, 2, 3)), (2, (3, 4))):
        board = TensorBoard(tmp_path, kept)
        for step in steps:
            board.write({"step": step, "loss": float(step)})
        board.close()
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    (log,) = [event for file in files for event in events(file) if event.HasField("session_log")]
    assert log.step == 3 and log.session_log.status == log.session_log.START
    assert sorted(step for step, _, _ in scalars(tmp_path)) == [1, 2, 3, 3, 4]


@pytest.mark.parametrize("kept", [-1, 0])
def test_a_run_that_starts_again_purges_all_that_the_killed_one_told(tmp_path, kept):
    """From nothing, where the evaluation of step 0 is made again as well, or from a checkpoint of step 0.

    Mutation: jaxpost/report/tensorboard.py: `        if goes_on:` -> `        if kept > 0:`
    Mutation: jaxpost/report/tensorboard.py: `        if goes_on:` -> `        if True:`
    """
    for start in (-1, kept):
        board = TensorBoard(tmp_path, start)
        board.write({"step": 1, "loss": 1.0})
        board.close()
    logs = [event for file in tmp_path.iterdir() for event in events(file) if event.HasField("session_log")]
    assert [(log.step, log.session_log.status) for log in logs] == [(kept + 1, logs[0].session_log.START)]
