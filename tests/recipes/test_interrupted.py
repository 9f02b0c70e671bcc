"""Ctrl-C and SIGTERM before the first step of a training: an end at once, in one line, with nothing left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

# The command, which says on stdout where it stands.
COMMAND = """
import sys
import jax
from jaxpost import cli
from jaxpost.recipes import sft

def told(word, function):
    def call(*arguments):
        print(word, flush=True)
        return function(*arguments)
    return call

def lowered(event, *_, **__):
    if event.endswith("jaxpr_to_mlir_module_duration"):
        print("lowered", flush=True)

sft.prepare = told("loads", sft.prepare)
sft.compile_steps = told("traces", sft.compile_steps)
jax.monitoring.register_event_duration_secs_listener(lowered)
sys.exit(cli.main())
"""


@pytest.fixture
def started(models, rows, tmp_path):
    """`jaxpost sft` in a process of its own that compiles everything anew."""
    argv = ["sft", "--model", models(), "--data", rows, "--full", "--steps", "3", "--output", tmp_path / "out"]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("words", "seconds", "number", "said"),
    [
        (["loads"], 0.1, signal.SIGTERM, "terminated"),
        (["traces"], 0.0, signal.SIGINT, "interrupted"),
        (["traces", "lowered"], 0.0, signal.SIGTERM, "terminated"),
        (["traces", "lowered"], 0.02, signal.SIGINT, "interrupted"),
    ],
)
def test_R10_a_signal_before_the_first_step_ends_the_run_at_once(words, seconds, number, said, started, tmp_path):
    """While the model is loaded, traced and compiled, where Python's own handlers crash or are not heard.

    Mutation: jaxpost/cli.py: `with end_at_once():` -> `if True:`
    """
    for word in words:
        while (line := started.stdout.readline()) != f"{word}\n":
            assert line, f"ended before {word}: {started.stderr.read()}"
    time.sleep(seconds)
    started.send_signal(number)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 128 + number, err
    assert err.splitlines()[-1] == f"jaxpost: {said}" and "stops after" not in err
    assert "Traceback" not in err and "Exception" not in err and not (tmp_path / "out").exists()
