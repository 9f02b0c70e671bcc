"""The NNX view: state and core tree both ways, whole or adapter training, with remat and a frozen base."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from numerics import assert_near, assert_same_bits
from refusals import refused
from tolerances import FLOAT32_CPU

import jaxpost
from jaxpost.adapters import Adapters
from jaxpost.flax import NNXModel, lora_factors, to_model, to_nnx
from jaxpost.models.config import abstract_params
from jaxpost.models.decoder import hidden_states
from jaxpost.models.families import config_from_hf

SAME = FLOAT32_CPU["same_maths"]


def batch(model, seed, rows=2, length=19):
    tokens = tiny.tokens({"vocab_size": model.config.vocab_size}, seed, rows=rows, length=length)
    segments = np.ones_like(tokens)
    segments[0, 7:] = 2
    segments[-1, 15:] = 0
    return jnp.asarray(tokens), jnp.asarray(segments)


def bound_model(tmp_path, family="gemma2", **options):
    model = jaxpost.load(tiny.make(tmp_path / "base", family, seed=2, num_hidden_layers=2))
    adapters = jaxpost.adapters.init(jax.random.key(0), model, rank=3, **options)
    return model, adapters


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_the_functions_are_the_core_functions(tmp_path, family):
    """Every method gives the core's numbers, bit for bit, and the view holds the model's own arrays.

    Mutation: jaxpost/flax/nnx.py: `token_logprobs = calls.token_logprobs` -> `token_logprobs = calls.hidden_states`
    """  # noqa: E501
    model = jaxpost.load(tiny.make(tmp_path, family, seed=1, num_hidden_layers=2))
    view = to_nnx(model)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, view.params, model.params)))
    tokens, segments = batch(model, 1)
    given = (tokens, segments, jnp.arange(tokens.size, dtype=jnp.int32).reshape(tokens.shape) % 23)
    half = {"dtype": jnp.bfloat16, "remat": "full"}

    @nnx.jit
    def ours(view):
        return view(*given), view.token_logprobs(*given, **half), view.hidden_states(*given, **half), view(tokens)

    @jax.jit
    def core(params):
        logps = jaxpost.token_logprobs(model.config, params, *given, **half)
        hidden = hidden_states(model.config, params, *given, **half)
        plain = jaxpost.forward(model.config, params, tokens)
        return jaxpost.forward(model.config, params, *given), logps, hidden, plain

    want = core(model.params)
    assert want[2].dtype == jnp.bfloat16 and not jnp.array_equal(want[0], want[3])
    assert_near(ours(view), want, SAME)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_state_and_tree_both_ways(tmp_path, family):
    """The state's paths are the core's; a state merged is the tree; a tree's state goes into another view."""
    model = jaxpost.load(tiny.make(tmp_path, family, seed=4))
    view = NNXModel(model.config, rngs=nnx.Rngs(1))
    assert jax.tree.structure(view.params) == jax.tree.structure(model.params)
    graph, state = nnx.split(view)
    want = ["/".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in keys)
            for keys, _ in jax.tree_util.tree_leaves_with_path(model.params)]  # fmt: skip
    assert sorted("/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)) == sorted(want)
    assert_same_bits(nnx.merge(graph, state).params, view.params)
    nnx.update(view, nnx.state(NNXModel(model.config, model.params)))
    assert_same_bits(view.params, model.params)


def test_random_parameters(tmp_path):
    config = jaxpost.load(tiny.make(tmp_path, "qwen2")).config
    views = [NNXModel(config, rngs=nnx.Rngs(seed)) for seed in (0, 0, 1)]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), views[0].params)
    assert shapes == abstract_params(config)
    assert_same_bits(views[0].params, views[1].params)
    assert not jnp.array_equal(views[0].params["lm_head"]["weight"], views[2].params["lm_head"]["weight"])
    refused(lambda: NNXModel(config), "params", "rngs")
    refused(lambda: NNXModel(config, views[0].params, rngs=nnx.Rngs(0)), "params", "rngs")


def test_training_with_an_optimizer(tmp_path):
    """nnx.Optimizer, nnx.value_and_grad, nnx.jit: the loss falls, gradients are the core's, the folder is the view's.

    Mutation: jaxpost/flax/back.py: `return view.params` -> `return jax.tree.map(lambda x: 0 * x, view.params)`
    """
    model = jaxpost.load(tiny.make(tmp_path / "base", "qwen3", seed=3, num_hidden_layers=2, use_sliding_window=False))
    view = to_nnx(model)
    tokens, segments = batch(model, 3)

    def loss(view):
        return -view.token_logprobs(tokens, segments).mean()

    def core_loss(params):
        return -jaxpost.token_logprobs(model.config, params, tokens, segments).mean()

    gradients = nnx.merge(nnx.graphdef(view), nnx.jit(nnx.grad(loss))(view)).params
    assert_near(gradients, jax.jit(jax.grad(core_loss))(model.params), SAME)
    optimizer = nnx.Optimizer(view, optax.adamw(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(view, optimizer):
        value, gradients = nnx.value_and_grad(loss)(view)
        optimizer.update(view, gradients)
        return value

    losses = [float(step(view, optimizer)) for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    jaxpost.save(tmp_path / "out", to_model(view, model))
    again = jaxpost.load(tmp_path / "out")
    assert_same_bits(again.params, view.params)
    assert np.abs(again.params["norm"]["weight"] - model.params["norm"]["weight"]).max() > 1e-3


def test_adapters_alone_are_trained_on_a_frozen_base(tmp_path, remat="full"):
    """Gradients of the factors are the core's, with remat by layer; base and scale stay, and PEFT gets the adapter.

    Mutation: jaxpost/flax/nnx.py: `nnx.LoRAParam(leaf)` -> `nnx.Param(leaf)`
    """
    model, adapters = bound_model(tmp_path)
    view = to_nnx(model, jaxpost.bind(model.params, adapters))
    tokens, segments = batch(model, 2)
    wrt = nnx.DiffState(0, nnx.LoRAParam)

    def loss(view):
        return -view.token_logprobs(tokens, segments, remat=remat).mean()

    def core_loss(factors):
        bound = jaxpost.bind(model.params, Adapters(factors, adapters.spec))
        return -jaxpost.token_logprobs(model.config, bound, tokens, segments, remat=remat).mean()

    optimizer = nnx.Optimizer(view, optax.adam(1e-2), wrt=nnx.LoRAParam)

    @nnx.jit
    def step(view, optimizer):
        value, gradients = nnx.value_and_grad(loss, argnums=wrt)(view)
        optimizer.update(view, gradients)
        return value, gradients

    value, gradients = step(view, optimizer)
    _, rest = nnx.split_state(nnx.state(view), nnx.LoRAParam, ...)
    found = lora_factors(nnx.merge(nnx.graphdef(view), gradients, rest))
    assert_near(found, jax.jit(jax.grad(core_loss))(adapters.factors), SAME)
    losses = [float(value), *(float(step(view, optimizer)[0]) for _ in range(5))]
    assert losses[-1] < losses[0] - 0.1
    trained = Adapters(lora_factors(view), adapters.spec)
    assert_same_bits(view.params, jaxpost.bind(model.params, trained))  # base, scale and masks as they were
    jaxpost.save_adapter(tmp_path / "adapter", trained, model)
    assert_same_bits(jaxpost.load_adapter(tmp_path / "adapter", model).factors, trained.factors)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_plain_jax_transforms_work_on_the_split_state(tmp_path, remat):
    """jax.grad over a part of the state, merged inside, and a frozen view closed over, with remat by layer.

    With NNX's own transforms inside both end in a TraceContextError.
    """
    model, adapters = bound_model(tmp_path, "llama")
    view = to_nnx(model, jaxpost.bind(model.params, adapters))
    tokens, segments = batch(model, 5)
    graph, factors, rest = nnx.split(view, nnx.LoRAParam, ...)

    def merged(factors):
        return nnx.merge(graph, factors, rest).token_logprobs(tokens, segments, remat=remat).sum()

    def core(factors):
        bound = jaxpost.bind(model.params, Adapters(factors, adapters.spec))
        return jaxpost.token_logprobs(model.config, bound, tokens, segments, remat=remat).sum()

    found = lora_factors(nnx.merge(graph, jax.jit(jax.grad(merged))(factors), rest))
    assert_near(found, jax.jit(jax.grad(core))(adapters.factors), SAME)
    closed = lambda scale: (scale * view.hidden_states(tokens, segments, remat=remat)).sum()  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.grad(closed))(2.0), jax.jit(closed)(1.0), rtol=1e-3, atol=1e-3)


def test_kinds_of_variables(tmp_path):
    """Factors, weights, and what no gradient is for."""
    model, adapters = bound_model(tmp_path, "llama", targets="q_proj")
    view = to_nnx(model, jaxpost.bind(model.params, adapters))
    kinds = {path[-1]: type(leaf) for path, leaf in nnx.to_flat_state(nnx.state(view)) if "q_proj" in path}
    want = {"base": nnx.Param, "lora_A": nnx.LoRAParam, "lora_B": nnx.LoRAParam, "gain": nnx.Variable}
    assert kinds == want
    codes = NNXModel(model.config, {"codes": jnp.zeros(3, jnp.uint8)})
    assert type(codes.codes) is nnx.Variable


def test_a_model_from_a_configuration_is_saved(tmp_path):
    hf = tiny.config("mistral", 5, "float32", {**tiny.COMMON, **tiny.FAMILIES["mistral"]})
    view = NNXModel(config_from_hf(hf), rngs=nnx.Rngs(3))
    jaxpost.save(tmp_path / "out", to_model(view, hf))
    assert_same_bits(jaxpost.load(tmp_path / "out").params, view.params)


def test_what_a_view_refuses(tmp_path):
    """Dropout that would never change, factors of a plain or a twice bound tree, a bound tree to save.

    Mutation: jaxpost/flax/nnx.py: `if name == "key":` -> `if False:`
    """
    model, adapters = bound_model(tmp_path, "llama", dropout=0.3)
    dropped = jaxpost.bind(model.params, adapters, jax.random.key(0))
    refused(lambda: to_nnx(model, dropped), "dropout_key")
    once = jaxpost.bind(model.params, adapters)
    refused(lambda: lora_factors(to_nnx(model)), "jaxpost.bind")
    refused(lambda: lora_factors(jaxpost.bind(once, adapters)), "several", "layers/0/0/")
    refused(lambda: jaxpost.save(tmp_path / "no", to_model(to_nnx(model, once), model)), "merge")
    assert not (tmp_path / "no").exists()
