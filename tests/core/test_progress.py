"""Progress: a bar on a terminal, few lines in a log."""

import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from jaxpost.core import progress as module
from jaxpost.core.progress import live, progress

THREE = """
import sys
from jaxpost.core.progress import progress
with progress(3, label="sft") as report:
    for step in (1, 2, 3):
        report(step, 1 / step, 1234.0)
        print("data", flush=True)
        print("an evaluation", file=sys.stderr, flush=True)
"""


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


def screen(clock, width, steps, start=0, seconds_per_step=1.0, said=None):
    """What is drawn on a terminal of that width, line by line, without control sequences."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    with live(console, "sft ", start + steps, start) as show:
        for step in range(start + 1, start + steps + 1):
            clock[0] += seconds_per_step
            show(step, f"loss {1 / step:.4f}  1,234 tokens/s  0:00:09 left")
            if step == said:
                console.print("an evaluation")
    plain = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    return [line.rstrip() for line in plain.replace("\r", "\n").splitlines() if line.strip()]


def test_a_terminal_shows_a_bar_with_step_loss_speed_and_time_left(clock):
    """Mutation: jaxpost/core/progress.py: `completed=step, standing=standing` -> `standing=standing`
    Mutation: jaxpost/core/progress.py: `completed=step, standing=standing` -> `completed=step`
    """
    drawn = screen(clock, 100, steps=4)
    steps = [int(line.split("/")[0].removeprefix("sft step ")) for line in drawn]
    filled = dict(zip(steps, (line.count("━") for line in drawn), strict=True))
    assert list(filled) == [0, 1, 2, 3, 4] and filled[0] == 0 < filled[1] < filled[2] < filled[3] < filled[4]
    assert drawn[-1].endswith("━ loss 0.2500  1,234 tokens/s  0:00:09 left")


def test_fast_steps_are_drawn_ten_times_a_second(clock):
    """And the last of all at the end.

    Mutation: jaxpost/core/progress.py: `refresh=due)` -> `refresh=True)`
    """
    drawn = [line for line in screen(clock, 80, steps=1000, seconds_per_step=0.001) if "loss" in line]
    assert 9 <= len(drawn) <= 12 and drawn[-1].startswith("sft step 1000/1000 ")


def test_a_resumed_run_begins_with_a_bar_that_is_partly_filled(clock):
    """Mutation: jaxpost/core/progress.py: `completed=start, standing=""` -> `completed=0, standing=""`"""
    first, *_ = screen(clock, 120, steps=1, start=3)
    assert first.startswith("sft step 3/4 ━━━━━━━━")


@pytest.mark.parametrize("width", [60, 40, 25])
def test_a_narrow_terminal_gets_one_line(width, clock):
    """Mutation: jaxpost/core/progress.py: `Column(no_wrap=True, min_width=longest)` -> `Column(no_wrap=True)`"""
    lines = screen(clock, width, steps=3, said=2)
    assert max(map(len, lines)) <= width and lines.count("an evaluation") == 1
    assert all(line.startswith("sft step ") and "/3" in line for line in lines if line != "an evaluation")


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize(("terminal", "bar"), [("xterm", True), ("dumb", False)])
def test_a_real_terminal_gets_the_bar_and_one_without_a_cursor_plain_lines(terminal, bar):
    """What else is said on stderr stands above the bar; stdout is left alone, for whoever reads it.

    Mutation: jaxpost/core/progress.py: `if not console.is_dumb_terminal:` -> `if True:`
    Mutation: jaxpost/core/progress.py: `redirect_stdout=False` -> `redirect_stdout=True`
    Mutation: jaxpost/core/progress.py: `if sys.stderr.isatty():` -> `if False:`
    """
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": terminal, "COLUMNS": "100", "LANG": "C.UTF-8"}
    done = subprocess.run([sys.executable, "-c", THREE], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.stdout == b"data\n" * 3 and done.returncode == 0
    assert ("\x1b[?25l" in shown) == ("\x1b[?25h" in shown) == ("━" in shown) == bar
    assert "an evaluation\r\n" in shown and "loss 0.3333  1,234 tokens/s" in shown and "sft step 3/3" in shown
    assert "data" not in shown
