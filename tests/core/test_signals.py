"""Ctrl-C and SIGTERM: a request first, an end at once the second time."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxpost.core.signals import SIGNALS, stop_requests


def wait_until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_request(number, capfd):
    """Mutation: jaxpost/core/signals.py: `            request.signal = number` -> `            pass`"""
    before = [signal.getsignal(n) for n in SIGNALS]
    with stop_requests() as request:
        assert not request and request.signal is None
        os.kill(os.getpid(), number)
        assert wait_until(lambda: bool(request)) and request.signal == number
    assert [signal.getsignal(n) for n in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert number.name in capfd.readouterr().err


def test_sigterm_after_ctrl_c_is_the_same_request():
    with stop_requests() as request:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            wait_until(lambda: bool(request))
        time.sleep(0.05)
        assert request.signal == signal.SIGINT


BUSY = """
import ctypes, sys, time
from jaxpost.core.signals import stop_requests
with stop_requests() as request:
    print("ready", flush=True)
    if sys.argv[1] == "native":
        ctypes.CDLL(None).sleep(5); ctypes.CDLL(None).sleep(5); ctypes.CDLL(None).sleep(5)
    time.sleep(30)
"""


@pytest.mark.parametrize("where", ["python", "native"])
def test_R10_a_second_ctrl_c_ends_the_process_at_once(where):
    """Also inside long calls outside of Python, where Python's own handlers wait for their end.

    Mutation: jaxpost/core/signals.py: `if request and number == signal.SIGINT:` -> `if False:`
    """
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and time.monotonic() - started < 10
    assert "stops after this step" in said and "interrupted" in said


def test_outside_of_the_main_thread_nothing_is_caught():
    found = []

    def work():
        with stop_requests() as request:
            found.append((bool(request), signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]
