"""What `jaxpost sft` tells beside its adapter: events, Weights & Biases, loss curve; none of them can end a run."""

import sys
import types

import pytest
from event_files import scalars
from sft_runs import SMALL, run_command

from jaxpost.cli import main
from jaxpost.recipes import reporting
from jaxpost.train.metrics import MetricsFile


@pytest.fixture
def train(models, rows, tmp_path, capsys):
    """`train(*flags)`: exit status, stderr and output folder of a run of two steps."""

    def run(*flags):
        out = tmp_path / "out"
        argv = ["--model", str(models()), "--data", str(rows), "--steps", "2", "--batch-size", "2"]
        status = main(["sft", *argv, "--max-length", "64", "--output", str(out), *flags])
        return status, capsys.readouterr().err, out

    return run


def test_events_hold_every_step_under_the_fields_tags(sft):
    """Mutation: jaxpost/recipes/sft.py: `            reporters.write(record)` -> `            pass`"""
    pytest.importorskip("tensorboardX")
    run = sft()
    assert [number for _, tag, number in scalars(run.out / "runs") if tag == "train/loss"] == run.column("loss")
    tags = {tag for _, tag, _ in scalars(run.out / "runs")}
    assert {"train/grad_norm", "train/learning_rate", "train/num_tokens", "train/epoch"} <= tags


def test_S7_evaluation_has_no_noise(rows, sft):
    """At a learning rate of 0 noise changes the training's loss and not the evaluation's.

    Mutation: jaxpost/objectives/sft.py: `if neftune_alpha and key is not None:` -> `if False:`
    """
    flags = ("--eval-data", str(rows), "--eval-steps", "2", "--learning-rate", "0")
    quiet, noisy = sft(*flags), sft(*flags, "--neftune-alpha", "15")
    losses, evals = (
        [[record[name] for record in run.records if name in record] for run in (quiet, noisy)]
        for name in ("loss", "eval_loss")
    )
    assert losses[0] != losses[1] and evals[0] == evals[1] != []
    events = [number for _, tag, number in scalars(noisy.out / "runs") if tag == "eval/loss"]
    assert events == pytest.approx(evals[1])


def test_the_loss_curve_is_a_picture(sft):
    pytest.importorskip("matplotlib")
    assert (sft().out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in sft().out.iterdir() if path.name.startswith(".")]


def test_without_the_packages_a_run_says_so_in_a_line_and_goes_on(train, monkeypatch):
    """Mutation: jaxpost/recipes/reporting.py: `attempt(f"no {CURVE}", lambda:` -> `(lambda _, act, say: act())("", lambda:`"""  # noqa: E501
    for name in ("tensorboardX", "tensorboardX.event_file_writer", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    status, err, out = train()
    assert status == 0 and (out / "adapter_model.safetensors").exists() and (out / "README.md").exists()
    assert err.count("no more records for TensorBoard: ") == 1 and err.count("no loss.png: ") == 1
    assert "Traceback" not in err and not (out / "loss.png").exists()


def test_wandb_has_to_be_installed(train, monkeypatch):
    """Mutation: jaxpost/recipes/reporting.py: `if "wandb" in names and not wandb.installed():` -> `if False:`"""
    monkeypatch.setattr(reporting.wandb, "installed", lambda: False)
    status, err, out = train("--report-to", "wandb")
    assert status == 2 and err.count("\n") == 1 and "`--report-to`" in err and not out.exists()


@pytest.mark.parametrize("fails_at", [None, 1])
def test_records_go_to_wandb_and_its_failure_ends_nothing(train, monkeypatch, fails_at):
    """Mutation: jaxpost/recipes/reporting.py: `    if "wandb" in config.report_to:` -> `    if False:`"""
    logged, settings = [], {}

    class Run:
        id = "abc"
        define_metric = finish = lambda *_, **__: None

        def log(self, values):
            if len(logged) == fails_at:
                raise ConnectionError("the server is away")
            logged.append(values)

    module = types.ModuleType("wandb")
    module.init = lambda **options: settings.update(options) or Run()  # pyright: ignore
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(reporting.wandb, "installed", lambda: True)
    status, err, out = train("--report-to", "wandb", "--seed", "3")
    assert status == 0 and (out / "adapter_model.safetensors").exists() and not (out / "runs").exists()
    assert [values["train/global_step"] for values in logged] == [1, 2][:fails_at]
    assert settings["config"]["seed"] == 3 and settings["config"]["lora"]["rank"] == 16
    assert err.count("no more records for Weights & Biases: ConnectionError") == (fails_at is not None)


def full_disk(monkeypatch, fails):
    """A disk that is full for `metrics.jsonl` where `fails(step)`."""
    original = MetricsFile.write

    def write(file, values):
        if fails(values["step"]):
            raise OSError(28, "No space left on device")
        original(file, values)

    monkeypatch.setattr(MetricsFile, "write", write)


def test_a_write_that_failed_once_loses_no_record(sft, models, rows, tmp_path, monkeypatch):
    """Mutation: jaxpost/recipes/reporting.py: `Persistent(METRICS, _metrics_file(folder / METRICS), say), makers, say)` -> `_metrics_file(folder / METRICS), makers, say)`"""  # noqa: E501
    whole = sft()
    tries = [2]
    full_disk(monkeypatch, lambda step: step in tries and tries.remove(step) is None)
    argv = ("sft", "--model", str(models()), "--data", str(rows), *SMALL)
    run = run_command(tmp_path / "out", argv)
    assert run.status == 0 and run.column("step") == [1, 2, 3, 4] and run.column("loss") == whole.column("loss")
    assert run.stderr.count("No space left") == run.stderr.count("the records that were kept are written") == 1


def test_no_checkpoint_is_without_its_records_and_a_gap_is_said(models, rows, tmp_path, monkeypatch):
    """The disk is full from step 3 on: the checkpoint of step 4 is not made. Other losses are said when a run goes on.

    Mutation: jaxpost/recipes/sft.py: `            reporters.sync()` -> `            pass`
    Mutation: jaxpost/recipes/sft.py: `        _say(*gap_notes(records, start.step))` -> `        pass`
    """
    with monkeypatch.context() as patched:
        full_disk(patched, lambda step: step >= 3)
        argv = ("sft", "--model", str(models()), "--data", str(rows), *SMALL, "--save-steps", "2")
        failed = run_command(tmp_path / "out", argv)
    last = failed.stderr.splitlines()[-1]
    assert failed.status == 1 and "metrics.jsonl must hold a record of each step" in last and "Trace" not in last
    assert [path.name for path in (failed.out / "checkpoints").iterdir()] == ["2"]
    lines = (failed.out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (failed.out / "metrics.jsonl").write_text("".join(lines[1:]))
    again = run_command(failed.out, ("sft", "--config", str(failed.out / "run.yaml"), "--resume"))
    assert again.status == 0 and again.column("step") == [2, 3, 4]
    assert "metrics.jsonl lacks 1 of 2 steps (1): " in again.stderr
