"""Ctrl-C and SIGTERM: an end at once, or a request to stop after the work at hand and an end at a second Ctrl-C.

A thread listens, since Python's own handlers wait until a long computation outside of Python is done, and the exception
that they raise inside a compilation can crash the process or be lost.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
UNFINISHED: set[Callable[[], None]] = set()  # see `unfinished`
SHOW_CURSOR = "\x1b[?25h"  # a live line hides it


class StopRequest:
    """The first signal that came, None while there was none."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.answer = "stops after this step, with a checkpoint"

    def __bool__(self) -> bool:
        return self.signal is not None

    def receive(self, number: signal.Signals) -> None:
        """The first is noted and said; Ctrl-C after it ends the process."""
        if self and number == signal.SIGINT:
            end_process(number)
        if not self:
            self.signal = number
            with contextlib.suppress(OSError, ValueError):  # whoever read stderr may be gone
                print(
                    f"\n{number.name}: {self.answer}; Ctrl-C again stops at once.",
                    file=sys.stderr,
                    flush=True,
                )


@contextmanager
def end_at_once() -> Iterator[None]:
    """While the block runs, Ctrl-C or SIGTERM ends the process with one line and the status 128 + its number.

    `stop_requests` inside takes over without a gap, and gives back at its end.
    """
    with _listening(end_process):
        yield


@contextmanager
def unfinished(remove: Callable[[], None]) -> Iterator[None]:
    """A signal that ends the process while the block runs calls `remove` before; an OSError of it is passed over."""
    UNFINISHED.add(remove)
    try:
        yield
    finally:
        UNFINISHED.discard(remove)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catches Ctrl-C and SIGTERM while the block runs; the request that it gives is true after the first.

    Outside of the main thread, where Python allows no handlers, nothing is caught.
    """
    request = StopRequest()
    with _listening(request.receive):
        yield request


def end_process(number: signal.Signals) -> None:
    """Says so in one line, removes what is half made and ends the process, without Python's end: that waits for JAX."""
    with contextlib.suppress(OSError):
        stderr = sys.__stderr__.fileno() if sys.__stderr__ else 2
        shown = f"{SHOW_CURSOR}\n" if os.isatty(stderr) else ""
        os.write(stderr, f"{shown}jaxpost: {WORDS[number]}\n".encode())
    for remove in [*UNFINISHED]:
        with contextlib.suppress(OSError):
            remove()
    os._exit(128 + number)


@contextmanager
def _listening(receive: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Passes each signal to `receive`, in a thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    listener = threading.Thread(target=_listen, args=(reader, receive), daemon=True)
    listener.start()
    # Before the handlers, which do nothing: a signal in between has its old effect instead of none.
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _nothing) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        writer.close()
        listener.join()
        reader.close()


def _nothing(*_: object) -> None:
    """The handler of a signal that the listener hears of."""


def _listen(reader: socket.socket, receive: Callable[[signal.Signals], None]) -> None:
    """Each signal arrives as a byte; the socket's end is the block's."""
    while received := reader.recv(1):
        if received[0] in SIGNALS:
            receive(signal.Signals(received[0]))
