"""The loss curve of a run as a PNG, by matplotlib without its global state."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxpost.core.files import write_file

RAW, SMOOTH, EVAL, RATE = "#9ecae1", "#08519c", "#d94801", "#636363"
SIZE_INCHES, DOTS_PER_INCH = (8.0, 5.0), 120


def loss_curve(path: Path, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws loss, smoothed loss, evaluation loss where there is one, and the learning rate in a strip below.

    The smoothed loss is a trailing mean, each step weighed by its trained tokens, so that long rows count as they do
    in training. Of 100 steps or more the axis of the loss shows the inner 98 %: one spike would flatten all the rest.

    Args:
      path: of the PNG; it appears whole or not at all.
      records: of `metrics.jsonl`, in order.

    Raises:
      ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    train = [record for record in records if "loss" in record]
    steps = np.array([record["step"] for record in train])
    losses = _column(train, "loss")
    window = smoothing_window(len(train))
    marker = {"marker": "o", "markersize": 3} if len(train) < 30 else {}
    upper.plot(steps, losses, color=RAW if window > 1 else SMOOTH, linewidth=1, label="loss", **marker)
    if window > 1:
        smooth = smoothed(losses, _column(train, "trained_tokens"), window)
        upper.plot(steps, smooth, color=SMOOTH, linewidth=2, label=f"loss, mean of {window} steps")
    checked = [record for record in records if record.get("eval_loss") is not None]
    evals = _column(checked, "eval_loss")
    if checked:
        places = [record["step"] for record in checked]
        upper.plot(places, evals, color=EVAL, linewidth=2, marker="o", markersize=4, label="evaluation loss")
    upper.set_ylim(*_limits(losses, evals))
    upper.set_ylabel("loss")
    upper.set_title(title, fontsize=10, parse_math=False)
    upper.legend(frameon=False)
    upper.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates = _column(train, "learning_rate")
    lower.plot(steps, rates, color=RATE, linewidth=1.5)
    lower.set_ylabel("learning rate", fontsize=8)
    lower.tick_params(labelsize=8)
    lower.set_ylim(0, 1.1 * max(rates, default=0.0) or 1.0)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue())


def smoothing_window(steps: int) -> int:
    """Steps in a mean: a twentieth of the run, 100 at most, 1 (no smoothing) for a run of a few steps.

    >>> smoothing_window(10), smoothing_window(200), smoothing_window(10**5)
    (1, 10, 100)
    """
    return max(1, min(100, steps // 20))


def smoothed(
    values: Float[np.ndarray, " steps"], weights: Float[np.ndarray, " steps"], window: int
) -> Float[np.ndarray, " steps"]:
    """Weighted mean of each step and the `window - 1` before it; values that are not finite have no weight.

    >>> smoothed(np.array([1.0, 3.0, np.nan, 5.0]), np.array([1.0, 3.0, 9.0, 1.0]), 2).tolist()
    [1.0, 2.5, 3.0, 5.0]
    """
    there = np.isfinite(values) & np.isfinite(weights)
    weight = np.where(there, weights, 0.0)
    sums = np.cumsum(np.concatenate([np.zeros(window), weight * np.where(there, values, 0.0)]))
    counts = np.cumsum(np.concatenate([np.zeros(window), weight]))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[window:] - sums[:-window]) / (counts[window:] - counts[:-window])


def _column(records: Sequence[Mapping[str, Any]], name: str) -> Float[np.ndarray, " steps"]:
    """A number of each record; nan where it has none, which a line leaves out."""
    values = [record.get(name) for record in records]
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _limits(losses: np.ndarray, evals: np.ndarray) -> tuple[float, float]:
    finite = losses[np.isfinite(losses)]
    inner = np.quantile(finite, [0.01, 0.99]) if finite.size >= 100 else finite
    shown = np.concatenate([inner, evals])
    if not shown.size:
        return 0.0, 1.0
    low, high = float(shown.min()), float(shown.max())
    margin = 0.05 * (high - low) or 0.05 * max(abs(high), 1.0)
    return low - margin, high + margin
