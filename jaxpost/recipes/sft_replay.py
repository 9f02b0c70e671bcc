"""Running one step of a finished or running `jaxpost sft` again, bit for bit, without touching its folder."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxpost.core.errors import InputError
from jaxpost.recipes.sft_config import SftConfig
from jaxpost.recipes.sft_fingerprints import check, fingerprints
from jaxpost.recipes.sft_setup import Setup, compile_steps, device_batch, prepare
from jaxpost.train.checkpoint import newest_whole, read_meta, restore, shapes_of
from jaxpost.train.metrics import read_metrics, record
from jaxpost.train.state import TrainState

COMPARED = ("loss", "grad_norm")
NO_EVALUATION: Mapping[str, Any] = {  # it changes no step
    "eval_data": (),
    "eval_steps": None,
    "early_stopping_patience": None,
    "early_stopping_threshold": 0.0,
    "keep": "last",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """A step that was run again.

    Attributes:
      step: as the records count, from 1.
      checkpoint: step of the checkpoint that it started from; None from the start of the run.
      figures: loss and gradient norm of the whole step.
      recorded: the same from metrics.jsonl; None where it has no such step.
      equal: they are the same to the last bit.
    """

    step: int
    checkpoint: int | None
    figures: Mapping[str, float | None]
    recorded: Mapping[str, float | None] | None

    @property
    def equal(self) -> bool:
        return self.recorded == self.figures


def replay(
    config: SftConfig,
    step: int,
    say: Callable[[str], None],
    *,
    before: Callable[[Setup, TrainState], None],
) -> Replay:
    """Runs record `step` of the run again, from the newest whole checkpoint before it or from the start.

    Args:
      config: of the run; its `output` is the run's folder.
      step: as the records count, from 1.
      say: gets lines on what is used and what is not.
      before: called with the state that the step starts from, before the step is run.

    Raises:
      InputError: a step that the run has not; data or a model that are not the run's any more.
    """
    root = config.output / "checkpoints"
    newest = newest_whole(root, lambda _: None)
    if newest is not None and config.micro_batch_size is None:  # the run chose it, and told its checkpoints
        config = dataclasses.replace(config, micro_batch_size=read_meta(newest).micro_batch_size)
    setup = prepare(dataclasses.replace(config, **NO_EVALUATION))
    if step > setup.steps:
        raise InputError(f"`--step` must be at most {setup.steps}, the steps of {config.output}; got {step}.")
    if newest is not None:  # any checkpoint of the run knows what it trains on, also one after the step
        saved = {kind: digest for kind, digest in read_meta(newest).fingerprints.items() if kind != "eval_data"}
        check(fingerprints(setup), saved, newest)
    folder = newest_whole(root, say, at_most=step - 1)
    if folder is not None:
        setup = dataclasses.replace(setup, state=restore(folder, shapes_of(setup.state)))
    setup, compiled = compile_steps(setup, lambda _: None)
    state, first = setup.state, 0 if folder is None else int(folder.name)
    say(f"runs steps {first + 1} to {step} again")
    device: Mapping[str, Any] = {}
    for number in range(first, step):
        batch, _ = device_batch(setup, number)
        if number == step - 1:
            before(setup, state)
        state, device = compiled[batch["rows"]["tokens"].shape].call(state, setup.frozen, batch)
    return Replay(
        step=step,
        checkpoint=None if folder is None else first,
        figures=_figures(record(step, jax.device_get(device), {})),
        recorded=_recorded(config.output / "metrics.jsonl", step),
    )


def _recorded(path: Path, step: int) -> dict[str, float | None] | None:
    found = [r for r in read_metrics(path) if r["step"] == step and "loss" in r]
    return _figures(found[-1]) if found else None


def _figures(record: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: record[name] for name in COMPARED}
