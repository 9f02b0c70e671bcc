"""Ctrl-C and SIGTERM: a request first, an end at once the second time."""

import functools
import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxpost.core import files, signals
from jaxpost.core.signals import SIGNALS, end_at_once, stop_requests


def wait_until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_request(number, capfd):
    """Mutation: jaxpost/core/signals.py: `            self.signal = number` -> `            pass`"""
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


@pytest.mark.parametrize("number", SIGNALS)
def test_no_signal_is_lost_while_the_listener_begins(number, monkeypatch):
    """One that comes the moment its handler is there is heard.

    Mutation: jaxpost/core/signals.py: `    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)` -> `    wakeup = [signal.signal(number, _nothing) for number in SIGNALS] and signal.set_wakeup_fd(writer.fileno())`
    """  # noqa: E501
    install, sent = signal.signal, []

    def kill_at_once(which, handler):
        before = install(which, handler)
        if which == number and not sent:
            sent.append(which)
            os.kill(os.getpid(), which)
        return before

    monkeypatch.setattr(signal, "signal", kill_at_once)
    with stop_requests() as request:
        monkeypatch.setattr(signal, "signal", install)
        assert sent and wait_until(lambda: request.signal == number)


AT_ONCE = """
import ctypes, sys
from jaxpost.core.signals import end_at_once, stop_requests
with end_at_once():
    if sys.argv[1] == "after":
        with stop_requests() as request:
            pass
    try:
        print("ready", flush=True)
        for _ in range(20):
            ctypes.CDLL(None).sleep(5)
    finally:
        print("never reached", file=sys.stderr)
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_the_first_signal_ends_the_process_at_once(number, word, when):
    """Before requests to stop are taken and after; nothing of Python runs any more.

    Mutation: jaxpost/core/signals.py: `    os._exit(128 + number)` -> `    os._exit(1)`
    Mutation: jaxpost/core/signals.py: `        signal.set_wakeup_fd(wakeup)` -> `        signal.set_wakeup_fd(-1)`
    """
    process = subprocess.Popen(
        [sys.executable, "-c", AT_ONCE, when], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, f"jaxpost: {word}\n") and time.monotonic() - started < 20


FILLING = """
import sys, time
from jaxpost.core.files import fill_folder, new_folder
from jaxpost.core.signals import end_at_once
try:
    with end_at_once(), fill_folder(sys.argv[1] + "/data") as first, new_folder(sys.argv[1] + "/new") as second:
        print("ready", flush=True)
        for n in range(10**6):
            for folder in (first, second):
                (folder / str(n)).write_text("half")
except BaseException as error:
    print(error)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_an_end_at_once_leaves_no_half_made_folder(number, tmp_path):
    """While it is filled; an error that the removal makes is not seen.

    Mutation: jaxpost/core/files.py: `        shutil.rmtree(hidden, ignore_errors=True)` -> `        pass`
    Mutation: jaxpost/core/files.py: `with unfinished(functools.partial(remove_folder, folder)):` -> `if True:`
    """
    command = [sys.executable, "-c", FILLING, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and out == "" and err.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [] and not (tmp_path / "new").exists()


def test_an_end_at_once_empties_no_folder_that_has_its_name(tmp_path, monkeypatch):
    """The main thread may publish it the moment that the end begins: then it is whole.

    Mutation: jaxpost/core/files.py: `    folder.rename(hidden)` -> `    hidden = folder`
    """
    remove = files.shutil.rmtree

    def published_meanwhile(path, **options):
        """A removal goes by the folder's handle: it empties what has another name by then."""
        if not aside.is_dir():
            return remove(path, **options)
        for item in aside.rename(tmp_path / "new").iterdir():
            item.unlink()

    monkeypatch.setattr(signals.os, "_exit", lambda status: None)
    monkeypatch.setattr(files.shutil, "rmtree", published_meanwhile)
    aside = tmp_path / ".jaxpost-aside-12345678"
    aside.mkdir()
    (aside / "whole").touch()
    with signals.unfinished(functools.partial(files.remove_folder, aside)):
        signals.end_process(signal.SIGINT)
    assert not aside.exists() and not (tmp_path / "new").exists(), "removed before it could get its name"


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
def test_on_a_terminal_the_cursor_is_there_again():
    """A live line hides it.

    Mutation: jaxpost/core/signals.py: `if os.isatty(stderr) else ""` -> `if False else ""`
    """
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", AT_ONCE, "before"], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert os.read(ours, 1000).startswith(b"\x1b[?25h")
    os.close(ours)
    process.stdout.close()


def test_a_request_is_taken_where_nobody_reads_what_is_said(monkeypatch):
    """Mutation: jaxpost/core/signals.py: `with contextlib.suppress(OSError, ValueError):` -> `with contextlib.suppress():`"""  # noqa: E501
    failed, gone = [], io.StringIO()
    monkeypatch.setattr(threading, "excepthook", failed.append)
    gone.close()
    with end_at_once(), stop_requests() as request:
        monkeypatch.setattr(sys, "stderr", gone)
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait_until(lambda: bool(request))
        time.sleep(0.1)
        monkeypatch.undo()
    assert not failed


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

    Mutation: jaxpost/core/signals.py: `if self and number == signal.SIGINT:` -> `if False:`
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
