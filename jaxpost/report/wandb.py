"""Weights & Biases, where the user has installed it; its own environment variables (WANDB_MODE=offline) hold."""

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpost.core.files import write_file
from jaxpost.report.reporters import Record, tagged

RUN_ID = "wandb_run_id.txt"
STEP = "train/global_step"  # the Trainer's name


def installed() -> bool:
    """Whether `wandb` can be imported; it is not."""
    return importlib.util.find_spec("wandb") is not None


class WandB:
    """Logs each record to a run. The run's id is kept in the output folder, so that a resumed run goes on with it.

    Args:
      folder: the output folder; its name is the run's, and wandb's files go into it.
      settings: the configuration, in plain values.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        wandb = importlib.import_module("wandb")
        kept = folder / RUN_ID
        known = {"id": kept.read_text(encoding="utf-8").strip()} if kept.exists() else {}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "jaxpost",
            name=os.environ.get("WANDB_NAME") or folder.absolute().name,
            dir=str(folder),
            config=dict(settings),
            resume="allow",
            **known,
        )
        write_file(kept, f"{self._run.id}\n")
        # By a metric, not by wandb's own counter, which refuses the steps that a resumed run repeats.
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP, step_sync=True)

    def write(self, record: Record) -> None:
        self._run.log({**tagged(record), STEP: record["step"]})

    def sync(self) -> None:
        """Its own process keeps and sends the records."""

    def close(self) -> None:
        self._run.finish()
