"""Between two steps: evaluation, the best step so far, checkpoints, and the reasons to stop early."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxpost.train.checkpoint import Counters
from jaxpost.train.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    """When things are done.

    Attributes:
      evaluate: so many steps between evaluations, None for none.   save: between checkpoints, None for none.
      save_best: a checkpoint of each step that is better than all before.
      patience: so many evaluations in a row that are no better end the run, None for never.
      threshold: by how much the loss must fall to count as better for `patience`.
    """

    evaluate: int | None = None
    save: int | None = None
    save_best: bool = False
    patience: int | None = None
    threshold: float = 0.0


class Milestones:
    """The loop's `after`: (state, tokens seen) -> whether to stop. `counters` are those of the last step.

    Args:
      every: when.   steps: of the run; the last is always evaluated and, if any is, saved.
      evaluate: state -> the record's values, `eval_loss` among them.
      save: writes a checkpoint.   report: gets the evaluations' records.
      stop: true when somebody asked to stop: then a checkpoint is written whatever `every` says.
      counters: of the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        every: Every,
        *,
        steps: int,
        evaluate: Callable[[TrainState], Mapping[str, Any]],
        save: Callable[[TrainState, Counters], Any],
        report: Callable[[dict[str, Any]], None],
        stop: Callable[[], bool] = lambda: False,
        counters: Counters | None = None,
    ):
        self._every, self._steps = every, steps
        self._evaluate, self._save, self._report, self._stop = evaluate, save, report, stop
        self.counters = counters or Counters()

    def start(self, state: TrainState) -> None:
        """Evaluates what the run starts from; it is no candidate for the best step, as nothing is trained yet."""
        if self._every.evaluate is not None and int(state.step) == 0:
            self._report({"step": 0, **self._evaluate(state)})

    @property
    def patience_is_over(self) -> bool:
        """Whether so many evaluations in a row were no better."""
        return self._every.patience is not None and self.counters.waited >= self._every.patience

    def __call__(self, state: TrainState, num_tokens: int) -> bool:
        step, every = int(state.step), self._every
        self.counters = dataclasses.replace(self.counters, num_tokens=num_tokens)
        last = step == self._steps
        if every.evaluate is not None and (last or step % every.evaluate == 0):
            values = self._evaluate(state)
            self._report({"step": step, **values})
            self.counters = judged(self.counters, step, values["eval_loss"], every.threshold)
        asked = self._stop()
        due = every.save is not None and (last or self.patience_is_over or step % every.save == 0)
        if due or asked or (every.save_best and self.counters.best_step == step):
            self._save(state, self.counters)
        return asked or self.patience_is_over


def judged(counters: Counters, step: int, loss: float | None, threshold: float) -> Counters:
    """The counters after an evaluation: the lowest loss is the best; one that is no number never is.

    >>> judged(Counters(best_step=3, best_loss=2.0), 6, 1.9, threshold=0.5)
    Counters(num_tokens=0, best_step=6, best_loss=1.9, waited=1)
    """
    before = math.inf if counters.best_loss is None else counters.best_loss
    value = math.inf if loss is None else loss  # and a NaN is below nothing
    waited = 0 if value < before - threshold else counters.waited + 1
    if value < before:
        counters = dataclasses.replace(counters, best_step=step, best_loss=value)
    return dataclasses.replace(counters, waited=waited)
