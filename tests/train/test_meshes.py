"""Many devices are one: loss and every gradient leaf on every mesh, and whole steps whose state lies on the mesh."""

import functools

import jax
import numpy as np
import optax
import pytest
from decoders import GLOBAL, LOCAL, PLAIN, adapted, batch, gemma, llama, params, random_rows
from numerics import assert_near, host
from tolerances import FLOAT32_CPU

from jaxpost.objectives import adapter_policy, full_policy, make_score, sft
from jaxpost.sharding import batch_sharding, make_mesh, replicated, tree_shardings
from jaxpost.train import adamw, init_state, make_step
from jaxpost.train.programs import Program

MESHES = [(8, 1, 1), (1, 8, 1), (1, 4, 2), (1, 2, 4), (2, 2, 2)]
# Sizes that the axes divide; two key heads are fewer than `tensor` = 4.
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
CONFIGS = {"llama": llama([PLAIN] * 2, **SIZES), "gemma": gemma([LOCAL, GLOBAL] * 2, **SIZES)}
KEY = jax.random.key(0)


@functools.cache
def problem(name, kind):
    """Objective, what is trained, what is frozen, rows and totals."""
    config = CONFIGS[name]
    tree, rows = params(config), random_rows(config, 8, 12)
    laid = batch(rows)["totals"]
    if kind == "full":
        return sft(config, full_policy, metrics=()), tree, {}, rows, laid
    found = adapted(tree, rank=4)
    return sft(config, adapter_policy, metrics=()), found.factors, {"params": tree, "spec": found.spec}, rows, laid


def value_and_grad(objective):
    return jax.jit(jax.value_and_grad(lambda t, f, r, n: objective(t, f, r, n, KEY)[0]["loss"]))


@functools.cache
def on_one_device(name, kind):
    objective, *given = problem(name, kind)
    return value_and_grad(objective)(*given)


def run(function, mesh, *given):
    return Program(function=function, arguments=given, mesh=mesh).compile().call(*given)


def placed(tree, mesh, config):
    return jax.device_put(tree, tree_shardings(tree, mesh, config.num_kv_heads))


@pytest.mark.parametrize("shape", MESHES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_R6b_loss_and_every_gradient_on_every_mesh(name, kind, shape):
    """A right loss proves nothing: XLA has given wrong gradients with it where the scanned state was not pinned.

    Mutation: jaxpost/models/decoder.py: `h = constrain_batch(run(layer, h, ropes[kind.rope], mask))` -> `h = run(layer, h, ropes[kind.rope], mask)`
    """  # noqa: E501
    objective, trainable, frozen, rows, totals = problem(name, kind)
    mesh, config = make_mesh(shape), CONFIGS[name]
    found = run(
        value_and_grad(objective),
        mesh,
        placed(trainable, mesh, config),
        placed(frozen, mesh, config),
        jax.device_put(rows, batch_sharding(mesh)),
        jax.device_put(totals, replicated(mesh)),
    )
    assert_near(found, on_one_device(name, kind), FLOAT32_CPU["mesh"])


def test_rows_that_the_mesh_does_not_divide_are_on_every_device():
    """Six rows on four parts of the batch axes: the same gradients, without a constraint on the rows."""
    objective, trainable, frozen, rows, totals = problem("llama", "lora")
    rows = {name: leaf[:6] for name, leaf in rows.items()}
    mesh, config = make_mesh((2, 2, 2)), CONFIGS["llama"]
    function, whole = value_and_grad(objective), replicated(mesh)
    there = placed(trainable, mesh, config), placed(frozen, mesh, config)
    found = run(function, mesh, *there, jax.device_put(rows, whole), jax.device_put(totals, whole))
    assert_near(found, function(trainable, frozen, rows, totals), FLOAT32_CPU["mesh"])


def spread(data, mesh):
    """A batch on the mesh."""
    return {
        "rows": jax.device_put(data["rows"], batch_sharding(mesh, leading=1)),
        "totals": jax.device_put(data["totals"], replicated(mesh)),
    }


def test_S3_devices_share_one_token_mean():
    """Rows of unequal length: the loss is the mean over all tokens of the global batch, micro-batches included.

    Mutation: jaxpost/objectives/sft.py: `values.sum() / jnp.maximum(totals["tokens"], 1.0)` -> `values.sum() / jnp.maximum(count, 1.0) / 2.0`
    """  # noqa: E501
    config = CONFIGS["llama"]
    tree, rows = params(config), random_rows(config, 16, 12, seed=3)
    found, optimizer = adapted(tree, rank=4), adamw(1e-2)
    frozen = {"params": tree, "spec": found.spec}
    logps = np.asarray(make_score(config, adapter_policy)(found.factors, frozen, rows)["logp"], np.float64)
    counts = rows["loss_mask"].sum(1)
    assert counts.max() >= 3 * counts.min()
    mesh, state = make_mesh((2, 2, 2)), init_state(found.factors, optimizer)
    places = tree_shardings(state, mesh, config.num_kv_heads)
    step = make_step(sft(config, adapter_policy), optimizer, state_shardings=places)
    given = jax.device_put(state, places), placed(frozen, mesh, config), spread(batch(rows, 2), mesh)
    executable = Program(function=step, arguments=given, mesh=mesh).compile().call
    state, metrics = executable(*given)
    assert_near(metrics["loss"], -logps.sum() / counts.sum(), FLOAT32_CPU["mesh"])
    again, _ = executable(state, *given[1:])  # the new state lies as the old one: the same executable takes it
    assert int(again.step) == 2 and jax.tree.map(lambda x: x.sharding, again.trainable) == places.trainable


def test_a_step_on_a_mesh_is_the_step_on_one_device():
    """Loss, gradient norm and the weights after the step, with clipping."""
    config, optimizer = CONFIGS["llama"], optax.sgd(1.0)
    tree, rows = params(config), batch(random_rows(config, 16, 12, seed=4), 2)
    found = adapted(tree, rank=4)
    frozen, objective = {"params": tree, "spec": found.spec}, sft(config, adapter_policy)
    alone, metrics = make_step(objective, optimizer, max_grad_norm=0.1)(
        init_state(found.factors, optimizer), frozen, rows
    )
    mesh, state = make_mesh((4, 2, 1)), init_state(found.factors, optimizer)
    places = tree_shardings(state, mesh, config.num_kv_heads)
    step = make_step(objective, optimizer, max_grad_norm=0.1, state_shardings=places)
    there, theirs = run(step, mesh, jax.device_put(state, places), placed(frozen, mesh, config), spread(rows, mesh))
    kept = ("loss", "grad_norm")
    assert_near({k: theirs[k] for k in kept}, {k: metrics[k] for k in kept}, FLOAT32_CPU["mesh"])
    assert_near(host(there.trainable), host(alone.trainable), FLOAT32_CPU["mesh"])
