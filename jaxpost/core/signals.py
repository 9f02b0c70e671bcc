"""Ctrl-C and SIGTERM as a request to stop after the work at hand; a second Ctrl-C ends the process at once."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The first signal that came, None while there was none."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catches Ctrl-C and SIGTERM while the block runs; the request that it gives is true after the first.

    A thread listens, since Python's own handlers wait until a long computation outside of Python is done. Outside of
    the main thread, where Python allows no handlers, nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    listener = threading.Thread(target=_listen, args=(reader, request), daemon=True)
    handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()
        listener.join()
        reader.close()


def _listen(reader: socket.socket, request: StopRequest) -> None:
    """Each signal arrives as a byte; the socket's end is the block's."""
    while received := reader.recv(1):
        if received[0] not in SIGNALS:
            continue
        number = signal.Signals(received[0])
        if request and number == signal.SIGINT:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\njaxpost: interrupted\n")
            os._exit(128 + number)
        if not request:
            request.signal = number
            print(
                f"\n{number.name}: stops after this step, with a checkpoint; Ctrl-C again stops at once.",
                file=sys.stderr,
                flush=True,
            )
