"""SFT gradients equal torch's, leaf by leaf: full weights for every family, LoRA factors against PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from tolerances import FLOAT32_CPU

import jaxpost
from jaxpost.adapters import Adapters
from jaxpost.core.tree import path_string
from jaxpost.hub.names import leaves
from jaxpost.objectives import adapter_policy, full_policy, sft

torch = oracle.torch
LENGTHS = (23, 9, 30)  # of the documents; windows of the tiny models are shorter than the longest


def documents(vocab_size, seed):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(4, vocab_size, n).astype(np.int32) for n in LENGTHS]
    trained = [rng.random(n) < 0.6 for n in LENGTHS]
    for mask in trained:
        mask[0], mask[-1] = False, True
    return ids, trained


def packed(ids, trained):
    """The documents in one row with some padding, as a micro-batch of one."""
    length = sum(LENGTHS) + 5
    rows = {name: np.zeros((1, length), np.int32) for name in ("tokens", "segment_ids", "positions")}
    mask, start = np.zeros((1, length), np.float32), 0
    for segment, (doc, on) in enumerate(zip(ids, trained, strict=True), 1):
        at = slice(start, start + len(doc))
        rows["tokens"][0, at], rows["segment_ids"][0, at] = doc, segment
        rows["positions"][0, at], mask[0, at] = np.arange(len(doc)), on
        start += len(doc)
    return jax.tree.map(jnp.asarray, ({**rows, "loss_mask": mask}, {"tokens": np.float32(mask.sum())}))


def torch_loss(model, ids, trained):
    """Mean negative log-likelihood of the trained tokens, each document alone."""
    total = sum(on.sum() for on in trained)
    losses = []
    for doc, on in zip(ids, trained, strict=True):
        logits = model(torch.from_numpy(doc.astype(np.int64))[None]).logits[0, :-1].float()
        targets = torch.from_numpy(doc[1:].astype(np.int64))
        values = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        losses.append((values * torch.from_numpy(on[1:].astype(np.float32))).sum())
    return sum(losses) / float(total)


def assert_close(got, want, name):
    got, want = np.asarray(got), np.asarray(want)
    worst = np.abs(got - want).max() / np.abs(want).max()
    assert worst <= FLOAT32_CPU["gradients"].relative, f"{name}: {worst:.2e}"


CASES = [
    ("llama", {}),
    ("llama", {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 10, "hidden_size": 40}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("gemma2", {}),
    ("gemma3_text", {}),
]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{family}-{len(o)}" for family, o in CASES])
@pytest.mark.parametrize("remat", ["none", "qkv"])
def test_full_gradients_equal_torch(tmp_path, case, remat):
    """Packed here, each document alone there.

    Mutation: jaxpost/models/rope.py: `b * cos + a * sin` -> `b * cos - a * sin`
    Mutation: jaxpost/models/vocab.py: `d *= 1.0 - (z / static.softcap) ** 2` -> `pass`
    """
    family, options = CASES[case]
    folder = tiny.make(tmp_path, family, seed=20 + case, **options)
    model = jaxpost.load(folder, "float32")
    ids, trained = documents(model.config.vocab_size, case)
    rows, totals = packed(ids, trained)
    objective = sft(model.config, full_policy, remat=remat)
    value = lambda params: objective(params, {}, rows, totals, jax.random.key(0))[0]["loss"]  # noqa: E731
    loss, gradients = jax.jit(jax.value_and_grad(value))(model.params)
    theirs = oracle.load(folder)
    their_loss = torch_loss(theirs, ids, trained)
    their_loss.backward()
    assert abs(float(loss) - their_loss.item()) < 1e-5
    by_name = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    ours = {path_string(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(gradients)}
    for leaf in leaves(model.config)[0]:
        want = np.stack([by_name[name] for name in leaf.names])
        assert_close(ours[leaf.path].reshape(want.shape), want, leaf.path)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_lora_gradients_equal_peft(tmp_path, family):
    """Gradients of A and B at factors that are not zero, through our own PEFT file.

    Mutation: jaxpost/adapters/bind.py: `gain = spec.scale[path][..., None] * spec.rank_mask[path]` -> `gain = spec.rank_mask[path]`
    """  # noqa: E501
    peft = pytest.importorskip("peft")
    folder = tiny.make(tmp_path / "base", family, seed=31)
    model = jaxpost.load(folder, "float32")
    adapters = jaxpost.adapters.init(jax.random.key(1), model, rank=3, alpha=5.0)
    rng = np.random.default_rng(2)
    noise = lambda x: jnp.asarray(rng.standard_normal(x.shape) * x.shape[-1] ** -0.5, jnp.float32)  # noqa: E731
    adapters = Adapters(jax.tree.map(noise, adapters.factors), adapters.spec)
    jaxpost.save_adapter(tmp_path / "adapter", adapters, model)
    ids, trained = documents(model.config.vocab_size, 3)
    rows, totals = packed(ids, trained)
    objective = sft(model.config, adapter_policy, remat="mlp")
    frozen = {"params": model.params, "spec": adapters.spec}
    value = lambda factors: objective(factors, frozen, rows, totals, jax.random.key(0))[0]["loss"]  # noqa: E731
    loss, gradients = jax.jit(jax.value_and_grad(value))(adapters.factors)
    theirs = peft.PeftModel.from_pretrained(oracle.load(folder), tmp_path / "adapter", is_trainable=True).eval()
    their_loss = torch_loss(theirs, ids, trained)
    their_loss.backward()
    assert abs(float(loss) - their_loss.item()) < 1e-5
    by_name = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    seen = 0
    jaxpost.save_adapter(tmp_path / "gradients", Adapters(gradients, adapters.spec), model)
    from safetensors.numpy import load_file

    for name, got in load_file(tmp_path / "gradients" / "adapter_model.safetensors").items():
        assert_close(got, by_name[name.replace(".weight", ".default.weight")], name)
        seen += 1
    assert seen == len(by_name)
