"""Ctrl-C and SIGTERM before the first step of a training: an end at once, in one line, with nothing left behind."""

import os
import signal
import subprocess
import sys
import time

import orbax.checkpoint
import pytest
from sft_runs import SMALL, run_command

from jaxpost.recipes import sft as recipe
from jaxpost.recipes.sft_evaluation import Evaluation

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


def after_a_signal(function):
    """The function, before which SIGTERM comes."""

    def call(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        return function(*arguments)

    return call


def test_a_signal_in_the_first_evaluation_ends_before_any_step(sft, rows, models, monkeypatch, tmp_path):
    """Nothing is trained yet; the run starts again from its beginning.

    Mutation: jaxpost/recipes/sft.py: `        if stop or milestones.patience_is_over:` -> `        if milestones.patience_is_over:`
    """  # noqa: E501
    flags = ("--eval-data", str(rows))
    argv = ("sft", "--model", str(models()), "--data", str(rows), *SMALL, *flags)
    with monkeypatch.context() as patched:
        patched.setattr(Evaluation, "run", after_a_signal(Evaluation.run))
        ended = run_command(tmp_path / "out", argv)
    assert ended.status == 143 and "after step 0 of 4" in ended.stderr
    assert {record["step"] for record in ended.records} == {0} and not (ended.out / "checkpoints" / "1").exists()
    again = run_command(tmp_path / "out", (*argv, "--resume"))
    assert again.status == 0 and again.digest() == sft(*flags).digest(), again.stderr


def test_a_signal_while_the_end_is_written_is_answered_so(rows, models, monkeypatch, tmp_path):
    """Mutation: jaxpost/recipes/sft.py: `stop.answer = "the run is at its end and is being written"` -> `pass`"""
    monkeypatch.setattr(recipe, "_save", after_a_signal(recipe._save))
    run = run_command(tmp_path / "out", ("sft", "--model", str(models()), "--data", str(rows), *SMALL))
    assert run.status == 0 and "at its end" in run.stderr and "after this step" not in run.stderr


def test_a_checkpoint_that_cannot_be_written_is_told_in_one_line(rows, models, monkeypatch, tmp_path):
    """Orbax raises a ValueError where its storage is full; other files an OSError.

    Mutation: jaxpost/train/checkpoint.py: `        except (OSError, ValueError) as error:` -> `        except LookupError as error:`
    Mutation: jaxpost/cli.py: `    except OSError as error:` -> `    except LookupError as error:`
    """  # noqa: E501
    argv = ("sft", "--model", str(models()), "--data", str(rows), *SMALL)

    def full(error):
        def save(*_, **__):
            raise error

        return save

    places = [
        (orbax.checkpoint.Checkpointer, "save", ValueError("OUT_OF_RANGE: Failed writing\nchunk"), "go on with"),
        (recipe, "write_file", OSError(28, "No space left on device", "run.yaml"), "run.yaml"),
    ]
    for place, (owner, name, error, said) in enumerate(places):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full(error))
            run = run_command(tmp_path / f"out{place}", argv)
        last = run.stderr.splitlines()[-1]
        assert run.status == 1 and last.startswith("jaxpost: error: ") and said in last, run.stderr
        assert "Traceback" not in run.stderr
