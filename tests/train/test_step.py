"""The step on a tree and a function of its own: accumulation, clipping, guard, keys, donation, recompiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numerics import assert_near, assert_same_bits, host
from tolerances import FLOAT32_CPU

from jaxpost.train import adamw, init_state, make_step

WIDTHS = (3, 5, 2)


def network(seed=0):
    """A small multilayer perceptron."""
    rng = np.random.default_rng(seed)
    shapes = list(zip(WIDTHS[1:], WIDTHS[:-1], strict=True))
    return [{"w": jnp.asarray(rng.standard_normal(s), jnp.float32), "b": jnp.zeros(s[0])} for s in shapes]


def apply(tree, x):
    for layer in tree[:-1]:
        x = jnp.tanh(x @ layer["w"].T + layer["b"][None])
    return x @ tree[-1]["w"].T + tree[-1]["b"][None]


def objective(trainable, frozen, rows, totals, key):
    """Masked squared error; `frozen` scales the input."""
    error = ((apply(trainable, rows["x"] * frozen["scale"]) - rows["y"]) ** 2).sum(-1) * rows["mask"]
    return {"loss": error.sum() / totals["rows"]}, {"error": (error.sum(), rows["mask"].sum())}


FROZEN = {"scale": jnp.asarray(2.0), "codes": jnp.arange(6, dtype=jnp.uint8)}


def data(accumulate=1, micro=6, seed=0, masked=2):
    rng = np.random.default_rng(seed)
    count = accumulate * micro
    rows = {
        "x": rng.standard_normal((count, WIDTHS[0])),
        "y": rng.standard_normal((count, WIDTHS[-1])),
        "mask": (np.arange(count) >= masked).astype(float),
    }
    laid = {n: jnp.asarray(x.reshape(accumulate, micro, *x.shape[1:]), jnp.float32) for n, x in rows.items()}
    return {"rows": laid, "totals": {"rows": np.float32(count - masked)}}


def whole_gradient(tree, batch):
    """Gradient of the loss over all rows at once."""
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in batch["rows"].items()}
    return jax.grad(lambda t: objective(t, FROZEN, flat, batch["totals"], None)[0]["loss"])(tree)


def norm64(tree):
    return np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree)))


def one_step(batch, optimizer=None, function=objective, **options):
    """State and metrics after a step from `network()`."""
    optimizer = optimizer or optax.sgd(1.0)
    step = make_step(function, optimizer, **options)
    return step(init_state(network(), optimizer), FROZEN, batch)


@pytest.mark.parametrize("accumulate", [1, 2, 6, 12])
def test_micro_batches_add_up(accumulate):
    """Loss, gradient and every (sum, count) of 12 rows, however they are cut; the mask falls unevenly on the cuts.

    Mutation: jaxpost/train/step.py: `(jnp.arange(count), rows))[0]` -> `(jnp.arange(count - 1), jax.tree.map(lambda x: x[1:], rows)))[0]`
    """  # noqa: E501
    batch = data(accumulate, 12 // accumulate, masked=5)
    state, metrics = one_step(batch, max_grad_norm=None)
    gradient = whole_gradient(network(), batch)
    assert_near(state.trainable, jax.tree.map(jnp.subtract, network(), gradient), FLOAT32_CPU["same_maths"])
    assert_near(metrics["grad_norm"], norm64(gradient), FLOAT32_CPU["same_maths"])
    total, count = metrics["error"]
    assert float(count) == 7
    assert_near(total / count, metrics["loss"], FLOAT32_CPU["same_maths"])


@pytest.mark.parametrize("limit", [0.1, 1.0, 1e6, None])
def test_R3_the_norm_is_that_before_clipping(limit):
    """Reported before clipping; the update is min(1, limit / norm) of the gradient, over all leaves together.

    Mutation: jaxpost/train/step.py: `"grad_norm": norm,` -> `"grad_norm": optax.global_norm(gradients),`
    Mutation: jaxpost/train/step.py: `factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))` -> `factor = jnp.minimum(1.0, max_norm)`
    Mutation: jaxpost/train/step.py: `jax.tree.map(lambda g: g * factor, gradients)` -> `jax.tree.map(lambda g: g * jnp.minimum(1.0, max_norm / jnp.linalg.norm(g)), gradients)`
    """  # noqa: E501
    batch = data(2)
    gradient = whole_gradient(network(), batch)
    norm = norm64(gradient)
    assert 1.0 < norm < 1e3
    state, metrics = one_step(batch, max_grad_norm=limit)
    assert_near(metrics["grad_norm"], norm, FLOAT32_CPU["same_maths"])
    factor = 1.0 if limit is None else min(1.0, limit / norm)
    update = jax.tree.map(lambda new, old: old - new, state.trainable, network())
    assert_near(update, jax.tree.map(lambda g: np.asarray(g, np.float64) * factor, gradient), FLOAT32_CPU["same_maths"])


def poisoned(batch, value):
    rows = {**batch["rows"], "y": batch["rows"]["y"].at[0, -1, 0].set(value)}
    return {**batch, "rows": rows}


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_R2_a_gradient_that_is_not_finite_changes_no_bit(value, accumulate):
    """NaN and infinity, also out of an overflow: weights and optimizer state stay, the step is counted as skipped.

    Mutation: jaxpost/train/step.py: `take = jnp.isfinite(norm) & jnp.isfinite(loss) & some` -> `take = some`
    Mutation: jaxpost/train/step.py: `opt_state=jax.tree.map(keep, opt_state, state.opt_state),` -> `opt_state=opt_state,`
    Mutation: jaxpost/train/step.py: `skipped=(state.skipped + 1) * (1 - took),` -> `skipped=state.skipped,`
    """  # noqa: E501
    optimizer = adamw(1e-2)
    step = make_step(objective, optimizer)
    good = data(accumulate)
    state, _ = step(init_state(network(), optimizer), FROZEN, good)
    before = host((state.trainable, state.opt_state))
    state, metrics = step(state, FROZEN, poisoned(good, value))
    assert_same_bits(host((state.trainable, state.opt_state)), before)
    assert (int(state.step), int(state.updates), int(state.skipped)) == (2, 1, 1)
    assert int(metrics["skipped"]) == 1 and not np.isfinite(metrics["grad_norm"])
    state, metrics = step(state, FROZEN, poisoned(good, value))
    assert (int(state.updates), int(state.skipped)) == (1, 2)
    state, metrics = step(state, FROZEN, good)
    assert (int(state.step), int(state.updates), int(state.skipped)) == (4, 2, 0)
    assert int(metrics["updates"]) == 1 and np.isfinite(norm64(state.trainable))
    assert not np.array_equal(state.trainable[0]["w"], before[0][0]["w"])


def test_R2_a_finite_gradient_of_an_infinite_loss_is_skipped_too():
    """Mutation: jaxpost/train/step.py: `jnp.isfinite(norm) & jnp.isfinite(loss)` -> `jnp.isfinite(norm)`"""

    def infinite(trainable, frozen, rows, totals, key):
        terms, metrics = objective(trainable, frozen, rows, totals, key)
        return {"loss": terms["loss"] + jax.lax.stop_gradient(jnp.inf)}, metrics

    state, metrics = one_step(data(), function=infinite)
    assert np.isfinite(metrics["grad_norm"])
    assert_same_bits(host(state.trainable), host(network()))
    assert int(state.skipped) == 1


def test_D9_a_batch_without_labels_leaves_the_optimizer_alone():
    """Totals of 0: nothing moves, not even Adam's count or a weight under decay.

    Mutation: jaxpost/train/step.py: `jnp.isfinite(norm) & jnp.isfinite(loss) & some` -> `jnp.isfinite(norm) & jnp.isfinite(loss)`
    """  # noqa: E501
    optimizer = adamw(1e-2, weight_decay=0.1)

    def safe(trainable, frozen, rows, totals, key):
        return objective(trainable, frozen, rows, {"rows": jnp.maximum(totals["rows"], 1.0)}, key)

    step = make_step(safe, optimizer)
    state, _ = step(init_state(network(), optimizer), FROZEN, data())
    before = host((state.trainable, state.opt_state))
    state, metrics = step(state, FROZEN, data(masked=6))
    assert (float(metrics["loss"]), float(metrics["grad_norm"])) == (0.0, 0.0)
    assert_same_bits(host((state.trainable, state.opt_state)), before)
    assert (int(state.step), int(state.updates), int(state.skipped)) == (2, 1, 1)


def test_R1_one_compile_a_bucket():
    """Thirty steps over three shapes: three compiles, whatever the order; bad steps are no other program.

    Mutation: jaxpost/train/state.py: `zero = lambda: jnp.zeros((), jnp.int32)` -> `zero = lambda: 0`
    Mutation: jaxpost/train/step.py: `updates=state.updates + took,` -> `updates=state.updates + take * 1.0,`
    """
    traced = []

    def counted(trainable, frozen, rows, totals, key):
        traced.append(rows["x"].shape)
        return objective(trainable, frozen, rows, totals, key)

    optimizer = adamw(1e-2)
    step = make_step(counted, optimizer)
    state = init_state(network(), optimizer)
    shapes = [(1, 6), (2, 3), (1, 9)]
    compiles = []
    for n in range(30):
        batch = data(*shapes[n % 3], seed=n)
        state, _ = step(state, FROZEN, poisoned(batch, np.nan) if n == 17 else batch)
        compiles.append(step._cache_size())
    assert compiles == [1, 2, 3, *[3] * 27]
    assert int(state.step) == 30 and int(state.updates) == 29
    assert len(traced) == sum(1 if accumulate == 1 else traced.count((3, 3)) for accumulate, _ in shapes)


def test_the_state_is_donated_and_nothing_else():
    optimizer = adamw(1e-2)
    state, batch, frozen = init_state(network(), optimizer), data(), jax.tree.map(jnp.array, FROZEN)
    new, _ = make_step(objective, optimizer)(state, frozen, batch)
    old = [leaf for leaf in jax.tree.leaves(state) if leaf.size]
    assert all(leaf.is_deleted() for leaf in old)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((frozen, batch["rows"], new)))
    assert_same_bits(host(frozen), host(FROZEN))


def test_keys_differ_by_step_and_micro_batch():
    """And are a function of the seed: the same run again draws the same numbers.

    Mutation: jaxpost/train/step.py: `key = jax.random.fold_in(state.key, state.step)` -> `key = state.key`
    Mutation: jaxpost/train/step.py: `jax.random.fold_in(key, index))` -> `key)`
    """

    def drawing(trainable, frozen, rows, totals, key):
        terms, _ = objective(trainable, frozen, rows, totals, key)
        place = jnp.arange(12) == rows["index"][0]  # the micro-batch's own place in the sum
        return terms, {"drawn": (jnp.where(place, jax.random.uniform(key), 0.0), jnp.ones(()))}

    def run(seed):
        step = make_step(drawing, optax.sgd(0.0))
        state, drawn = init_state(network(), optax.sgd(0.0), seed), []
        for _ in range(3):
            batch = data(12, 1)
            batch["rows"]["index"] = jnp.arange(12)[:, None]
            state, metrics = step(state, FROZEN, batch)
            drawn += np.asarray(metrics["drawn"][0]).tolist()
        return drawn

    first = run(0)
    assert len(set(first)) == 36
    assert run(0) == first and not set(run(1)) & set(first)


def test_terms_add_up():
    """Several terms: each is reported, their sum is differentiated and reported as total_loss."""

    def two(trainable, frozen, rows, totals, key):
        terms, metrics = objective(trainable, frozen, rows, totals, key)
        decay = sum((layer["w"] ** 2).sum() for layer in trainable) * rows["mask"].sum() / totals["rows"]
        return {"loss": terms["loss"], "decay": decay}, metrics

    batch = data(2)
    state, metrics = one_step(batch, function=two, max_grad_norm=None)
    assert_near(metrics["total_loss"], metrics["loss"] + metrics["decay"], FLOAT32_CPU["same_maths"])
    decayed = [{"w": 2 * layer["w"], "b": 0 * layer["b"]} for layer in network()]
    want = jax.tree.map(lambda p, g, d: p - g - d, network(), whole_gradient(network(), batch), decayed)
    assert_near(state.trainable, want, FLOAT32_CPU["same_maths"])
    assert "total_loss" not in one_step(batch)[1]


def test_a_fresh_state():
    optimizer = adamw(1e-2)
    state = init_state(network(), optimizer, seed=7)
    assert [int(x) for x in (state.step, state.updates, state.skipped)] == [0, 0, 0]
    assert_same_bits(state.trainable, network())
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(optimizer.init(network()))
    assert np.array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(7)))
    assert [field.name for field in dataclasses.fields(state)] == list(state.__dict__)


def test_J16_weights_and_moments_are_float32():
    """Even from a bfloat16 tree: an update of 2^-10 of a weight is kept, where bfloat16 would lose it.

    Mutation: jaxpost/train/state.py: `jnp.array(x, jnp.float32, copy=True)` -> `jnp.array(x, copy=True)`
    """
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), network())
    optimizer = adamw(1e-2)
    state = init_state(narrow, optimizer)
    floats = [x for x in jax.tree.leaves((state.trainable, state.opt_state)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) == 3 * 4 and {x.dtype for x in floats} == {jnp.dtype("float32")}

    def drift(trainable, frozen, rows, totals, key):
        return {"loss": trainable["w"].sum() * rows["mask"].sum() / totals["rows"]}, {}

    step = make_step(drift, optax.sgd(2.0**-10), max_grad_norm=None)
    state = init_state({"w": jnp.ones(1, jnp.bfloat16)}, optax.sgd(2.0**-10))
    for _ in range(4):
        state, _ = step(state, FROZEN, data())
    assert float(state.trainable["w"][0]) == 1.0 - 4 * 2.0**-10
    assert float(jnp.ones(1, jnp.bfloat16)[0] - jnp.bfloat16(2.0**-10)) == 1.0  # what bfloat16 would do


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_tree_that_a_state_is_made_of_stays(dtype):
    """The step deletes its own copy, never the caller's weights: they may be the reference or the base.

    Mutation: jaxpost/train/state.py: `jnp.array(x, jnp.float32, copy=True)` -> `jnp.asarray(x, jnp.float32)`
    """
    tree = jax.tree.map(lambda x: x.astype(dtype), network())
    before = host(tree)
    make_step(objective, optax.sgd(1.0))(init_state(tree, optax.sgd(1.0)), FROZEN, data())
    assert_same_bits(host(tree), before)
