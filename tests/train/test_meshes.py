"""Many devices are one: loss and every gradient leaf on every mesh, and whole steps whose state lies on the mesh."""

import functools

import jax
import numpy as np
import optax
import pytest
from decoders import GLOBAL, LOCAL, PLAIN, adapted, batch, gemma, llama, params, random_rows
from numerics import assert_near, host
from tolerances import FLOAT32_CPU

from jaxpost.adapters import Adapters, bind
from jaxpost.objectives import adapter_policy, make_score, sft
from jaxpost.sharding import batch_sharding, make_mesh, replicated, tree_shardings
from jaxpost.train import init_state, make_step
from jaxpost.train.programs import Program

MESHES = [(8, 1, 1), (1, 8, 1), (1, 4, 2), (1, 2, 4), (2, 2, 2)]
# Sizes that the axes divide; two key heads are fewer than `tensor` = 4.
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
CONFIGS = {"llama": llama([PLAIN] * 2, **SIZES), "gemma": gemma([LOCAL, GLOBAL] * 2, **SIZES)}
KEY = jax.random.key(0)


def everything(trainable, frozen, key):
    """A policy of trained factors on trained weights."""
    return bind(trainable["params"], Adapters(trainable["factors"], frozen["spec"]), key)


@functools.cache
def problem(name, kind):
    """Objective, what is trained, what is frozen, rows and totals."""
    config = CONFIGS[name]
    tree, rows = params(config), random_rows(config, 8, 12)
    found, totals = adapted(tree, rank=4), batch(rows)["totals"]
    if kind == "all":
        trainable = {"params": tree, "factors": found.factors}
        return sft(config, everything, metrics=()), trainable, {"spec": found.spec}, rows, totals
    return sft(config, adapter_policy, metrics=()), found.factors, {"params": tree, "spec": found.spec}, rows, totals


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


@pytest.mark.parametrize(
    ("kind", "shape"),
    [*(("all", shape) for shape in MESHES), ("lora", (2, 2, 2))],  # a frozen base and head are another program
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)),
)
@pytest.mark.parametrize("name", CONFIGS)
def test_R6b_loss_and_every_gradient_on_every_mesh(name, kind, shape):
    """A right loss proves nothing: XLA has given wrong gradients with it (see R6b in tests/test_sharding.py).

    Mutation: jaxpost/models/vocab.py: `(x.reshape(shards, tokens, *x.shape[2:]), self.order)` -> `(x.reshape(tokens, shards, *x.shape[2:]).swapaxes(0, 1), self.order)`
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
    """Eight rows on three parts of the batch axes: the same gradients, without a constraint on the rows."""
    objective, trainable, frozen, rows, totals = problem("llama", "lora")
    mesh, config = make_mesh((3, 1, 2), jax.devices()[:6]), CONFIGS["llama"]
    there = placed(trainable, mesh, config), placed(frozen, mesh, config)
    found = run(value_and_grad(objective), mesh, *there, *jax.device_put((rows, totals), replicated(mesh)))
    assert_near(found, on_one_device("llama", "lora"), FLOAT32_CPU["mesh"])


def spread(data, mesh):
    """A batch on the mesh."""
    return {
        "rows": jax.device_put(data["rows"], batch_sharding(mesh, leading=1)),
        "totals": jax.device_put(data["totals"], replicated(mesh)),
    }


def test_S3_devices_share_one_token_mean():
    """Rows of unequal length: the loss is the mean over all tokens of the global batch, micro-batches included.

    And the whole step, clipped, is that of one device; its state lies as the old one, so that it goes on.

    Mutation: jaxpost/objectives/sft.py: `values.sum() / jnp.maximum(totals["tokens"], 1.0)` -> `values.sum() / jnp.maximum(count, 1.0) / 2.0`
    """  # noqa: E501
    config, optimizer = CONFIGS["llama"], optax.sgd(1.0)
    tree, rows = params(config), random_rows(config, 16, 12, seed=3)
    found = adapted(tree, rank=4)
    frozen, objective = {"params": tree, "spec": found.spec}, sft(config, adapter_policy, metrics=())
    logps = np.asarray(make_score(config, adapter_policy)(found.factors, frozen, rows)["logp"], np.float64)
    counts = rows["loss_mask"].sum(1)
    assert counts.max() >= 3 * counts.min()

    data, state = batch(rows, 2), init_state(found.factors, optimizer)
    mesh = make_mesh((2, 2, 2))
    places = tree_shardings(state, mesh, config.num_kv_heads)
    step = make_step(objective, optimizer, max_grad_norm=0.1, state_shardings=places)
    given = jax.device_put(state, places), placed(frozen, mesh, config), spread(data, mesh)
    executable = Program(function=step, arguments=given, mesh=mesh).compile().call
    there, metrics = executable(*given)
    assert_near(metrics["loss"], -logps.sum() / counts.sum(), FLOAT32_CPU["mesh"])

    state = init_state(found.factors, optimizer)  # the first may lie in buffers that were donated
    alone, want = make_step(objective, optimizer, max_grad_norm=0.1)(state, frozen, data)
    kept = ("loss", "grad_norm")
    assert_near({k: metrics[k] for k in kept}, {k: want[k] for k in kept}, FLOAT32_CPU["mesh"])
    assert_near(host(there.trainable), host(alone.trainable), FLOAT32_CPU["mesh"])
    again, _ = executable(there, *given[1:])
    assert int(again.step) == 2 and jax.tree.map(lambda x: x.sharding, again.trainable) == places.trainable
