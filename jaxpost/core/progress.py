"""Progress of a run on stderr: a live bar on a terminal, now and then a plain line anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

SECONDS = 10.0  # between two plain lines
BLINK = 0.1  # seconds between two drawings of the bar, or the terminal would be what a small model waits for

Report = Callable[[int, float, float], None]


Show = Callable[[int, str], None]  # a step, and loss, speed and time left in words


@contextmanager
def progress(total_steps: int, *, start: int = 0, label: str = "") -> Iterator[Report]:
    """A function `report(step, loss, tokens_per_s)` to call after each step.

    Args:
      total_steps: the last step's number.   start: steps done before (a resumed run).   label: name of the work.

    On a terminal a bar is kept up to date, below whatever else is said; otherwise the first step, the last, and one
    every ten seconds are printed, so that a log file stays short.
    """
    started = time.monotonic()

    def standing(step: int, loss: float, tokens_per_s: float) -> str:
        done = max(step - start, 1)
        left = timedelta(seconds=round((time.monotonic() - started) / done * (total_steps - step)))
        return f"loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s  {left} left"

    name = f"{label} " if label else ""
    with _shown(name, total_steps, start) as show:
        yield lambda step, loss, tokens_per_s: show(step, standing(step, loss, tokens_per_s))


@contextmanager
def _shown(name: str, total_steps: int, start: int) -> Iterator[Show]:
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_dumb_terminal:  # one without a cursor to move
            with live(console, name, total_steps, start) as show:
                yield show
            return
    yield _plain(name, total_steps, start)


def _plain(name: str, total_steps: int, start: int) -> Show:
    last = -SECONDS

    def show(step: int, standing: str) -> None:
        nonlocal last
        now = time.monotonic()
        if step in (start + 1, total_steps) or now - last >= SECONDS:
            last = now
            print(f"{name}step {step}/{total_steps}  {standing}", file=sys.stderr, flush=True)

    return show


@contextmanager
def live(console: "Console", name: str, total_steps: int, start: int) -> Iterator[Show]:
    """A bar on a terminal, drawn anew with each step, ten times a second at most; lines on stderr go above it."""
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    longest = len(f"{name}step {total_steps}/{total_steps}")
    whole = Column(no_wrap=True, min_width=longest)  # never cut, however narrow the terminal is
    columns = (
        TextColumn("{task.description}step {task.completed:.0f}/{task.total:.0f}", markup=False, table_column=whole),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        TextColumn("{task.fields[standing]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    last = -BLINK
    with Progress(*columns, console=console, redirect_stdout=False, expand=True, auto_refresh=False) as bars:
        bar = bars.add_task(name, total=total_steps, completed=start, standing="")

        def show(step: int, standing: str) -> None:
            nonlocal last
            now = time.monotonic()
            due = now - last >= BLINK
            last = now if due else last
            bars.update(bar, completed=step, standing=standing, refresh=due)

        yield show
