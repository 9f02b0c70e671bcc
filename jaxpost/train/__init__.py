"""State, step and optimizers."""

from jaxpost.train.optimizers import adamw, schedule
from jaxpost.train.state import TrainState, init_state
from jaxpost.train.step import make_step

__all__ = ["TrainState", "adamw", "init_state", "make_step", "schedule"]
