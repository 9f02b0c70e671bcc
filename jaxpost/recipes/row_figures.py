"""Loss, tokens and gradient norm of each row of a batch by itself, with the parameters of a step."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax

from jaxpost.data.batches import BatchPlan
from jaxpost.data.examples import Example
from jaxpost.data.sources import read_rows
from jaxpost.recipes.sft_setup import Setup, device_batch
from jaxpost.train.programs import Compiled, Program

EXCERPT = 60  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFigures:
    """One row of the data in a step.

    Attributes:
      source: its number over all files, from 1.   where: file and line.
      tokens, trained_tokens: of the row, cut to the run's longest.
      loss: the run's loss, mean over the row's trained tokens.
      grad_norm: global norm of the gradient of that mean, before clipping.
      excerpt: the start of what is trained of it, decoded.
    """

    source: int
    where: str
    tokens: int
    trained_tokens: int
    loss: float
    grad_norm: float
    excerpt: str


def row_figures(setup: Setup, trainable: Any, step: int) -> Iterator[RowFigures]:
    """The figures of each row of record `step` (from 1), in the order of the batch.

    One row at a time, unpacked: which other rows a packed row holds makes no difference to its loss. Without dropout
    and noise, whose draws belong to places in the batch, so that equal rows have equal figures. Rows of a length
    bucket share one program.
    """
    sources = [source for row in setup.plan.batch(step - 1)[2].sources for source in row]
    wanted = set(sources)
    examples = {example.source: example for example in setup.plan.examples if example.source in wanted}
    places = _places(setup, wanted)
    loss_and_norm = _make_loss_and_norm(setup)
    for source in sources:
        example = examples[source]
        loss, norm = loss_and_norm(trainable, _alone(setup, example))
        yield RowFigures(
            source=source,
            where=places[source],
            tokens=len(example.ids),
            trained_tokens=int(example.trained[1:].sum()),
            loss=float(loss),
            grad_norm=float(norm),
            excerpt=_excerpt(setup.model.tokenizer, example),
        )


def _make_loss_and_norm(setup: Setup) -> Callable[[Any, Any], Any]:
    """(trainable, batch of one micro-batch) -> loss, gradient norm; a program for each shape, kept."""

    @jax.jit
    def loss_and_norm(trainable: Any, frozen: Any, batch: Mapping[str, Any]) -> Any:
        rows = jax.tree.map(lambda leaf: leaf[0], batch["rows"])

        def loss(trainable: Any) -> Any:
            return setup.objective(trainable, frozen, rows, batch["totals"], None)[0]["loss"]

        value, gradients = jax.value_and_grad(loss)(trainable)
        return value, optax.tree.norm(gradients)

    compiled: dict[Any, Compiled] = {}

    def call(trainable: Any, batch: Mapping[str, Any]) -> Any:
        arguments, shape = (trainable, setup.frozen, batch), batch["rows"]["tokens"].shape
        if shape not in compiled:
            compiled[shape] = Program(function=loss_and_norm, arguments=arguments, mesh=setup.mesh).compile()
        return compiled[shape].call(*arguments)

    return call


def _alone(setup: Setup, example: Example) -> Any:
    """A batch of one row; on a mesh with rows of padding for the other devices."""
    mesh = setup.mesh
    count = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    plan = BatchPlan(
        examples=[example],
        batch_size=count,
        micro_batch_size=count,
        max_length=setup.plan.max_length,
        packing=False,
        seed=0,
    )
    return device_batch(dataclasses.replace(setup, plan=plan), 0)[0]


def _places(setup: Setup, sources: set[int]) -> dict[int, str]:
    """File and line of each row."""
    found: dict[int, str] = {}
    for row in read_rows(setup.config.data, keep_bad=setup.config.skip_bad_rows):
        if row.source in sources:
            found[row.source] = row.where
        if len(found) == len(sources):
            break
    return found


def _excerpt(tokenizer: Any, example: Example) -> str:
    """The start of the trained text on one line, without characters that would move the terminal's cursor."""
    ids = example.ids[np.flatnonzero(example.trained)[: 4 * EXCERPT]]
    text = " ".join(tokenizer.decode(ids.tolist(), skip_special_tokens=False).split())
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return shown if len(shown) <= EXCERPT else f"{shown[: EXCERPT - 1]}…"
