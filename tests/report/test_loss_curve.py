"""The loss curve: a PNG that shows what is in the records, whatever they lack."""

import math

import numpy as np
import pytest

from jaxpost.report import loss_curve
from jaxpost.report.loss_curve import EVAL, SMOOTH, _limits, smoothed, smoothing_window

pytest.importorskip("matplotlib")


def records(steps, evaluation=0):
    """A falling loss; every `evaluation` steps one of the held-out rows."""
    made = []
    for step in range(1, steps + 1):
        made.append({"step": step, "loss": 1.0 + 1.0 / step, "trained_tokens": 10, "learning_rate": 1e-4})
        if evaluation and step % evaluation == 0:
            made.append({"step": step, "eval_loss": 1.5})
    return made


def pixels(path):
    from matplotlib import colors, image

    shown = image.imread(path)[..., :3]
    return lambda colour: int((np.abs(shown - np.array(colors.to_rgb(colour))).max(-1) < 0.02).sum())


def test_the_curves_are_drawn(tmp_path):
    """Mutation: jaxpost/report/loss_curve.py: `    if checked:` -> `    if False:`
    Mutation: jaxpost/report/loss_curve.py: `    if window > 1:` -> `    if False:`
    """
    loss_curve(tmp_path / "a.png", records(60, evaluation=10), "m on d.jsonl")
    loss_curve(tmp_path / "b.png", records(60), "a title with $_{math and %")
    with_eval, without = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert with_eval(EVAL) > 500 and without(EVAL) == 0
    assert with_eval(SMOOTH) > 500 and without(SMOOTH) > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"], "nothing is left beside them"


@pytest.mark.parametrize(
    "odd",
    [
        [],
        [{"step": 1, "loss": None, "trained_tokens": 0, "learning_rate": 0.0}],
        [{"step": 1, "loss": 2.0, "trained_tokens": 3, "learning_rate": 0}],
        [{"step": 4, "eval_loss": 2.0}],
        [{"step": s, "loss": 3.0, "trained_tokens": 1, "learning_rate": 1e-3} for s in range(1, 40)],
    ],
)
def test_odd_records_are_drawn_too(odd, tmp_path):
    """Nothing finite, one step, a loss that never changes."""
    loss_curve(tmp_path / "a.png", odd, "t")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_S11_the_smoothed_loss_is_a_mean_over_tokens():
    """Against the sum written out; steps without a loss have no weight.

    Mutation: jaxpost/report/loss_curve.py: `weight = np.where(there, weights, 0.0)` -> `weight = np.where(there, 1.0, 0.0)`
    Mutation: jaxpost/report/loss_curve.py: `(counts[window:] - counts[:-window])` -> `window`
    """  # noqa: E501
    for seed in range(3):
        rng = np.random.default_rng(seed)
        values, weights, window = rng.normal(size=50), rng.integers(1, 99, 50).astype(float), 1 + 6 * seed
        values[[0, 7, 8]] = math.nan
        got = smoothed(values, weights, window)
        for i in range(50):
            part = [j for j in range(max(0, i - window + 1), i + 1) if math.isfinite(values[j])]
            if part:
                want = sum(values[j] * weights[j] for j in part) / sum(weights[j] for j in part)
                assert abs(got[i] - want) < 1e-9
            else:
                assert math.isnan(got[i])


def test_a_spike_does_not_flatten_a_long_curve():
    """Mutation: jaxpost/report/loss_curve.py: `if finite.size >= 100 else finite` -> `if False else finite`"""
    losses, none = np.linspace(3.0, 1.0, 200), np.empty(0)
    losses[50] = 1e6
    low, high = _limits(losses, none)
    assert 0.8 < low < 1.1 and 2.9 < high < 3.3
    assert _limits(losses, np.array([7.0]))[1] > 7.0, "evaluations are all shown"
    assert _limits(losses[40:60], none)[1] > 1e6, "so is every step of a short run"


def test_the_window_grows_with_the_run():
    assert [smoothing_window(n) for n in (0, 1, 39, 40, 1000, 10**6)] == [1, 1, 1, 2, 50, 100]
