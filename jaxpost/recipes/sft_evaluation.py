"""Evaluation during training: the mean loss and accuracy of held-out rows, over all their trained tokens."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpost.data.batches import BatchPlan
from jaxpost.data.examples import Counts
from jaxpost.sharding import batch_sharding
from jaxpost.train.programs import Compiled, Program


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Held-out rows and the program that scores them: the training's forward, without dropout or noise.

    Attributes:
      plan: its batches are one micro-batch each, and one epoch is the set.
      counts: what became of the rows.   fingerprint: of the examples.
      score: (trainable, frozen, rows) -> {"logp", "correct"} [B, T], see `objectives.make_score`.
      mesh: of the run.
    """

    plan: BatchPlan
    counts: Counts
    fingerprint: str
    score: Any
    mesh: Mesh | None

    def sized(self, micro_batch_size: int) -> "Evaluation":
        """The same rows, so many at a time."""
        plan = dataclasses.replace(self.plan, batch_size=micro_batch_size, micro_batch_size=micro_batch_size)
        return dataclasses.replace(self, plan=plan)

    def programs(self, trainable: Any, frozen: Any) -> dict[tuple[int, int], Program]:
        """The program of each shape [B, T] that the rows take."""
        shapes = [(rows, length) for _, rows, length in self.plan.buckets(self.plan.steps_per_epoch)]
        return {
            shape: Program(function=self.score, arguments=(trainable, frozen, self._abstract(shape)), mesh=self.mesh)
            for shape in shapes
        }

    def run(self, compiled: Mapping[Any, Compiled], trainable: Any, frozen: Any) -> dict[str, Any]:
        """`eval_loss` in nats and `eval_mean_token_accuracy`, means over the set's trained tokens.

        The loss is the negative log-likelihood, whatever is trained on, so that runs can be compared. What is not
        finite is null, as in every record.
        """
        started = time.perf_counter()
        sums = np.zeros(3)
        tokens = 0
        for n in range(self.plan.steps_per_epoch):
            rows, _, info = self.plan.batch(n)
            batch = {name: leaf[0] for name, leaf in rows.items()}
            placed = batch if self.mesh is None else jax.device_put(batch, batch_sharding(self.mesh))
            found = jax.device_get(compiled[batch["tokens"].shape].call(trainable, frozen, placed))
            sums += [-found["logp"].sum(dtype=np.float64), found["correct"].sum(dtype=np.float64), info.trained_tokens]
            tokens += info.num_tokens
        loss, correct = (float(value / sums[2]) for value in sums[:2])
        return {
            "eval_loss": loss if np.isfinite(loss) else None,
            "eval_mean_token_accuracy": correct,
            "eval_num_tokens": tokens,
            "eval_runtime": round(time.perf_counter() - started, 3),
        }

    def _abstract(self, shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        place = None if self.mesh is None else batch_sharding(self.mesh)
        ints, floats = (jax.ShapeDtypeStruct(shape, dtype, sharding=place) for dtype in (jnp.int32, jnp.float32))
        return {"tokens": ints, "segment_ids": ints, "positions": ints, "loss_mask": floats}
