"""NEFTune: noise of the paper's size on the embeddings, in training alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import GLOBAL, LOCAL, PLAIN, documents, gemma, llama, params, random_rows, row, stack
from numerics import assert_near, assert_same_bits
from tolerances import FLOAT32_CPU

from jaxpost.models.decoder import hidden_states
from jaxpost.objectives import full_policy, make_score, sft
from jaxpost.objectives.neftune import document_lengths, neftune_noise

LLAMA, GEMMA = llama(), gemma([LOCAL, GLOBAL])
KEY = jax.random.key(3)


def totals(rows):
    return {"tokens": np.float32(rows["loss_mask"].sum())}


@functools.cache
def objective(alpha, config=LLAMA):
    return jax.jit(sft(config, full_policy, neftune_alpha=alpha))


def test_S7_the_size_is_alpha_over_the_root_of_length_times_features():
    """Documents of 2, 30 and 100 tokens in one row, with padding: each has the noise it would have alone.

    Uniform: the largest comes near the bound, the variance is a third of its square.

    Mutation: jaxpost/objectives/neftune.py: `alpha / jnp.sqrt(length * features)` -> `alpha / jnp.sqrt(segment_ids.shape[1] * features)`
    Mutation: jaxpost/objectives/neftune.py: `alpha / jnp.sqrt(length * features), 0.0)` -> `alpha / length, 0.0)`
    Mutation: jaxpost/objectives/neftune.py: `minval=-1.0, maxval=1.0` -> `minval=0.0, maxval=1.0`
    Mutation: jaxpost/objectives/neftune.py: `jnp.where(segment_ids > 0,` -> `jnp.where(segment_ids >= 0,`
    """  # noqa: E501
    lengths, features, alpha = (2, 30, 100), 300, 5.0
    segments = jnp.asarray(stack([row(documents(LLAMA, lengths), 150)])["segment_ids"])
    for seed in range(3):
        noise = np.asarray(neftune_noise(jax.random.key(seed), segments, features, alpha))
        assert noise.dtype == np.float32 and noise.shape == (1, 150, features)
        assert (noise[np.asarray(segments) == 0] == 0).all()
        for number, length in enumerate(lengths, start=1):
            mine, bound = noise[np.asarray(segments) == number], alpha / np.sqrt(length * features)
            assert 0.97 * bound < np.abs(mine).max() <= bound
            assert abs(mine.mean()) < 5 * bound / np.sqrt(3 * mine.size)
            np.testing.assert_allclose(mine.var(), bound**2 / 3, rtol=0.15)


def test_lengths_of_documents_are_counted_for_each_token():
    """Mutation: jaxpost/objectives/neftune.py: `return last - first + 1` -> `return last - first`"""
    for seed in range(4):
        segments = random_rows(LLAMA, 5, 17, seed)["segment_ids"]
        want = [[int((row == segment).sum()) for segment in row] for row in segments]
        assert document_lengths(jnp.asarray(segments)).tolist() == want


@pytest.mark.parametrize(("config", "scale"), [(LLAMA, 1.0), (GEMMA, 20**0.5)])
def test_the_noise_is_added_to_what_the_first_layer_sees(config, scale):
    """Against a table in which each token's own row carries the noise; a scaled embedding is scaled first.

    Mutation: jaxpost/models/decoder.py: `h = h + embed_noise.astype(h.dtype)` -> `h = h - embed_noise.astype(h.dtype)`
    """
    tree, tokens = params(config), jnp.arange(2 * 9, dtype=jnp.int32).reshape(2, 9)
    noise = jax.random.normal(KEY, (2, 9, config.hidden_size))
    table = tree["embed_tokens"]["weight"].at[tokens].add(noise / scale)
    moved = {**tree, "embed_tokens": {"weight": table}}
    got = hidden_states(config, tree, tokens, embed_noise=noise)
    assert_near(got, hidden_states(config, moved, tokens), FLOAT32_CPU["same_maths"])


def test_S7_evaluation_and_scores_have_none():
    """Without a key the objective is evaluation: bit for bit the one without noise. Scores take no noise at all.

    Mutation: jaxpost/objectives/sft.py: `if neftune_alpha and key is not None:` -> `if neftune_alpha:`
    """
    tree, rows = params(LLAMA), random_rows(LLAMA, 3, 14)
    quiet, noisy = (objective(alpha)(tree, {}, rows, totals(rows), None) for alpha in (0.0, 5.0))
    assert_same_bits(noisy, quiet)
    score = make_score(LLAMA, full_policy)(tree, {}, rows)
    nll = -score["logp"].sum() / rows["loss_mask"].sum()
    assert_near(noisy[0]["loss"], nll, FLOAT32_CPU["same_maths"])


def test_S7_training_has_noise_that_follows_from_the_key_alone():
    """The same key is the same noise, so that a resumed run repeats it; another step or micro-batch has another.

    Mutation: jaxpost/objectives/neftune.py: `jax.random.fold_in(key, STREAM)` -> `jax.random.key(0)`
    """
    tree, rows = params(LLAMA), random_rows(LLAMA, 3, 14)
    losses = [objective(5.0)(tree, {}, rows, totals(rows), key)[0]["loss"] for key in (KEY, KEY, jax.random.key(4))]
    quiet = objective(0.0)(tree, {}, rows, totals(rows), KEY)[0]["loss"]
    assert losses[0] == losses[1]
    assert len({float(loss) for loss in (*losses, quiet)}) == 3
    assert abs(float(losses[0] - quiet)) > 1e-3


def test_the_noise_has_a_key_of_its_own():
    """Not one of those by which the adapters' dropout is drawn: no small number is folded into the step's key.

    Mutation: jaxpost/objectives/neftune.py: `STREAM = 0x4E4546` -> `STREAM = 7`
    """
    from jaxpost.objectives.neftune import STREAM

    modules = 7 * sum(len(stage.kinds) for stage in llama([PLAIN] * 3).stages)
    assert STREAM > 1000 * modules
