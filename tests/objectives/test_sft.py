"""The supervised objective: which tokens, which denominator, which gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import GLOBAL, LOCAL, adapted, batch, documents, gemma, llama, params, random_rows, row, stack
from numerics import assert_near, assert_same_bits
from refusals import refused
from tolerances import BFLOAT16_CPU, FLOAT32_CPU

from jaxpost.adapters import merge
from jaxpost.adapters.targets import matrices
from jaxpost.models.decoder import forward
from jaxpost.objectives import adapter_policy, full_policy, sft
from jaxpost.objectives.targets import shift

LLAMA, GEMMA = llama(), gemma([LOCAL, GLOBAL])
KEY = jax.random.key(0)


def totals(rows):
    return {"tokens": np.float32(rows["loss_mask"].sum())}


@functools.cache
def value_and_grad(config, policy=full_policy, **options):
    """A jitted (trainable, frozen, rows, totals, key) -> loss, metrics, gradients."""
    objective = sft(config, policy, **options)

    def value(trainable, frozen, rows, totals, key):
        terms, metrics = objective(trainable, frozen, rows, totals, key)
        return terms["loss"], metrics

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def full(config, tree, rows, **options):
    return value_and_grad(config, **options)(tree, {}, rows, totals(rows), KEY)


def token_stats64(config, tree, rows):
    """-log p, p, whether it is the best, entropy and top-20 entropy over ln 20 of each label-aligned token."""
    z = np.asarray(jax.jit(forward, static_argnums=0)(config, tree, rows["tokens"], rows["segment_ids"]), np.float64)
    z = np.pad(z[:, :-1], ((0, 0), (1, 0), (0, 0)))
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    mine = np.take_along_axis(log_p, rows["tokens"][..., None], axis=-1)[..., 0]
    best = np.exp(np.sort(log_p, axis=-1)[..., -20:])
    best /= best.sum(-1, keepdims=True)
    top_entropy = -(best * np.log(best)).sum(-1) / np.log(20)
    return -mine, np.exp(mine), z.argmax(-1) == rows["tokens"], -(np.exp(log_p) * log_p).sum(-1), top_entropy


@pytest.mark.parametrize(("config", "loss"), [(GEMMA, "nll"), (LLAMA, "nll"), (LLAMA, "dft"), (LLAMA, "eaft")])
def test_losses_are_token_weighted_means(config, loss):
    tree, rows = params(config), random_rows(config, 4, 14)
    (value, metrics), _ = full(config, tree, rows, loss=loss)
    nll, p, correct, entropy, top_entropy = token_stats64(config, tree, rows)
    weight = {"nll": 1.0, "dft": p, "eaft": top_entropy}[loss]
    mask = rows["loss_mask"]
    assert_near(value, (weight * nll * mask).sum() / mask.sum(), FLOAT32_CPU["same_maths"])
    want = {"mean_token_accuracy": (correct * mask).sum(), "entropy": (entropy * mask).sum()}
    assert metrics.keys() == want.keys()
    for name, (total, count) in metrics.items():
        assert count == mask.sum()
        assert_near(total, want[name], FLOAT32_CPU["same_maths"])


def test_S6_place_t_predicts_token_t_plus_1_once():
    """Mutation: jaxpost/objectives/targets.py: `jnp.concatenate([tokens[:, 1:], last], axis=1)` -> `tokens`
    Mutation: jaxpost/objectives/targets.py: `[loss_mask[:, 1:] > 0, last > 0]` -> `[last > 0, loss_mask[:, 1:] > 0]`
    """
    tokens = jnp.array([[5, 6, 7, 8, 9], [1, 2, 3, 4, 5]])
    mask = jnp.array([[0.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0, 1.0]])
    targets, scored = shift(tokens, mask)
    assert targets[:, :-1].tolist() == tokens[:, 1:].tolist()
    assert scored.tolist() == [[False, True, True, False, False], [True, True, True, True, False]]
    assert np.asarray(targets)[np.asarray(scored)].tolist() == [7, 8, 2, 3, 4, 5]


def test_S6_the_first_token_of_the_answer_is_trained():
    """Only it is trained, and the loss is its -log p given the whole prompt.

    Mutation: jaxpost/objectives/targets.py: `[loss_mask[:, 1:] > 0, last > 0]` -> `[loss_mask[:, :-1] > 0, last > 0]`
    """
    tree, document = params(LLAMA), documents(LLAMA, [9])[0]
    r = stack([row([document], 12)])
    r["loss_mask"] = np.zeros_like(r["loss_mask"])
    r["loss_mask"][0, 4] = 1.0
    (value, _), gradients = full(LLAMA, tree, r)
    assert_near(value, token_stats64(LLAMA, tree, r)[0][0, 4], FLOAT32_CPU["same_maths"])
    answer = gradients["embed_tokens"]["weight"][np.setdiff1d(document[4:], document[:4])]
    assert not np.any(answer)  # the prompt is all that it is predicted from


def test_S8_dft_on_the_model():
    """By the last norm's weight: the sum of p times the gradient of each token's nll, with p held still."""
    tree, rows = params(LLAMA), random_rows(LLAMA, 4, 14, seed=4)
    nll_gradient = value_and_grad(LLAMA)
    p = token_stats64(LLAMA, tree, rows)[1]
    want = 0.0
    for b, t in np.argwhere(rows["loss_mask"] > 0):
        one = {**rows, "loss_mask": np.zeros_like(rows["loss_mask"])}
        one["loss_mask"][b, t] = 1.0
        _, gradients = nll_gradient(tree, {}, one, totals(rows), KEY)
        want = want + p[b, t] * np.asarray(gradients["norm"]["weight"], np.float64)
    _, gradients = full(LLAMA, tree, rows, loss="dft")
    assert_near(gradients["norm"]["weight"], want, FLOAT32_CPU["same_maths"])


def test_S9_bfloat16_activations_keep_a_float32_loss():
    """Near the float32 loss, in float32, and finite where the logits are +-1e4."""
    tree, rows = params(LLAMA), random_rows(LLAMA, 4, 14)
    (wide, _), _ = full(LLAMA, tree, rows)
    (narrow, _), gradients = full(LLAMA, tree, rows, dtype=jnp.bfloat16)
    assert narrow.dtype == jnp.float32
    assert_near(narrow, wide, BFLOAT16_CPU["logits"])
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    steep = {**tree, "lm_head": {"weight": tree["lm_head"]["weight"] * 1e4}}
    (value, _), gradients = full(LLAMA, steep, rows, dtype=jnp.bfloat16)
    assert value > 1e3 and np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("loss", ["dft", "eaft"])
def test_S12_the_gradient_is_the_weighted_one(loss):
    """By the head, whose gradient is known: sum over tokens of weight (p - onehot) h^T, over the total.

    Mutation: jaxpost/losses/sft.py: `jax.lax.stop_gradient(jnp.exp(logps)) * nll(logps)` -> `jnp.exp(logps) * nll(logps)`
    Mutation: jaxpost/models/vocab.py: `/ jnp.log(size)` -> `/ 3.0`
    """  # noqa: E501
    tree, rows = params(LLAMA), random_rows(LLAMA, 4, 14)
    _, p, _, _, top_entropy = token_stats64(LLAMA, tree, rows)
    weight = p if loss == "dft" else top_entropy

    def weighted(head):  # the weights are numbers here
        logits = forward(
            LLAMA, {**tree, "lm_head": {"weight": head}}, jnp.asarray(rows["tokens"]), jnp.asarray(rows["segment_ids"])
        )
        logps = jnp.take_along_axis(
            jax.nn.log_softmax(logits[:, :-1]), jnp.asarray(rows["tokens"])[:, 1:, None], axis=-1
        )[..., 0]
        return -(jnp.asarray((weight * rows["loss_mask"])[:, 1:], jnp.float32) * logps).sum() / rows["loss_mask"].sum()

    want = jax.jit(jax.grad(weighted))(tree["lm_head"]["weight"])
    _, gradients = full(LLAMA, tree, rows, loss=loss)
    assert_near(gradients["lm_head"]["weight"], want, FLOAT32_CPU["same_maths"])


@pytest.mark.parametrize("loss", ["nll", "eaft"])
def test_D9_no_labels_no_loss_no_gradient(loss):
    """Exactly 0 and finite, for all weights and for adapters.

    Mutation: jaxpost/objectives/sft.py: `values.sum() / jnp.maximum(totals["tokens"], 1.0)` -> `values.sum() / totals["tokens"]`
    """  # noqa: E501
    tree, rows = params(LLAMA), random_rows(LLAMA, 4, 14)
    rows["loss_mask"] = np.zeros_like(rows["loss_mask"])
    (value, metrics), gradients = full(LLAMA, tree, rows, loss=loss)
    assert float(value) == 0.0
    assert not any(np.any(g) or np.isnan(g).any() for g in jax.tree.leaves(gradients))
    assert all(float(total) == float(count) == 0.0 for total, count in metrics.values())


def test_D11_padding_and_order_change_nothing():
    """Left or right padding, more columns, rows of padding, another order, packing, other tokens in the padding.

    Mutation: jaxpost/models/decoder.py: `mask = MaskSpec(segment_ids=segment_ids, positions=positions)` -> `mask = MaskSpec(positions=positions)`
    """  # noqa: E501
    tree, parts = params(GEMMA), documents(GEMMA, [9, 4, 11, 6])
    layouts = {
        "right": stack([row([part], 14) for part in parts]),
        "left": stack([row([part], 14, left=14 - len(part)) for part in parts]),
        "order": stack([row([part], 14) for part in reversed(parts)]),
        "columns": stack([row([part], 23, left=2) for part in parts]),
        "packed": stack([row(parts[:2], 23), row([], 23), row(parts[2:], 23, left=4), row([], 23)]),
    }
    layouts["noise"] = {name: leaf.copy() for name, leaf in layouts["right"].items()}
    layouts["noise"]["tokens"][layouts["noise"]["segment_ids"] == 0] = 7
    found = {name: full(GEMMA, tree, rows) for name, rows in layouts.items()}
    (value, _), gradients = found.pop("right")
    for (other, _), theirs in found.values():
        assert_near((other, theirs), (value, gradients), FLOAT32_CPU["same_maths"])


def test_adapter_gradients_are_those_of_the_product():
    """dA = scale B^T dW and dB = scale dW A^T, where dW is the gradient of the folded weight."""
    config = llama()
    tree, rows = params(config), random_rows(config, 4, 14)
    found = adapted(tree, rank=3, alpha=4.5)
    frozen = {"params": tree, "spec": found.spec}
    (value, _), gradients = value_and_grad(config, adapter_policy)(found.factors, frozen, rows, totals(rows), KEY)
    (merged_value, _), whole = full(config, merge(tree, found), rows)
    assert_near(value, merged_value, FLOAT32_CPU["same_maths"])
    want = {
        path: {
            "lora_A": 1.5 * np.einsum("lor,loi->lri", f["lora_B"], matrices(whole)[path]),
            "lora_B": 1.5 * np.einsum("loi,lri->lor", matrices(whole)[path], f["lora_A"]),
        }
        for path, f in found.factors.items()
    }
    assert_near(gradients, want, FLOAT32_CPU["same_maths"])


def test_unknown_metrics_and_losses_are_refused():
    refused(lambda: sft(LLAMA, full_policy, loss="nil"), "`loss`", "nll", "'nil'", 'Did you mean "nll"')
    with pytest.raises(ValueError, match="perplexity"):
        full(LLAMA, params(LLAMA), random_rows(LLAMA, 4, 14), metrics=("perplexity",))


def test_batches_are_laid_out_with_their_total():
    """The helper of these tests does what the data room does."""
    laid = batch(random_rows(LLAMA, 4, 14), accumulate=2)
    assert laid["rows"]["tokens"].shape == (2, 2, 14)
    assert laid["totals"]["tokens"] == laid["rows"]["loss_mask"].sum()
    assert_same_bits(laid["rows"]["tokens"].reshape(4, 14), random_rows(LLAMA, 4, 14)["tokens"])
