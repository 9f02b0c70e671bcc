"""The Linen view: its parameters are the core's tree, trained as a Flax user trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax.core import freeze
from flax.training.train_state import TrainState
from numerics import assert_near, assert_same_bits
from refusals import refused
from tolerances import FLOAT32_CPU

import jaxpost
from jaxpost.adapters import Adapters
from jaxpost.flax import LinenModel, to_linen, to_model
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


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_the_parameters_are_the_core_tree_and_the_functions_the_core_functions(tmp_path, family):
    """Every method gives the core's numbers, bit for bit; nothing is copied; frozen dictionaries do as well.

    Mutation: jaxpost/flax/calls.py: `decoder.forward(self.config, self._tree(), tokens, segment_ids, positions)` -> `decoder.forward(self.config, self._tree(), tokens, segment_ids)`
    Mutation: jaxpost/flax/calls.py: `return decoder.hidden_states(self.config, self._tree(), tokens, segment_ids, positions, dtype=dtype` -> `return decoder.hidden_states(self.config, self._tree(), tokens, segment_ids, positions, dtype=None`
    """  # noqa: E501
    model = jaxpost.load(tiny.make(tmp_path, family, seed=1, num_hidden_layers=2))
    module, variables = to_linen(model)
    assert variables["params"] is model.params
    tokens, segments = batch(model, 1)
    given = (tokens, segments, jnp.arange(tokens.size, dtype=jnp.int32).reshape(tokens.shape) % 23)
    half = {"dtype": jnp.bfloat16, "remat": "full"}

    @jax.jit
    def ours(variables):
        logps = module.apply(variables, *given, method="token_logprobs", **half)
        hidden = module.apply(variables, *given, method="hidden_states", **half)
        return module.apply(variables, *given), logps, hidden, module.apply(variables, tokens)

    _, seen = module.apply(variables, tokens, capture_intermediates=True, mutable=["intermediates"])
    assert set(seen["intermediates"]) == {"__call__"}
    want = jax.jit(lambda params: core(model.config, params, given, half))(model.params)
    assert want[2].dtype == jnp.bfloat16 and not jnp.array_equal(want[0], want[3])
    assert_same_bits(ours(variables), want)
    assert_same_bits(ours(freeze(variables)), want)


def core(config, params, given, half):
    logps = jaxpost.token_logprobs(config, params, *given, **half)
    hidden = hidden_states(config, params, *given, **half)
    return jaxpost.forward(config, params, *given), logps, hidden, jaxpost.forward(config, params, given[0])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_init_gives_the_core_tree(family):
    """Names, order, shapes and dtypes, for every family."""
    config = config_from_hf(tiny.config(family, 4, "float32", {**tiny.COMMON, **tiny.FAMILIES[family]}))
    found = jax.eval_shape(LinenModel(config).init, jax.random.key(0), jnp.arange(7)[None])
    assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found["params"]) == abstract_params(config)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_init_gives_random_parameters(family):
    """Another key, other weights; no two leaves alike; norms and biases do nothing at first.

    Mutation: jaxpost/models/init.py: `1.0 - config.norm_offset` -> `1.0`
    Mutation: jaxpost/models/init.py: `jax.random.fold_in(key, index)` -> `key`
    """
    config = config_from_hf(
        tiny.config(family, 4, "float32", {**tiny.COMMON, **tiny.FAMILIES[family], "num_hidden_layers": 2})
    )
    module, tokens = LinenModel(config), jnp.arange(7)[None]
    params, other = (jax.jit(module.init)(jax.random.key(seed), tokens)["params"] for seed in range(2))
    ((first, *_), *_) = params["layers"]
    k, v = (first["self_attn"][name]["weight"] for name in ("k_proj", "v_proj"))
    assert not jnp.array_equal(k, v) and not jnp.array_equal(k, other["layers"][0][0]["self_attn"]["k_proj"]["weight"])
    assert float(k.std()) == pytest.approx(0.02, rel=0.2)
    assert not any(first["self_attn"][name].get("bias", jnp.zeros(1)).any() for name in ("q_proj", "v_proj"))
    h = jax.jit(lambda v: module.apply(v, tokens, method="hidden_states"))({"params": params})
    np.testing.assert_allclose(jnp.square(h).mean(-1), 1.0, rtol=0.1)  # the last norm's weight multiplies by one


def test_training_with_a_train_state(tmp_path):
    """TrainState and AdamW: the loss falls, gradients are the core's, and the folder saved holds the last parameters.

    Mutation: jaxpost/flax/back.py: `return dataclasses.replace(like, params=tree)` -> `return like`
    """
    model = jaxpost.load(tiny.make(tmp_path / "base", "qwen3", seed=3, num_hidden_layers=2, use_sliding_window=False))
    module, variables = to_linen(model)
    tokens, segments = batch(model, 3)
    state = TrainState.create(apply_fn=module.apply, params=variables["params"], tx=optax.adamw(3e-3))

    def loss(params):
        return -state.apply_fn({"params": params}, tokens, segments, method="token_logprobs").mean()

    def core_loss(params):
        return -jaxpost.token_logprobs(model.config, params, tokens, segments).mean()

    gradients, want = (jax.jit(jax.grad(f))(model.params) for f in (loss, core_loss))
    assert_near(gradients, want, SAME)

    @jax.jit
    def step(state):
        value, gradients = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradients), value

    losses = []
    for _ in range(8):
        state, value = step(state)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    jaxpost.save(tmp_path / "out", to_model(state.params, model))
    again = jaxpost.load(tmp_path / "out")
    assert_same_bits(again.params, state.params)
    assert again.tokenizer("a b").input_ids == model.tokenizer("a b").input_ids
    assert np.abs(again.params["norm"]["weight"] - model.params["norm"]["weight"]).max() > 1e-3


def test_adapters_are_trained_on_the_view(tmp_path, remat="full"):
    """The trained tree is the factors, bound for each call; gradients are the core's."""
    model = jaxpost.load(tiny.make(tmp_path, "gemma2", seed=2, num_hidden_layers=2))
    module, variables = to_linen(model)
    adapters = jaxpost.adapters.init(jax.random.key(0), model, rank=3)
    tokens, segments = batch(model, 2)
    state = TrainState.create(apply_fn=module.apply, params=adapters.factors, tx=optax.adam(1e-2))

    def loss(factors):
        bound = jaxpost.bind(variables["params"], Adapters(factors, adapters.spec))
        options = {"method": "token_logprobs", "remat": remat}
        return -module.apply({"params": bound}, tokens, segments, **options).mean()

    def core_loss(factors):
        bound = jaxpost.bind(model.params, Adapters(factors, adapters.spec))
        return -jaxpost.token_logprobs(model.config, bound, tokens, segments, remat=remat).mean()

    value_and_grad, losses = jax.jit(jax.value_and_grad(loss)), []
    assert_near(value_and_grad(adapters.factors)[1], jax.jit(jax.grad(core_loss))(adapters.factors), SAME)
    for _ in range(6):
        value, gradients = value_and_grad(state.params)
        losses.append(float(value))
        state = state.apply_gradients(grads=gradients)
    assert losses[-1] < losses[0] - 0.1


def test_a_model_from_a_configuration_is_saved(tmp_path):
    """`init` to a folder and back, with config.json given as it stands."""
    hf = tiny.config("llama", 4, "float32", {**tiny.COMMON, **tiny.FAMILIES["llama"], "tie_word_embeddings": True})
    module = LinenModel(config_from_hf(hf))
    variables = jax.jit(module.init)(jax.random.key(5), jnp.arange(4)[None])
    jaxpost.save(tmp_path / "out", to_model(variables, hf))
    assert_same_bits(jaxpost.load(tmp_path / "out").params, variables["params"])


def test_variables_without_parameters(tmp_path):
    model = jaxpost.load(tiny.make(tmp_path))
    refused(lambda: LinenModel(model.config).apply({}, jnp.arange(4)[None]), "variables", "to_linen")
    refused(lambda: jaxpost.save(tmp_path / "no", to_model({"params": {}}, model)), "lm_head")
