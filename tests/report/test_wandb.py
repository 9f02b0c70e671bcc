"""Weights & Biases by a module of the same surface: what is passed on, and the run that a resumed run goes on with."""

import sys
import types

import pytest

from jaxpost.report.wandb import WandB


class FakeRun:
    def __init__(self, options):
        self.id = options.get("id", "abc123")
        self.options, self.metrics, self.logged, self.finished = options, [], [], False

    def define_metric(self, name, **options):
        self.metrics.append((name, options))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """The runs that the stand-in for `wandb` was asked for."""
    made = []
    module = types.ModuleType("wandb")
    module.init = lambda **options: made.append(FakeRun(options)) or made[-1]  # pyright: ignore
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_records_go_to_a_run_named_after_the_folder(runs, tmp_path):
    """Mutation: jaxpost/report/wandb.py: `self._run.finish()` -> `pass`"""
    reporter = WandB(tmp_path, {"seed": 3})
    reporter.write({"step": 5, "loss": 0.5, "eval_loss": None})
    reporter.close()
    (run,) = runs
    assert run.options == {
        "project": "jaxpost",
        "name": tmp_path.name,
        "dir": str(tmp_path),
        "config": {"seed": 3},
        "resume": "allow",
    }
    assert run.logged == [{"train/loss": 0.5, "train/global_step": 5}] and run.finished
    assert run.metrics[-1] == ("*", {"step_metric": "train/global_step", "step_sync": True})


def test_a_resumed_run_goes_on_with_the_same_id(runs, tmp_path):
    """Mutation: jaxpost/report/wandb.py: `            **known,` -> ``"""
    WandB(tmp_path, {}).close()
    WandB(tmp_path, {}).close()
    assert "id" not in runs[0].options and runs[1].options["id"] == runs[0].id == "abc123"


def test_the_environment_names_project_and_run(runs, tmp_path, monkeypatch):
    """Mutation: jaxpost/report/wandb.py: `os.environ.get("WANDB_PROJECT") or "jaxpost"` -> `"jaxpost"`"""
    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.setenv("WANDB_NAME", "n")
    WandB(tmp_path, {}).close()
    assert (runs[0].options["project"], runs[0].options["name"]) == ("p", "n")
