"""A checkpoint trained through a Flax view loads in transformers with the view's logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import tiny
from flax import nnx
from flax.training.train_state import TrainState
from tolerances import FLOAT32_CPU

import jaxpost
from jaxpost.flax import LinenModel, to_linen, to_model, to_nnx
from jaxpost.models.families import config_from_hf

ATOL = FLOAT32_CPU["logits"].absolute


def some_tokens(seed, rows=2, length=17):
    return tiny.tokens({"vocab_size": 288}, seed, rows=rows, length=length)


def train_linen(model, tokens):
    module, variables = to_linen(model)
    state = TrainState.create(apply_fn=module.apply, params=variables["params"], tx=optax.sgd(0.5))
    loss = lambda params: -module.apply({"params": params}, tokens, method="token_logprobs").mean()  # noqa: E731
    state = state.apply_gradients(grads=jax.jit(jax.grad(loss))(state.params))
    return state.params, module.apply({"params": state.params}, tokens)


def train_nnx(model, tokens):
    view = to_nnx(model)
    optimizer = nnx.Optimizer(view, optax.sgd(0.5), wrt=nnx.Param)
    gradients = nnx.jit(nnx.grad(lambda view: -view.token_logprobs(tokens).mean()))(view)
    optimizer.update(view, gradients)
    return view, view(tokens)


@pytest.mark.parametrize("train", [train_linen, train_nnx])
@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_transformers_loads_what_a_view_trained(tmp_path, family, train):
    """Logits of the saved folder in transformers are those of the view, and not those of the base.

    Mutation: jaxpost/flax/back.py: `return dataclasses.replace(like, params=tree)` -> `return like`
    """
    model = jaxpost.load(tiny.make(tmp_path / "base", family, seed=6, num_hidden_layers=2))
    tokens = some_tokens(6)
    view, logits = train(model, jnp.asarray(tokens))
    jaxpost.save(tmp_path / "out", to_model(view, model))
    theirs = oracle.load(tmp_path / "out")
    assert np.abs(oracle.logits(oracle.load(tmp_path / "base"), tokens[0]) - logits[0]).max() > 100 * ATOL
    for row, want in zip(tokens, np.asarray(logits), strict=True):
        np.testing.assert_allclose(oracle.logits(theirs, row), want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_transformers_loads_a_model_made_from_a_configuration(tmp_path, family):
    """`init` of a config.json, saved beside it: transformers reads every tensor and computes the same."""
    settings = {**tiny.COMMON, **tiny.FAMILIES[family], "num_hidden_layers": 2}
    hf = tiny.config(family, 5, "float32", {**settings, "sliding_window": 5})
    module, tokens = LinenModel(config_from_hf(hf)), some_tokens(9, rows=1)
    variables = jax.jit(module.init)(jax.random.key(9), tokens)
    jaxpost.save(tmp_path / "out", to_model(variables, hf))
    want = np.asarray(module.apply(variables, jnp.asarray(tokens)))[0]
    np.testing.assert_allclose(oracle.logits(oracle.load(tmp_path / "out"), tokens[0]), want, rtol=0, atol=ATOL)
