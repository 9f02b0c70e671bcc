"""Progress of a run on stderr: a live line on a terminal, now and then a plain line anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

SECONDS = 10.0  # between two plain lines

Report = Callable[[int, float, float], None]


@contextmanager
def progress(total_steps: int, *, start: int = 0, label: str = "") -> Iterator[Report]:
    """A function `report(step, loss, tokens_per_s)` to call after each step.

    Args:
      total_steps: the last step's number.   start: steps done before (a resumed run).   label: name of the work.

    On a terminal one line is kept up to date; otherwise the first step, the last, and one every ten seconds are
    printed, so that a log file stays short.
    """
    started = time.monotonic()

    def line(step: int, loss: float, tokens_per_s: float) -> str:
        done = max(step - start, 1)
        left = (time.monotonic() - started) / done * (total_steps - step)
        remaining = timedelta(seconds=round(left))
        name = f"{label} " if label else ""
        return f"{name}step {step}/{total_steps}  loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s  {remaining} left"

    show = _live() if sys.stderr.isatty() else _plain(total_steps, start)
    with show as write:
        yield lambda step, loss, tokens_per_s: write(step, line(step, loss, tokens_per_s))


@contextmanager
def _plain(total_steps: int, start: int) -> Iterator[Callable[[int, str], None]]:
    last = -SECONDS

    def write(step: int, line: str) -> None:
        nonlocal last
        now = time.monotonic()
        if step in (start + 1, total_steps) or now - last >= SECONDS:
            last = now
            print(line, file=sys.stderr, flush=True)

    yield write


@contextmanager
def _live() -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield lambda step, line: live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
