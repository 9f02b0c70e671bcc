"""`jaxpost doctor --numerics`: one real step, laid out in other ways, must give the same loss and the same gradient.

The same to rounding, whose measure is a control: the plain layout with every number of the embedding moved to the next
float32. In a deep model that alone moves the gradient by more than 1e-6 (SmolLM2-135M, 30 layers: 3e-6).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost.core.tree import path_string
from jaxpost.data.batches import BUCKET, BatchPlan, Rows
from jaxpost.data.checks.findings import Finding, finding
from jaxpost.data.examples import Example
from jaxpost.models.decoder import REMAT_SAVES
from jaxpost.objectives import adapter_policy, full_policy, sft
from jaxpost.recipes.sft_config import SftConfig
from jaxpost.recipes.sft_setup import Setup, placed, prepare
from jaxpost.train.programs import Program
from jaxpost.train.step import accumulate

BAR = 1e-6  # relative, float32: of loss and gradient, where rounding alone does not move them by more
CEILING = 1e-4  # over which what moves them is no rounding
PLAIN, CONTROL = "plain: one row at a time", "control: embedding moved by one rounding"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """One way to lay out the documents of a batch.

    Attributes:
      rows: leaves [accumulate, micro, T], as `BatchPlan.batch` gives them.
      remat: what the backward pass keeps.
      moved: the embedding is not the model's, see `_moved`.
    """

    name: str
    rows: Rows
    remat: str = "none"
    moved: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far loss L and gradient g of a layout are from L0 and g0 of the plain one.

    Attributes:
      loss: |L - L0| / |L0|.
      gradient: ||g - g0|| / ||g0||, Euclidean norms over all that is trained.
      leaf: the largest ||g - g0|| / ||g0|| of a leaf alone; of a leaf with g0 = 0 the numerator over the whole norm.
      path: which leaf that is.
      bar: that both must keep, `BAR` or what rounding alone does.
    """

    name: str
    shape: tuple[int, ...]
    loss: float
    gradient: float
    leaf: float
    path: str
    bar: float = BAR

    @property
    def fits(self) -> bool:
        """Whether loss and gradient are within the bar; a NaN is not."""
        return self.loss <= self.bar and self.gradient <= self.bar


def compare(config: SftConfig, say: Callable[[str], None]) -> list[Deviation]:
    """Loads the model and runs the first batch of `config` in every layout, in float32 and without dropout.

    Programs are compiled and run one at a time, so memory is that of the largest.

    Raises:
      InputError: as `prepare`.
    """
    exact = dataclasses.replace(config, dtype="float32", lora=dataclasses.replace(config.lora, dropout=0.0))
    setup = prepare(exact)
    with jax.default_matmul_precision("highest"):
        return list(deviations(setup, layouts(setup), say))


def layouts(setup: Setup) -> Iterator[Layout]:
    """The plain layout first, then the others; all hold the documents of batch 0 and nothing else."""
    real, _, _ = setup.plan.batch(0)
    documents = documents_of(real)
    mesh = setup.mesh
    unit = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    plain = _lay_out(setup.plan, documents, unit, packing=False)
    yield Layout(name=PLAIN, rows=plain)
    yield Layout(name=CONTROL, rows=plain, moved=True)
    for micro in (2, 4):
        if micro <= len(documents):
            rows = _lay_out(setup.plan, documents, micro * unit, packing=False)
            yield Layout(name=f"micro-batches of {micro} rows", rows=rows)
    yield Layout(name="documents in another order", rows=_lay_out(setup.plan, documents[::-1], unit, packing=False))
    yield Layout(name="documents packed", rows=_lay_out(setup.plan, documents, unit, packing=True))
    yield Layout(name=f"bucket longer by {BUCKET}", rows=_longer(plain))
    yield Layout(name="padding on the left", rows=_left(plain))
    for remat in REMAT_SAVES:
        yield Layout(name=f"remat {remat}", rows=plain, remat=remat)
    yield Layout(name="as the run would take it", rows=real, remat=setup.config.remat)


def deviations(setup: Setup, chosen: Iterator[Layout], say: Callable[[str], None]) -> Iterator[Deviation]:
    """Each layout against the first, within the bar that the control sets."""
    reference: tuple[float, dict[str, np.ndarray]] | None = None
    bar = BAR
    for layout in chosen:
        say(f"numerics: {layout.name}")
        loss, gradient = _run(_moved(setup) if layout.moved else setup, layout)
        reference = reference or (loss, gradient)
        found = _deviation(layout, loss, gradient, *reference)
        bar = min(max(BAR, found.loss, found.gradient), CEILING) if layout.moved else bar
        yield dataclasses.replace(found, bar=bar)


def numerics_findings(found: list[Deviation]) -> list[Finding]:
    """An error where a layout is outside the bar."""
    wrong = [deviation for deviation in found if not deviation.fits]
    if not wrong:
        return []
    named = ", ".join(f"{d.name} (loss {d.loss:.1e}, gradient {d.gradient:.1e})" for d in wrong[:3])
    detail = f"{len(wrong)} of {len(found) - 1} layouts over {wrong[0].bar:.1e}: {named}"
    return [finding("numerics.deviation", detail=detail)]


def documents_of(rows: Rows) -> list[Example]:
    """The documents of a batch, row by row."""
    flat = {name: leaf.reshape(-1, leaf.shape[-1]) for name, leaf in rows.items()}
    documents = []
    for segments, tokens, mask in zip(flat["segment_ids"], flat["tokens"], flat["loss_mask"], strict=True):
        for segment in range(1, int(segments.max(initial=0)) + 1):
            inside = segments == segment
            documents.append(Example(ids=tokens[inside], trained=mask[inside] > 0, source=len(documents) + 1))
    return documents


def _lay_out(plan: BatchPlan, documents: list[Example], micro: int, *, packing: bool) -> Rows:
    whole = -(-len(documents) // micro) * micro
    one = dataclasses.replace(plan, examples=documents, batch_size=whole, micro_batch_size=micro, packing=packing)
    return one.batch(0)[0]


def _longer(rows: Rows) -> dict[str, Any]:
    return {name: np.pad(leaf, ((0, 0), (0, 0), (0, BUCKET))) for name, leaf in rows.items()}


def _left(rows: Rows) -> Rows:
    """Every row moved to the right end."""
    length = rows["tokens"].shape[-1]
    free = length - np.count_nonzero(rows["segment_ids"], axis=-1)
    index = (np.arange(length) - free[..., None]) % length
    return {name: np.take_along_axis(leaf, index, axis=-1) for name, leaf in rows.items()}


def _moved(setup: Setup) -> Setup:
    """The setup with each number of the embedding one float32 up or down, by a coin."""
    trained, frozen = setup.state.trainable, setup.frozen
    tree = trained if setup.spec is None else frozen["params"]
    table = tree["embed_tokens"]["weight"]
    up = jax.random.bernoulli(jax.random.key(0), shape=table.shape)
    moved = {**tree, "embed_tokens": {"weight": jnp.nextafter(table, jnp.where(up, jnp.inf, -jnp.inf))}}
    if setup.spec is None:
        return dataclasses.replace(setup, state=dataclasses.replace(setup.state, trainable=moved))
    return dataclasses.replace(setup, frozen={**frozen, "params": moved})


def _run(setup: Setup, layout: Layout) -> tuple[float, dict[str, np.ndarray]]:
    """Loss, and gradient by path on the host."""
    config = setup.config
    policy = full_policy if config.full else adapter_policy
    objective = sft(setup.model.config, policy, loss=config.loss, dtype="float32", remat=layout.remat, metrics=())

    def step(trainable: Any, frozen: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        gradients, terms, _ = accumulate(objective, trainable, frozen, batch, jax.random.key(config.seed))
        return terms["loss"], gradients

    total = {"tokens": layout.rows["loss_mask"].sum(dtype=np.float64).astype(np.float32)}
    batch = placed({"rows": layout.rows, "totals": total}, setup.mesh)
    arguments = (setup.state.trainable, setup.frozen, batch)
    loss, gradients = Program(function=jax.jit(step), arguments=arguments, mesh=setup.mesh).compile().call(*arguments)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(gradients))
    return float(loss), {path_string(path): np.asarray(leaf) for path, leaf in leaves}


def _deviation(
    layout: Layout, loss: float, gradient: dict[str, np.ndarray], loss0: float, gradient0: dict[str, np.ndarray]
) -> Deviation:
    norms = {path: _norm(leaf) for path, leaf in gradient0.items()}
    whole = float(np.hypot.reduce(list(norms.values())))
    off = {path: _norm(gradient[path].astype(np.float64) - leaf) for path, leaf in gradient0.items()}
    relative = {path: off[path] / (norms[path] or whole or 1.0) for path in off}
    worst = max(relative, key=relative.__getitem__)
    return Deviation(
        name=layout.name,
        shape=layout.rows["tokens"].shape,
        loss=abs(loss - loss0) / (abs(loss0) or 1.0),
        gradient=float(np.hypot.reduce(list(off.values()))) / (whole or 1.0),
        leaf=relative[worst],
        path=worst,
    )


def _norm(leaf: np.ndarray) -> float:
    return float(np.linalg.norm(leaf.astype(np.float64).ravel()))
