"""Progress: a line kept up to date on a terminal, few lines in a log."""

import io
import sys

import pytest

from jaxpost.core import progress as module
from jaxpost.core.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set by hand."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def run(clock, steps, seconds_per_step, start=0, label=""):
    with progress(start + steps, start=start, label=label) as report:
        for step in range(start + 1, start + steps + 1):
            clock[0] += seconds_per_step
            report(step, 1.0 / step, 1234.5)


def test_a_log_gets_the_first_the_last_and_one_line_in_ten_seconds(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    run(clock, steps=100, seconds_per_step=1.0, label="sft")
    lines = stream.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["1/100", *(f"{step}/100" for step in range(11, 100, 10)), "100/100"]
    assert lines[0] == "sft step 1/100  loss 1.0000  1,234 tokens/s  0:01:39 left"


def test_a_resumed_run_counts_its_own_steps_for_the_time_left(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    run(clock, steps=10, seconds_per_step=20.0, start=90)
    assert stream.getvalue().splitlines()[0] == "step 91/100  loss 0.0110  1,234 tokens/s  0:03:00 left"


def test_a_terminal_shows_the_newest_line(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    monkeypatch.setenv("COLUMNS", "90")
    run(clock, steps=3, seconds_per_step=0.1)
    assert "step 3/3" in stream.getvalue() and "step 2/3" in stream.getvalue()
