"""scripts/test makes whole environments, and makes them once."""

import os
import sys

import pytest
from loading import load_script


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script, with a cache of its own and commands that are written down instead of run."""
    module = load_script("test")
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(module, "find_python", lambda wanted, exact: (sys.executable, "3.11.9"))
    module.commands = []

    def call(command):
        module.commands.append([str(part) for part in command])
        if "venv" in module.commands[-1]:
            os.makedirs(command[-1])

    monkeypatch.setattr(module, "call", call)
    monkeypatch.setattr(module, "pip_install", lambda venv, *what: call(["pip", *what]))
    return module


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "requirements.lock"
    path.write_text("# python 3.11\njax==0.10.2\ntorch==2.13.0\n")
    return path


def test_torch_is_installed_first(script, lock):
    venv = script.environment(lock)
    assert [command[:2] for command in script.commands[1:]] == [["pip", "torch==2.13.0"], ["pip", "-r"]]
    assert (venv / "finished").exists()


def test_a_finished_environment_is_used_and_an_interrupted_one_is_made_again(script, lock, monkeypatch):
    def interrupted(venv, *what):
        (venv / "half").write_text("")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "pip_install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            script.environment(lock)
    (venv,) = [path for path in script.CACHE.glob("env-*") if path.is_dir()]
    assert (venv / "half").exists() and not (venv / "finished").exists()
    assert script.environment(lock) == venv
    assert (venv / "finished").exists() and not (venv / "half").exists()
    done = len(script.commands)
    assert script.environment(lock) == venv and len(script.commands) == done
    lock.write_text(lock.read_text() + "rich==1.0\n")
    assert script.environment(lock) != venv


def test_a_python_that_is_not_there_is_one_clear_line():
    with pytest.raises(SystemExit, match="Python 3.99 was not found"):
        load_script("test").find_python("3.99", exact=True)


def test_a_failing_phase_fails_the_run(capfd):
    phases = load_script("test").Phases()
    phases.run("good", [sys.executable, "-c", "pass"])
    assert phases.close() == 0
    phases.run("bad", [sys.executable, "-c", "raise SystemExit(3)"])
    phases.run("good", [sys.executable, "-c", "pass"])
    assert phases.close() == 1
    assert "FAILED" in capfd.readouterr().out


PRINTED = """import sys
print("worker 'gw1' crashed while running 'tests/test_a.py::test_b[c d]'")
print("FAILED ../tests/test_a.py::test_b[c d]")
print(sys.argv[2:])
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("other", "second", "fails"), [("", 0, 0), ("", 1, 1), ("FAILED tests/test_x.py::test_y", 0, 1)]
)
def test_what_crashed_its_worker_is_run_again_once_and_nothing_else(script, capfd, other, second, fails):
    phases, seen = script.Phases(), []

    def again(tests):
        seen.append(tests)
        return [
            sys.executable,
            "-c",
            f"import os, sys; print(os.environ['JAX_ENABLE_COMPILATION_CACHE']); sys.exit({second})",
        ]

    phases.run("unit", [sys.executable, "-c", f"print({other!r})\n{PRINTED}", "1"], again=again)
    assert phases.close() == fails
    assert seen == ([] if other else [["tests/test_a.py::test_b[c d]"]])
    assert ("false" in capfd.readouterr().out) == (not other)
