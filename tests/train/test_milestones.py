"""Between two steps: what is evaluated, saved and stopped when."""

import dataclasses

import jax.numpy as jnp
import optax
import pytest

from jaxpost.train import init_state
from jaxpost.train.checkpoint import Counters
from jaxpost.train.milestones import Every, Milestones

STATE = init_state({"w": jnp.zeros(1)}, optax.sgd(0.1))


def run(losses, stop_at=None, start=0, counters=None, **every):
    """Steps of a run whose evaluations give `losses`; what was done in order, and the milestones."""
    done, values = [], iter(losses)
    steps, asked = every.pop("steps", 12), []
    milestones = Milestones(
        Every(**every),
        steps=steps,
        evaluate=lambda state: {"eval_loss": next(values)},
        save=lambda state, counters: done.append(("save", int(state.step), counters)),
        report=lambda record: done.append(("eval", record["step"], record["eval_loss"])),
        stop=lambda: bool(asked),
        counters=counters,
    )
    milestones.start(dataclasses.replace(STATE, step=jnp.int32(start)))
    for step in range(start + 1, steps + 1):
        if step == stop_at:
            asked.append(True)
        if milestones(dataclasses.replace(STATE, step=jnp.int32(step)), 10 * step):
            done.append(("stop", step))
            break
    return done, milestones


def steps_of(done, what):
    return [entry[1] for entry in done if entry[0] == what]


def test_evaluations_are_at_the_start_at_each_interval_and_at_the_end():
    """Mutation: jaxpost/train/milestones.py: `(last or step % every.evaluate == 0)` -> `step % every.evaluate == 0`
    Mutation: jaxpost/train/milestones.py: `and int(state.step) == 0:` -> `and False:`
    """
    assert steps_of(run([1.0] * 9, evaluate=5)[0], "eval") == [0, 5, 10, 12]
    assert steps_of(run([1.0] * 9, evaluate=6)[0], "eval") == [0, 6, 12]
    assert steps_of(run([1.0] * 9, evaluate=5, start=6)[0], "eval") == [10, 12]
    assert steps_of(run([])[0], "eval") == []


def test_checkpoints_are_at_each_interval_and_at_the_end():
    """Mutation: jaxpost/train/milestones.py: `(last or self.patience_is_over or step % every.save == 0)` -> `step % every.save == 0`"""  # noqa: E501
    assert steps_of(run([], save=5)[0], "save") == [5, 10, 12]
    assert steps_of(run([])[0], "save") == []


def test_a_checkpoint_counts_its_own_evaluation():
    """The evaluation of a step is judged before the step is saved, so that a resumed run need not repeat it."""
    done, _ = run([9.0, 3.0, 5.0, 4.0], evaluate=4, save=4)
    saved = [entry[2] for entry in done if entry[0] == "save"]
    assert [(c.num_tokens, c.best_step, c.best_loss, c.waited) for c in saved] == [
        (40, 4, 3.0, 0),
        (80, 4, 3.0, 1),
        (120, 4, 3.0, 2),
    ]
    assert [entry[0] for entry in done] == ["eval", "eval", "save", "eval", "save", "eval", "save"]


def test_the_best_step_is_saved_whatever_the_interval():
    """Mutation: jaxpost/train/milestones.py: `(every.save_best and self.counters.best_step == step)` -> `False`"""
    losses = [0.1, 5.0, 4.0, 4.5, 3.0, 3.0, 3.1]  # of step 0, which is no candidate, and of steps 2 to 12
    assert steps_of(run(losses, evaluate=2, save=100, save_best=True)[0], "save") == [2, 4, 8, 12]
    assert steps_of(run(losses, evaluate=2, save=100)[0], "save") == [12]


@pytest.mark.parametrize(
    ("losses", "patience", "threshold", "end"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0, 0.5], 1, 0.0, None),
        ([5.0, 5.0], 1, 0.0, 2),
        ([5.0, 6.0, 4.0, 4.1, 4.2], 2, 0.0, 5),
        ([5.0, 4.9, 4.8], 2, 0.5, 3),  # better, but by too little
        ([5.0, None, None], 2, 0.0, 3),
        ([5.0, 6.0, 4.9, 5.0, 5.0, 5.0], None, 0.0, None),
    ],
)
def test_early_stop(losses, patience, threshold, end):
    """After so many evaluations in a row that are no better by the threshold, with a checkpoint.

    Mutation: jaxpost/train/milestones.py: `value < before - threshold` -> `value < before`
    Mutation: jaxpost/train/milestones.py: `self.counters.waited >= self._every.patience` -> `self.counters.waited > self._every.patience`
    """  # noqa: E501
    done, milestones = run([9.0, *losses], evaluate=1, save=50, steps=6, patience=patience, threshold=threshold)
    assert steps_of(done, "stop") == ([] if end is None else [end])
    assert milestones.patience_is_over == (end is not None)
    assert steps_of(done, "save") == [6 if end is None else end]


def test_a_loss_that_is_no_number_is_never_the_best():
    for bad in (float("nan"), float("inf"), None):
        _, milestones = run([1.0, bad, 5.0, bad], evaluate=1, steps=3)
        assert (milestones.counters.best_step, milestones.counters.best_loss) == (2, 5.0)


def test_R10_a_stop_that_was_asked_for_saves_and_ends_at_that_step():
    """Also where nothing else is ever saved; no evaluation is made that an undisturbed run would not make.

    Mutation: jaxpost/train/milestones.py: `if due or asked or` -> `if due or`
    Mutation: jaxpost/train/milestones.py: `return asked or self.patience_is_over` -> `return self.patience_is_over`
    """
    done, milestones = run([1.0, 1.0], stop_at=7, evaluate=5)
    assert [entry[:2] for entry in done] == [("eval", 0), ("eval", 5), ("save", 7), ("stop", 7)]
    assert milestones.counters.num_tokens == 70


def test_counting_goes_on_from_a_checkpoint():
    """A run of 12 evaluated in two parts judges as in one."""
    losses = [9.0, 4.0, 3.0, 3.5, 3.5, 3.2, 3.1, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    whole, _ = run(losses, evaluate=1, save=1, patience=5)
    first, half = run(losses, evaluate=1, save=1, patience=5, stop_at=4)
    rest, _ = run(losses[5:], evaluate=1, save=1, patience=5, start=4, counters=half.counters)
    assert [*first[:-1], *rest] == whole and steps_of(whole, "stop") == [7]
    assert half.counters == Counters(num_tokens=40, best_step=2, best_loss=3.0, waited=2)
