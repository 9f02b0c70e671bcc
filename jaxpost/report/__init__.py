"""What a run tells the outside: reporters, TensorBoard, Weights & Biases, a loss curve, a model card."""

from jaxpost.report.card import Card, model_card
from jaxpost.report.loss_curve import loss_curve
from jaxpost.report.reporters import Persistent, Reporter, Reporters, attempt

__all__ = [
    "Card",
    "Persistent",
    "Reporter",
    "Reporters",
    "attempt",
    "loss_curve",
    "model_card",
]
