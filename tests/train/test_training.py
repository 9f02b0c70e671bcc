"""The step on a decoder and its adapters: what is trained, what stays, and that cutting a batch changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from decoders import LOCAL, PLAIN, adapted, batch, documents, gemma, llama, params, random_rows, row, stack
from numerics import assert_near, assert_same_bits, host
from tolerances import FLOAT32_CPU

from jaxpost import adapters
from jaxpost.adapters import Adapters, bind
from jaxpost.data.batches import BatchPlan
from jaxpost.data.examples import Example
from jaxpost.losses import nll
from jaxpost.objectives import adapter_policy, full_policy, make_score, sft
from jaxpost.train import adamw, init_state, make_step
from jaxpost.weights import linear

CONFIG = llama([PLAIN])
TREE = params(CONFIG)


@functools.cache
def lora_step(config=CONFIG, rate=1e-2):
    return make_step(sft(config, adapter_policy), adamw(rate))


def fresh(config=CONFIG, rate=1e-2, **options):
    """A state of a new adapter, and what is frozen."""
    tree = params(config)
    made = adapters.init(jax.random.key(0), tree, rank=3, alpha=6.0, **options)
    return init_state(made.factors, adamw(rate)), {"params": tree, "spec": made.spec}


def uneven(count, length=14):
    """Rows whose numbers of tokens differ by a factor of ten."""
    sizes = [2 + (length - 2) * (n % 4) // 3 for n in range(count)]
    return stack([row([part], length) for part in documents(CONFIG, sizes, seed=count)])


def test_S1_cuts_of_a_batch_agree():
    """8x1 = 2x4 = 1x8 (accumulate x micro) with unequal rows: loss and gradient norm within 1e-6.

    Mutation: jaxpost/objectives/sft.py: `values.sum() / jnp.maximum(totals["tokens"], 1.0)` -> `values.sum() / jnp.maximum(count, 1.0) / 2.0`
    """  # noqa: E501
    rows = uneven(8)
    found = adapted(TREE)
    step = make_step(sft(CONFIG, adapter_policy), optax.sgd(1.0))
    results = {}
    for accumulate in (8, 2, 1):
        state = init_state(found.factors, optax.sgd(1.0))
        state, metrics = step(state, {"params": TREE, "spec": found.spec}, batch(rows, accumulate))
        results[accumulate] = {name: metrics[name] for name in ("loss", "grad_norm")}, state.trainable
    for other in (8, 2):
        assert_near(results[other][0], results[1][0], FLOAT32_CPU["accumulation"])
        assert_near(results[other][1], results[1][1], FLOAT32_CPU["same_maths"])


def test_S2_the_last_part_batch_uses_its_own_tokens():
    """Five documents, four a batch: the second batch is one document and padding; its loss is that document's mean.

    Mutation: jaxpost/objectives/sft.py: `values.sum() / jnp.maximum(totals["tokens"], 1.0)` -> `values.sum() / (rows["tokens"].size / 4)`
    """  # noqa: E501
    parts = documents(CONFIG, [9, 4, 14, 6, 11])
    examples = [Example(ids=p, trained=np.ones(len(p), bool), source=n) for n, p in enumerate(parts, start=1)]
    plan = BatchPlan(examples=examples, batch_size=4, micro_batch_size=2, max_length=14, packing=False, seed=0)
    score = make_score(CONFIG, adapter_policy)
    state, frozen = fresh()
    seen = []
    for n in range(2):
        rows, totals, info = plan.batch(n)
        flat = {name: leaf.reshape(4, 14) for name, leaf in rows.items()}
        logps = np.asarray(score(state.trainable, frozen, flat)["logp"], np.float64)
        state, metrics = lora_step()(state, frozen, {"rows": rows, "totals": totals})
        assert_near(metrics["loss"], -logps.sum() / info.trained_tokens, FLOAT32_CPU["same_maths"])
        seen.append(info.trained_tokens)
    assert sum(seen) == sum(len(p) - 1 for p in parts) and seen[1] < seen[0]


def test_L3_only_the_factors_move():
    """After one step B is not 0 and A is as it was, after two A has moved; the base keeps every bit.

    Mutation: jaxpost/train/step.py: `trainable = optax.apply_updates(state.trainable, updates)` -> `trainable = state.trainable`
    Mutation: jaxpost/adapters/init.py: `{"lora_A": a * on[..., None, None],` -> `{"lora_A": 0 * a * on[..., None, None],`
    """  # noqa: E501
    state, frozen = fresh()
    before, factors = host(frozen), [host(state.trainable)]
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(leaf.shape for leaf in moments) == sorted(
        2 * [leaf.shape for leaf in jax.tree.leaves(state.trainable)]
    )
    for _ in range(2):
        state, _ = lora_step()(state, frozen, batch(uneven(4), 2))
        factors.append(host(state.trainable))
    for path in factors[0]:
        a, b = ([f[path][name] for f in factors] for name in ("lora_A", "lora_B"))
        assert not b[0].any() and b[1].any() and not np.array_equal(b[1], b[2])
        assert np.array_equal(a[0], a[1]) and not np.array_equal(a[1], a[2])
    assert_same_bits(host(frozen), before)


def test_L4_factors_are_arguments_of_the_compiled_step():
    """Other factors, another loss from the same executable; and every factor has a gradient.

    Mutation: jaxpost/objectives/policy.py: `Adapters(trainable, frozen["spec"])` -> `Adapters(jax.lax.stop_gradient(trainable), frozen["spec"])`
    Mutation: jaxpost/adapters/lora.py: `return linear(x, self.base) + linear(low, self.lora_B)` -> `return linear(x, self.base)`
    """  # noqa: E501
    optimizer = optax.sgd(1.0)
    step = make_step(sft(CONFIG, adapter_policy), optimizer, max_grad_norm=None)
    rows, losses, spec = batch(uneven(4), 2), [], adapted(TREE).spec
    state = init_state(adapted(TREE).factors, optimizer)
    executable = step.lower(state, {"params": TREE, "spec": spec}, rows).compile()
    for seed in (1, 2):
        found = adapted(TREE, seed=seed)
        state, metrics = executable(init_state(found.factors, optimizer), {"params": TREE, "spec": found.spec}, rows)
        losses.append(float(metrics["loss"]))
        moved = jax.tree.map(
            lambda new, old: np.abs(np.asarray(new) - np.asarray(old)).max(), state.trainable, found.factors
        )
        assert all(leaf > 0 for leaf in jax.tree.leaves(moved))
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_J6_factors_and_moments_are_float32_on_any_base(dtype):
    """Before and after a step on a bfloat16 base, whose activations are bfloat16.

    Mutation: jaxpost/train/state.py: `jnp.array(x, jnp.float32, copy=True)` -> `jnp.array(x, jnp.bfloat16, copy=True)`
    """
    base = params(CONFIG, dtype=dtype)
    made = adapters.init(jax.random.key(0), base, rank=3)
    state = init_state(made.factors, adamw(1e-2))
    state, metrics = lora_step()(state, {"params": base, "spec": made.spec}, batch(uneven(4), 2))
    floats = [x for x in jax.tree.leaves((state.trainable, state.opt_state)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    assert np.isfinite(metrics["loss"]) and metrics["loss"].dtype == jnp.float32
    assert all(np.any(f["lora_B"]) for f in state.trainable.values())


def test_L16_dropout_differs_by_step_and_is_off_in_evaluation():
    """The same batch at a learning rate of 0: another loss every step, the same again from the same seed.

    Mutation: jaxpost/train/step.py: `key = jax.random.fold_in(state.key, state.step)` -> `key = state.key`
    Mutation: jaxpost/objectives/policy.py: `Adapters(trainable, frozen["spec"]), key)` -> `Adapters(trainable, frozen["spec"]), None)`
    Mutation: jaxpost/objectives/score.py: `params = policy(trainable, frozen, None)` -> `params = policy(trainable, frozen, jax.random.key(0))`
    """  # noqa: E501
    found = adapted(TREE, dropout=0.5)
    plain = Adapters(found.factors, adapted(TREE).spec)
    step = lora_step(rate=0.0)
    rows = uneven(4)

    def losses(seed):
        state, out = init_state(found.factors, adamw(0.0), seed), []
        for _ in range(3):
            state, metrics = step(state, {"params": TREE, "spec": found.spec}, batch(rows, 2))
            out.append(float(metrics["loss"]))
        return out

    first = losses(0)
    assert len(set(first)) == 3 and losses(0) == first and not set(losses(1)) & set(first)
    score = make_score(CONFIG, adapter_policy)
    with_rate, without = (score(f.factors, {"params": TREE, "spec": f.spec}, rows) for f in (found, plain))
    assert_same_bits(with_rate, without)
    assert float(-with_rate["logp"].sum() / rows["loss_mask"].sum()) not in first


def test_all_weights_can_be_trained():
    """A tied, soft-capped model in full: every leaf moves, and the loss falls on its own batch."""
    config = gemma([LOCAL])
    step = make_step(sft(config, full_policy, remat="full"), adamw(1e-2))
    state, losses = init_state(params(config), adamw(1e-2)), []
    before, rows = host(state.trainable), batch(random_rows(config, 4, 14))
    for _ in range(8):
        state, metrics = step(state, {}, rows)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert not any(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.trainable), strict=True)
    )


def test_any_model_can_be_trained():
    """Adapters, losses and the step on a classifier, a tree and a function that the library knows nothing of."""
    rng = np.random.default_rng(0)
    tree = {
        "up": {"weight": jnp.asarray(rng.standard_normal((16, 4)), jnp.float32)},
        "out": jnp.asarray(rng.standard_normal((3, 16)), jnp.float32),
    }
    x = jnp.asarray(rng.standard_normal((2, 20, 4)), jnp.float32)
    y = (x[..., 0] > 0).astype(jnp.int32) + (x[..., 1] > 0)

    def objective(factors, frozen, rows, totals, key):
        bound = bind(frozen["params"], Adapters(factors, frozen["spec"]), key)
        logits = linear(jnp.tanh(linear(rows["x"], bound["up"]["weight"])), bound["out"])
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits), rows["y"][:, None], axis=-1)[:, 0]
        return {"loss": nll(logps).sum() / totals["rows"]}, {
            "right": ((logits.argmax(-1) == rows["y"]).sum(), len(rows["y"]))
        }

    made = adapters.init(jax.random.key(0), tree, rank=2, dropout=0.1)
    state, step = init_state(made.factors, adamw(3e-2)), make_step(objective, adamw(3e-2))
    data = {"rows": {"x": x, "y": y}, "totals": {"rows": np.float32(40)}}
    metrics = {}
    for _ in range(60):
        state, metrics = step(state, {"params": tree, "spec": made.spec}, data)
    right, count = metrics["right"]
    assert float(count) == 40 and float(right / count) > 0.9
