"""The pass over the vocabulary against the definition in float64: every statistic, metric, gradient and chunking."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numerics import assert_near, assert_same_bits, numeric_gradient
from tolerances import FLOAT32_CPU

from jaxpost.adapters import LoraWeight
from jaxpost.models.vocab import METRICS, STATS, TOP_K, over_vocab
from jaxpost.sharding import batch_sharding, make_mesh
from jaxpost.train.programs import Program
from jaxpost.weights import embed

B, T, D, V = 2, 7, 4, 23  # 14 tokens: chunks of 4 and 5 do not divide them


def by_definition(hidden, head, targets, bias=0.0, softcap=None, logit_scale=1.0):
    """Every statistic of every token from the whole logits, in float64."""
    z = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T * logit_scale + np.asarray(bias, np.float64)
    if softcap is not None:
        z = softcap * np.tanh(z / softcap)
    top = z.max(-1)
    lse = top + np.log(np.exp(z - top[..., None]).sum(-1))
    log_p = z - lse[..., None]
    best = np.sort(z, axis=-1)[..., -TOP_K:]
    q = np.exp(best - best.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    return {
        "logp": np.take_along_axis(log_p, np.asarray(targets)[..., None], axis=-1)[..., 0],
        "logsumexp": lse,
        "entropy": -(np.exp(log_p) * log_p).sum(-1),
        "correct": (z.argmax(-1) == np.asarray(targets)).astype(np.float64),
        "top_entropy": -(q * np.log(q)).sum(-1) / np.log(TOP_K),
    }


def arrays(seed, dtype=jnp.float32):
    """hidden, head, bias, targets, scored and one cotangent for each statistic."""
    rng = np.random.default_rng(seed)
    hidden, head = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((B, T, D), (V, D)))
    bias = jnp.asarray(rng.standard_normal(V), jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    scored = jnp.asarray(rng.random((B, T)) < 0.6)
    cotangents = {name: jnp.asarray(rng.standard_normal((B, T)), jnp.float32) for name in STATS}
    return hidden, head, bias, targets, scored, cotangents


@pytest.mark.parametrize(("seed", "options"), [(0, {}), (1, {"softcap": 1.5, "logit_scale": 0.3})])
def test_every_statistic_and_metric(seed, options):
    hidden, head, bias, targets, scored, _ = arrays(seed)
    asked = {"stats": ("logp", "logsumexp"), "metrics": METRICS, "chunk": 5}
    run = jax.jit(functools.partial(over_vocab, bias=bias, **asked, **options))
    want = by_definition(hidden, head, targets, bias, **options)
    found = run(hidden, head, targets, scored)
    assert {x.dtype for x in found.values()} == {jnp.dtype("float32")}
    assert_near(found, {n: np.where(scored, v, 0.0) for n, v in want.items()}, FLOAT32_CPU["same_maths"])
    everywhere = run(hidden, head, targets)
    assert_near(everywhere, want, FLOAT32_CPU["same_maths"])
    assert set(np.unique(everywhere["correct"])) <= {0.0, 1.0}


def weighted(stats, scored, cotangents):
    return sum((jnp.where(scored, cotangents[name], 0.0) * stats[name]).sum() for name in stats)


@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 1.5}, {"logit_scale": 0.3}, {"softcap": 2.0, "logit_scale": 2.5}],
    ids=["plain", "softcap", "scale", "both"],
)
def test_S5_chunked_is_whole(options):
    """Values and the gradients of hidden state, head and bias, of all statistics, for chunks that do and do not divide.

    Mutation: jaxpost/models/vocab.py: `d_bias = d.sum((0, 1)) / static.logit_scale` -> `d_bias = d.sum((0, 1))`
    Mutation: jaxpost/models/vocab.py: `d *= 1.0 - (z / static.softcap) ** 2` -> `d *= 1.0`
    Mutation: jaxpost/models/vocab.py: `return d * static.logit_scale` -> `return d`
    Mutation: jaxpost/models/vocab.py: `d -= ct[..., None] * p * (log_p + entropy)` -> `d -= ct[..., None] * p * log_p`
    """
    hidden, head, bias, targets, scored, cotangents = arrays(3)
    given = [np.asarray(x, np.float64) for x in (hidden, head, bias)]

    def value64(at, x):
        h, w, b = (x if i == at else g for i, g in enumerate(given))
        stats = by_definition(h, w, targets, b, **options)
        return sum((np.where(scored, cotangents[name], 0.0) * stats[name]).sum() for name in STATS)

    want = tuple(numeric_gradient(functools.partial(value64, at), given[at]) for at in range(3))

    def value(hidden, head, bias, chunk):
        stats = over_vocab(hidden, head, targets, scored, bias=bias, stats=STATS, chunk=chunk, **options)
        return weighted(stats, scored, cotangents)

    for chunk in (4, None):
        run = jax.jit(jax.value_and_grad(functools.partial(value, chunk=chunk), argnums=(0, 1, 2)))
        found, gradients = run(hidden, head, bias)
        assert_near(found, value64(0, given[0]), FLOAT32_CPU["same_maths"])
        assert_near(gradients, want, FLOAT32_CPU["same_maths"])


@pytest.mark.parametrize("chunk", [3, 1000])
def test_S5_a_frozen_head_gives_the_same_hidden_gradient(chunk):
    """Made in the forward pass, where a trained head's is made in the backward pass; each statistic by itself too.

    Mutation: jaxpost/models/vocab.py: `parts = [saved[name] * ct[..., None]` -> `parts = [saved[name]`
    """
    hidden, head, bias, targets, scored, cotangents = arrays(4)

    def value(names, hidden, head):
        stats = over_vocab(hidden, head, targets, scored, bias=bias, softcap=3.0, stats=STATS, chunk=chunk)
        return weighted({name: stats[name] for name in names}, scored, cotangents)

    @jax.jit
    def each(hidden, head):
        one = {names: functools.partial(value, names) for names in (STATS, ("entropy",))}
        apart = {names: (jax.grad(f)(hidden, head), jax.grad(f, 1)(hidden, head)) for names, f in one.items()}
        return apart, {names: jax.grad(f, (0, 1))(hidden, head) for names, f in one.items()}

    apart, together = each(hidden, head)
    assert_near(apart, together, FLOAT32_CPU["same_maths"])


def test_S5_a_tied_head_gets_both_gradients():
    """Looked up and projected with the same table: the gradient is the sum of the two uses."""
    _, table, _, targets, scored, cotangents = arrays(5)
    tokens = jnp.roll(targets, 1, axis=1)

    def value(table):
        stats = over_vocab(jnp.tanh(embed(tokens, table)), table, targets, scored, softcap=2.0, chunk=4)
        return weighted(stats, scored, cotangents)

    def value64(table):
        stats = by_definition(np.tanh(table[np.asarray(tokens)]), table, targets, softcap=2.0)
        return (np.where(scored, cotangents["logp"], 0.0) * stats["logp"]).sum()

    assert_near(jax.jit(jax.grad(value))(table), numeric_gradient(value64, table), FLOAT32_CPU["same_maths"])


def test_S5_an_adapter_on_the_head_is_trained():
    hidden, head, _, targets, scored, cotangents = arrays(6)
    rng = np.random.default_rng(6)
    factors = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, D), (V, 2))]

    def value(a, b):
        stats = over_vocab(hidden, LoraWeight(head, a, b, jnp.array([0.5, 2.0])), targets, scored, chunk=4)
        return weighted(stats, scored, cotangents)

    def value64(at, x):
        a, b = (x if i == at else np.asarray(f, np.float64) for i, f in enumerate(factors))
        stats = by_definition(hidden, np.asarray(head, np.float64) + b * [0.5, 2.0] @ a, targets)
        return (np.where(scored, cotangents["logp"], 0.0) * stats["logp"]).sum()

    want = tuple(numeric_gradient(functools.partial(value64, at), factors[at]) for at in range(2))
    assert_near(jax.jit(jax.grad(value, (0, 1)))(*factors), want, FLOAT32_CPU["same_maths"])


def test_S9_large_logits_stay_finite():
    """Logits of +-1e4, the target sure or hopeless; where the answer is known it is exact.

    Mutation: jaxpost/models/vocab.py: `exp = jnp.exp(z - top[..., None])` -> `exp = jnp.exp(z)`
    """
    hidden = jnp.array([[[1e4], [-1e4]]])
    head = jnp.linspace(-1.0, 1.0, V)[:, None]
    targets = jnp.array([[V - 1, V - 1]])

    def value(hidden, head):
        stats = over_vocab(hidden, head, targets, stats=STATS, metrics=("top_entropy",))
        return sum(stats[name].sum() for name in STATS), stats

    gradients, stats = jax.jit(jax.grad(value, (0, 1), has_aux=True))(hidden, head)
    assert_near(stats["logp"], np.array([[0.0, -2e4]]), FLOAT32_CPU["same_maths"])
    assert_near(stats["logsumexp"], np.array([[1e4, 1e4]]), FLOAT32_CPU["same_maths"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradients, stats)))


def test_S9_the_entropy_is_a_float32_sum_on_every_device():
    """It is written as a dot, whose float32 operands accelerators round to 11 or 8 bits unless told otherwise.

    Mutation: jaxpost/models/vocab.py: `jnp.einsum("scv,scv->sc", a, b, precision="highest")` -> `jnp.einsum("scv,scv->sc", a, b)`
    """  # noqa: E501
    hidden, head, _, targets, _, _ = arrays(7)
    run = jax.jit(jax.value_and_grad(lambda h: over_vocab(h, head, targets, stats=("entropy",))["entropy"].sum()))
    dots = [line for line in run.lower(hidden).as_text().splitlines() if "dot_general" in line]
    over_the_vocabulary = [line for line in dots if "batching_dims" in line]
    assert len(over_the_vocabulary) == 2  # the value's and the gradient's
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in over_the_vocabulary)


def test_S9_bfloat16_hidden_states_keep_the_softmax_in_float32():
    """The statistics of the rounded inputs are those of float64, not of rounded logits.

    Mutation: jaxpost/models/vocab.py: `h, weight, preferred_element_type=jnp.float32) * static.logit_scale` -> `h, weight, preferred_element_type=h.dtype) * static.logit_scale`
    """  # noqa: E501
    hidden, head, _, targets, scored, cotangents = arrays(7, jnp.bfloat16)
    hidden = hidden * 8
    found = jax.jit(functools.partial(over_vocab, stats=STATS, chunk=4))(hidden, head, targets)
    want = by_definition(hidden.astype(jnp.float32), head.astype(jnp.float32), targets)
    assert_near(found, {name: want[name] for name in STATS}, FLOAT32_CPU["same_maths"])

    def value(hidden, head):
        return weighted(over_vocab(hidden, head, targets, scored, chunk=4), scored, cotangents)

    gradients = jax.jit(jax.grad(value, (0, 1)))(hidden, head)
    assert {g.dtype for g in gradients} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("scored", ["none", "last of all", "first row"])
def test_what_is_not_scored_is_zero_and_has_no_gradient(scored):
    """Chunks without a scored token are skipped; NaN there is not seen.

    Mutation: jaxpost/models/vocab.py: `values = {name: jnp.where(scored, found[name], 0.0)` -> `values = {name: found[name]`
    """  # noqa: E501
    hidden, head, _, targets, _, _ = arrays(8)
    mask = np.zeros((B, T), bool)
    mask[{"none": [], "last of all": -1, "first row": 0}[scored], -1 if scored == "last of all" else slice(None)] = True
    hidden = jnp.where(mask[..., None], hidden, 1e30)

    def value(hidden, head):
        stats = over_vocab(hidden, head, targets, jnp.asarray(mask), stats=STATS, metrics=METRICS, chunk=4)
        return sum(stats[name].sum() for name in STATS), stats

    (d_hidden, d_head), stats = jax.jit(jax.grad(value, (0, 1), has_aux=True))(hidden, head)
    frozen, _ = jax.jit(jax.grad(value, has_aux=True))(hidden, head)
    for found in (*stats.values(), d_hidden, frozen):
        assert not np.asarray(found)[~mask].any()
        assert np.isfinite(found).all()
    assert np.isfinite(d_head).all() and bool(np.any(d_head)) == bool(mask.any())
    want = by_definition(np.where(mask[..., None], hidden, 0.0), head, targets)
    assert_near(stats["logp"], np.where(mask, want["logp"], 0.0), FLOAT32_CPU["same_maths"])


def test_metrics_have_no_gradient():
    """Of a loss that is a metric, the gradient is exactly zero, whether the head is trained or frozen."""
    hidden, head, _, targets, scored, _ = arrays(9)

    def value(hidden, head):
        stats = over_vocab(hidden, head, targets, scored, metrics=METRICS, chunk=4)
        return stats["entropy"].sum() + stats["top_entropy"].sum() + stats["correct"].sum()

    for asked in (0, 1, (0, 1)):
        for gradient in jax.tree.leaves(jax.jit(jax.grad(value, asked))(hidden, head)):
            assert not np.any(gradient)


def test_a_statistic_that_is_also_a_metric_comes_once_with_its_gradient():
    hidden, head, _, targets, scored, _ = arrays(9)
    both = lambda h: over_vocab(h, head, targets, scored, stats=("logp", "entropy"), metrics=("entropy",))  # noqa: E731
    assert sorted(both(hidden)) == ["entropy", "logp"]
    assert np.any(jax.grad(lambda h: both(h)["entropy"].sum())(hidden))


def test_unknown_names_are_refused():
    hidden, head, _, targets, _, _ = arrays(0)
    for asked in ({"stats": ("logp", "perplexity")}, {"metrics": ("accuracy",)}):
        with pytest.raises(ValueError, match="perplexity|accuracy"):
            over_vocab(hidden, head, targets, **asked)


def test_every_chunk_gives_the_same_values():
    """Each token's numbers come from one row of logits: the chunk changes no more than the rounding of the product."""
    hidden, head, _, targets, scored, _ = arrays(10)
    runs = [over_vocab(hidden, head, targets, scored, chunk=chunk)["logp"] for chunk in (1, 3, 14, None)]
    for run in runs[1:]:
        assert_near(run, runs[0], FLOAT32_CPU["same_maths"])
    assert_same_bits(runs[2], runs[3])


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 4)])
def test_many_chunks_on_a_mesh(shape):
    """Rows cut over data and fsdp, each part sorted and chunked by itself; the head cut over tensor."""
    rng = np.random.default_rng(11)
    given = (
        jnp.asarray(rng.standard_normal((8, T, D)), jnp.float32),
        jnp.asarray(rng.standard_normal((24, D)), jnp.float32),
    )
    targets, scored = jnp.asarray(rng.integers(0, 24, (8, T)), jnp.int32), jnp.asarray(rng.random((8, T)) < 0.5)
    weights = jnp.asarray(rng.standard_normal((8, T)), jnp.float32)

    def value(hidden, head, targets, scored, weights):
        logps = over_vocab(hidden, head, targets, scored, chunk=5)["logp"]
        return (weights * logps).sum(), logps

    function = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))
    want = function(*given, targets, scored, weights)
    mesh = make_mesh(shape)
    rows, table = batch_sharding(mesh), NamedSharding(mesh, P("tensor", "fsdp"))
    there = [jax.device_put(x, rows) for x in (given[0], targets, scored, weights)]
    arguments = there[0], jax.device_put(given[1], table), *there[1:]
    found = Program(function=function, arguments=arguments, mesh=mesh).compile().call(*arguments)
    assert_near(found, want, FLOAT32_CPU["mesh"])


def test_the_top_entropy_of_a_small_vocabulary_is_of_all_of_it():
    """Uniform over 8 tokens it is 1, its maximum.

    Mutation: jaxpost/models/vocab.py: `/ jnp.log(size)` -> `/ jnp.log(TOP_K)`
    """
    hidden, targets = jnp.ones((1, 3, 4)), jnp.zeros((1, 3), jnp.int32)
    found = over_vocab(hidden, jnp.zeros((8, 4)), targets, metrics=("top_entropy",))["top_entropy"]
    assert_near(found, np.ones((1, 3)), FLOAT32_CPU["same_maths"])
