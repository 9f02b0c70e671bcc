"""The loop: batch n, step n, record n, until the last or until it is told to stop."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxpost.core.errors import RunError
from jaxpost.train.metrics import Rate, record
from jaxpost.train.state import TrainState

Batch = Mapping[str, Any]
NextBatch = Callable[[int], tuple[Batch, Mapping[str, Any]]]  # step -> batch, what the host knows of it
RunStep = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Any]]]


class Diverged(RunError):
    """Too many steps in a row, or all of them, had a loss or gradient that is not finite."""


def train(
    state: TrainState,
    frozen: Any,
    next_batch: NextBatch,
    run_step: RunStep,
    *,
    steps: int,
    learning_rate: Callable[[int], float],
    max_skipped_steps: int,
    report: Callable[[dict[str, Any]], None],
    num_tokens: int = 0,
    after: Callable[[TrainState, int], bool] = lambda state, num_tokens: False,
) -> TrainState:
    """Runs steps `state.step` to `steps` and reports each; batch n + 1 is made while the device works on step n.

    Args:
      next_batch: step n -> (device batch, host facts: "num_tokens" and "trained_tokens" of this batch, "epoch");
        the record's "num_tokens" counts over the run, as the field has it.
      learning_rate: the schedule, update number -> rate; the rate recorded is the one the step used.
      max_skipped_steps: so many skipped in a row end the run.
      report: gets each record, in order.
      num_tokens: seen before, in a run that goes on.
      after: called with the state after each step's record, and the tokens seen so far (see `milestones`); true ends
        the loop. The state's buffers are the next step's: what is kept of them must be copied.

    Raises:
      Diverged: after `max_skipped_steps` in a row without an update, or at the end of a run that made none.
    """
    rate, seen = Rate(), num_tokens

    def finish(step: int, device: Mapping[str, Any], host: Mapping[str, Any]) -> None:
        nonlocal seen
        device = jax.device_get(device)  # waits for the step
        seen += host["num_tokens"]
        made = {
            "learning_rate": float(f"{learning_rate(int(device['updates'])):.7g}"),  # float32 has no more digits
            "num_tokens": seen,
            "tokens_per_s": round(rate(host["num_tokens"]), 1),
        }
        report(record(step, device, {**host, **made}))
        if int(device["skipped"]) >= max_skipped_steps:
            raise Diverged(
                f"{max_skipped_steps} steps in a row up to step {step} gave a loss or gradient that is not finite; "
                f"last loss {float(device['loss'])}. Lower `--learning-rate`."
            )

    start = int(state.step)
    ready = next_batch(start) if start < steps else None
    for step in range(start, steps):
        assert ready is not None, "each step but the last makes the next one's batch"
        batch, host = ready
        state, device = run_step(state, frozen, batch)
        ready = next_batch(step + 1) if step + 1 < steps else None
        finish(step + 1, device, host)
        if after(state, seen):
            break
        rate(0)  # evaluations and checkpoints are not the steps' time
    if start < int(state.step) == steps:
        require_updates(state)
    return state


def require_updates(state: TrainState) -> None:
    """Diverged unless the run made an update: its weights would be those that it started from."""
    if int(state.updates) == 0:
        raise Diverged(
            f"none of the {int(state.step)} steps gave a finite loss and gradient, so nothing was trained. "
            "Look for values in the checkpoint that are not finite, or try `--dtype float32`."
        )


def total_steps(steps: int | None, epochs: float, steps_per_epoch: int) -> int:
    """How many steps a run takes: `steps` if given, else enough for `epochs`, a part of an epoch rounded up.

    >>> total_steps(None, 1.5, 5)
    8
    """
    return steps if steps is not None else math.ceil(epochs * steps_per_epoch)
