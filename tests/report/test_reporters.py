"""Reporters: tags of the field, one failure said once, and the run goes on."""

import math

import pytest

from jaxpost.core.errors import RunError
from jaxpost.report import Persistent, Reporters, attempt
from jaxpost.report.reporters import tagged


class Kept:
    """Keeps what it gets; fails at the step `fails_at` or when it is closed."""

    def __init__(self, fails_at=None, fails_to_close=False):
        self.records, self.closed = [], 0
        self.fails_at, self.fails_to_close = fails_at, fails_to_close

    def write(self, record):
        if record["step"] == self.fails_at:
            raise OSError(28, "No space left\non device")
        self.records.append(record["step"])

    def sync(self):
        self.records.append("sync")

    def close(self):
        self.closed += 1
        if self.fails_to_close:
            raise RuntimeError("the server is away")


def test_a_reporter_that_fails_is_said_once_and_left_out():
    """Mutation: jaxpost/report/reporters.py: `del self._open[name]` -> `pass`"""
    said, needed, good, bad, away = [], Kept(), Kept(), Kept(fails_at=2), Kept(fails_to_close=True)
    with Reporters(needed, {"bad": lambda: bad, "good": lambda: good, "away": lambda: away}, said.append) as reporters:
        for step in (1, 2, 2, 3):
            reporters.write({"step": step, "loss": 1.0})
        reporters.sync()
    assert needed.records == [*good.records, "sync"] and needed.closed == 1
    assert good.records == [1, 2, 2, 3, "sync"] and bad.records == [1] and good.closed == away.closed == 1
    assert said == [
        "no more records for bad: OSError: [Errno 28] No space left on device",
        "no more records for away: RuntimeError: the server is away",
    ]


def test_a_reporter_that_cannot_be_opened_is_said():
    def missing():
        raise ImportError("No module named 'tensorboardX'")

    said, good = [], Kept()
    with Reporters(Kept(), {"TensorBoard": missing, "good": lambda: good}, said.append) as reporters:
        reporters.write({"step": 1})
    assert good.records == [1]
    assert said == ["no more records for TensorBoard: ImportError: No module named 'tensorboardX'"]


def test_what_could_not_be_written_is_written_later_in_order():
    """A disk that is full for two steps: said once when it begins and once when it is over.

    Mutation: jaxpost/report/reporters.py: `            del self._waiting[0]` -> `            self._waiting.clear()`
    Mutation: jaxpost/report/reporters.py: `            if not failing:` -> `            if True:`
    """
    said, disk = [], Kept(fails_at=2)
    needed = Persistent("metrics.jsonl", disk, said.append)
    for step in (1, 2, 3):
        needed.write({"step": step})
    assert disk.records == [1] and len(said) == 1
    assert said[0].startswith("metrics.jsonl: OSError: [Errno 28] No space left on device; ")
    disk.fails_at = None
    needed.write({"step": 4})
    needed.sync()
    assert disk.records == [1, 2, 3, 4, "sync"] and len(said) == 2


@pytest.mark.parametrize("ends", ["checkpoint", "block"])
def test_what_cannot_be_written_ends_the_run_in_one_line(ends):
    """At a checkpoint, or at the end of a run without; the others are closed all the same.

    Mutation: jaxpost/report/reporters.py: `            raise RunError(` -> `            raise OSError(`
    Mutation: jaxpost/report/reporters.py: `            if error is None:` -> `            if False:`
    """
    said, other, disk = [], Kept(), Kept(fails_at=2)
    with pytest.raises(RunError, match=r"^metrics.jsonl must .*No space left on device.*--resume") as caught:
        with Reporters(Persistent("metrics.jsonl", disk, said.append), {"o": lambda: other}, said.append) as reporters:
            for step in (1, 2):
                reporters.write({"step": step})
            if ends == "checkpoint":
                reporters.sync()
    assert "\n" not in str(caught.value) and other.closed == disk.closed == 1


def test_another_error_is_not_hidden_by_a_disk_that_is_full():
    with pytest.raises(KeyError):
        with Reporters(Persistent("metrics.jsonl", Kept(fails_at=1), print), {}, print) as reporters:
            reporters.write({"step": 1})
            raise KeyError


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_failure_of_a_reporter(interrupt):
    """Mutation: jaxpost/report/reporters.py: `except Exception as error:` -> `except BaseException as error:`"""

    def act():
        raise interrupt

    with pytest.raises(interrupt):
        attempt("x", act, print)


def test_tags_are_the_fields():
    """Mutation: jaxpost/report/reporters.py: `isinstance(v, int | float)` -> `True`"""
    record = {"step": 7, "loss": 0.5, "grad_norm": None, "learning_rate": 1e-4, "epoch": 1, "eval_loss": 2.0}
    assert tagged(record) == {
        "train/loss": 0.5,
        "train/learning_rate": 1e-4,
        "train/epoch": 1,
        "eval/loss": 2.0,
    }
    assert math.isfinite(sum(tagged(record).values()))
