"""The forward pass against its definition in float64, layer by layer, and who may influence whom."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import GLOBAL, LOCAL, PLAIN, adapted, documents, gemma, llama, params, random_rows, row, stack
from numerics import assert_near, assert_same_bits
from tolerances import BFLOAT16_CPU, FLOAT32_CPU

from jaxpost.adapters import bind
from jaxpost.models.config import LayerKind, Rope
from jaxpost.models.decoder import default_positions, forward, head_weight, hidden_states, rms_norm
from jaxpost.models.rope import frequencies
from jaxpost.stages import slots

run = jax.jit(forward, static_argnums=0)

LLAMA3 = LayerKind(rope=Rope(theta=90.0, kind="llama3", factor=4.0, original_max_positions=32))
QWEN = dataclasses.replace(PLAIN, qk_norm=True)
CONFIGS = {
    "llama": llama(),
    "biases": llama([LLAMA3] * 3, num_heads=5, num_kv_heads=5, qkv_bias=True, output_bias=True, mlp_bias=True),
    "gemma": gemma(),
    "qwen3": llama([QWEN, dataclasses.replace(QWEN, window=4)], num_heads=4, num_kv_heads=2, head_dim=10),
    "one layer, tied": llama([LLAMA3], tie_word_embeddings=True, embed_scale=3.0, num_heads=2, logit_softcap=2.0),
}


def norm64(x, weight, config):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * (config.norm_offset + weight)


def rotate64(x, rope, positions):
    """x [T, H, D] as complex pairs (x_i, x_{i + D/2})."""
    half = x.shape[-1] // 2
    phase = np.exp(1j * positions[:, None, None] * frequencies(rope, x.shape[-1]).astype(np.float64))
    z = (x[..., :half] + 1j * x[..., half:]) * phase
    return np.concatenate([z.real, z.imag], axis=-1)


def project64(x, module):
    return x @ module["weight"].T + module.get("bias", 0.0)


def attention64(config, kind, block, x, segments, positions):
    """One row, x [T, D]; each query by itself."""
    length = len(x)
    q, k, v = (project64(x, block[f"{n}_proj"]).reshape(length, -1, config.head_dim) for n in "qkv")
    if kind.qk_norm:
        q, k = norm64(q, block["q_norm"]["weight"], config), norm64(k, block["k_norm"]["weight"], config)
    q, k = rotate64(q, kind.rope, positions), rotate64(k, kind.rope, positions)
    groups = config.num_heads // config.num_kv_heads
    out = np.zeros_like(q)
    for t in range(length):
        keys = [s for s in range(t + 1) if segments[s] == segments[t] and (kind.window is None or t - s < kind.window)]
        for head in range(config.num_heads):
            scores = k[keys, head // groups] @ q[t, head] * config.attention_scale
            if kind.softcap is not None:
                scores = kind.softcap * np.tanh(scores / kind.softcap)
            p = np.exp(scores - scores.max())
            out[t, head] = p @ v[keys, head // groups] / p.sum()
    return project64(out.reshape(length, -1), block["o_proj"])


def mlp64(kind, block, x):
    gate, up = project64(x, block["gate_proj"]), project64(x, block["up_proj"])
    if kind.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return project64(gate * up, block["down_proj"])


def logits64(config, tree, tokens, segments):
    """Logits [T, V] of one row, by the definition of every family."""
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    starts = np.array(
        [max(s for s in range(t + 1) if s == 0 or segments[s] != segments[s - 1]) for t in range(len(tokens))]
    )
    positions = np.arange(len(tokens)) - starts
    h = tree["embed_tokens"]["weight"][tokens] * config.embed_scale
    for stage, position, repeat in slots(config.stages):
        kind = config.stages[stage].kinds[position]
        layer = jax.tree.map(lambda x, r=repeat: x[r], tree["layers"][stage][position])
        norm = lambda name, x, layer=layer: norm64(x, layer[name]["weight"], config)  # noqa: E731
        out = attention64(config, kind, layer["self_attn"], norm("input_layernorm", h), segments, positions)
        if kind.sandwich_norms:
            h = h + norm("post_attention_layernorm", out)
            out = mlp64(kind, layer["mlp"], norm("pre_feedforward_layernorm", h))
            h = h + norm("post_feedforward_layernorm", out)
        else:
            h = h + out
            h = h + mlp64(kind, layer["mlp"], norm("post_attention_layernorm", h))
    z = norm64(h, tree["norm"]["weight"], config) @ tree.get("lm_head", tree["embed_tokens"])["weight"].T
    return z if config.logit_softcap is None else config.logit_softcap * np.tanh(z / config.logit_softcap)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_definition(name):
    config = CONFIGS[name]
    tree, rows = params(config, seed=1), random_rows(config, 3, 13, seed=2)
    found = run(config, tree, rows["tokens"], rows["segment_ids"])
    want = [logits64(config, tree, *pair) for pair in zip(rows["tokens"], rows["segment_ids"], strict=True)]
    assert found.dtype == jnp.float32
    assert_near(found, np.stack(want), FLOAT32_CPU["same_maths"])


def test_without_segments_a_row_is_one_document():
    config = llama([LOCAL])
    tree, tokens = params(config), np.stack(documents(config, [13, 13]))
    alone = run(config, tree, tokens)
    assert_same_bits(alone, run(config, tree, tokens, jnp.ones_like(tokens)))
    assert_same_bits(alone, run(config, tree, tokens, None, jnp.broadcast_to(jnp.arange(13)[None], (2, 13))))


@pytest.mark.parametrize("config", [llama(), gemma([LOCAL, GLOBAL], tie_word_embeddings=False)], ids=["llama", "gemma"])
def test_no_token_sees_a_later_one_or_another_document(config):
    """The gradient of a token's logits is exactly zero at the embedding of every token that it may not see."""
    tree = params(config)
    tokens = jnp.arange(12, dtype=jnp.int32)[None] + 5  # all different: row of the table = token
    segments = np.array([[0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0]], np.int32)

    def logits(table):
        return forward(config, {**tree, "embed_tokens": {"weight": table}}, tokens, jnp.asarray(segments))[0]

    @jax.jit
    def influence(table):
        _, back = jax.vjp(logits, table)
        weights = jnp.asarray(np.random.default_rng(0).standard_normal(config.vocab_size), jnp.float32)
        each = jnp.eye(12)[:, :, None] * weights[None, None]
        return jnp.abs(jax.vmap(back)(each)[0]).sum(-1)[:, 5:17]  # [token whose logits, token]

    found = np.asarray(influence(tree["embed_tokens"]["weight"]))
    at = np.arange(12)
    seen = (at[:, None] >= at) & (segments[0][:, None] == segments[0])
    assert not found[~seen].any()
    assert found[seen].all()  # two layers of a window of five reach over six tokens


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_S4_a_document_does_not_feel_its_neighbour(name):
    """Another first document leaves every logit of the second bit for bit.

    Mutation: jaxpost/models/decoder.py: `mask = MaskSpec(segment_ids=segment_ids, positions=positions)` -> `mask = MaskSpec(positions=positions)`
    """  # noqa: E501
    config = CONFIGS[name]
    tree, (first, other, second) = params(config), documents(config, [6, 6, 7])
    a, b = (stack([row([parts, second], 14)]) for parts in (first, other))
    found = [run(config, tree, r["tokens"], r["segment_ids"], r["positions"]) for r in (a, b)]
    assert_same_bits(found[0][:, 6:13], found[1][:, 6:13])
    assert not np.array_equal(found[0][:, :6], found[1][:, :6])


def test_J13_a_pad_token_in_a_document_is_a_token():
    """Token ids decide nothing: with 0 as the pad token, a 0 inside the document is seen and sees.

    Mutation: jaxpost/models/decoder.py: `mask = MaskSpec(segment_ids=segment_ids, positions=positions)` -> `mask = MaskSpec(segment_ids=(tokens != 0).astype(jnp.int32), positions=positions)`
    """  # noqa: E501
    config = CONFIGS["llama"]
    tree = params(config)
    tokens = documents(config, [9])[0] % 50 + 5
    tokens[[3, 8]] = 0
    r = stack([row([tokens], 12)])
    found = run(config, tree, r["tokens"], r["segment_ids"])[0, :9]
    assert_near(found, logits64(config, tree, tokens, np.ones(9)), FLOAT32_CPU["same_maths"])
    assert_same_bits(found, run(config, tree, r["tokens"], r["segment_ids"], r["positions"])[0, :9])


def test_J10_stacks_are_sliced_into_valid_weights():
    """Layer i of a scan over a bound stack is a weight [out, in] with its own factors, gain and key.

    Mutation: jaxpost/adapters/bind.py: `base, f["lora_A"], f["lora_B"], gain, key,` -> `base, f["lora_A"], f["lora_B"], gain[0], key,`
    """  # noqa: E501
    config = llama([PLAIN] * 3)
    tree = params(config)
    stack_of = bind(tree, adapted(tree, dropout=0.5), jax.random.key(0))["layers"][0][0]["self_attn"]["k_proj"][
        "weight"
    ]
    x, shapes = jnp.ones((2, config.hidden_size)), []

    def look(carry, weight):
        shapes.append([leaf.shape for leaf in jax.tree.leaves(weight)] + [weight.shape])
        return carry, weight.matmul(x)

    _, out = jax.jit(lambda whole: jax.lax.scan(look, 0, whole))(stack_of)
    assert shapes[0] == [(6, 20), (3, 20), (6, 3), (3,), (), (6, 20)]
    one = jax.jit(lambda weight: weight.matmul(x))
    want = np.stack([one(jax.tree.map(lambda leaf, i=i: leaf[i], stack_of)) for i in range(3)])
    assert_near(out, want, FLOAT32_CPU["same_maths"])


@pytest.mark.parametrize("config", [llama([PLAIN], qkv_bias=True), gemma([LOCAL])], ids=["llama", "gemma"])
def test_activations_in_bfloat16(config):
    """Near float32; hidden states come in bfloat16, and float32 weights stay as they are."""
    tokens = jnp.asarray(np.stack(documents(config, [13, 13])))
    narrow = params(config, dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    want = hidden_states(config, wide, tokens)
    for found in (hidden_states(config, wide, tokens, dtype=jnp.bfloat16), hidden_states(config, narrow, tokens)):
        assert found.dtype == jnp.bfloat16 and want.dtype == jnp.float32
        assert_near(found, want, BFLOAT16_CPU["logits"])


def test_the_embedding_is_scaled_in_its_dtype():
    """Gemma's sqrt(2304) is 48 in bfloat16 as in float32, and sqrt(1152) = 33.94 is 34."""
    config = dataclasses.replace(llama([PLAIN]), embed_scale=1152**0.5)
    tree = jax.tree.map(jnp.zeros_like, params(config))
    tree = {**tree, "embed_tokens": {"weight": jnp.ones((61, 20), jnp.bfloat16)}, "norm": {"weight": jnp.ones(20)}}
    config = dataclasses.replace(config, norm_eps=34.0**2)  # the norm of 34 is then 1 / sqrt(2), of 33.94 it is not
    seen = hidden_states(config, tree, jnp.zeros((1, 2), jnp.int32)).astype(jnp.float32)
    assert_same_bits(seen, jnp.full((1, 2, 20), 0.5**0.5, jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rms_norm(dtype):
    """In float32 whatever comes in; (offset + weight) multiplies before the cast."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(100 * rng.standard_normal((2, 3, 7)), dtype)
    weight = jnp.asarray(rng.standard_normal(7), jnp.float32)
    for config in (CONFIGS["llama"], CONFIGS["gemma"]):
        found = rms_norm(x, weight, config)
        want = norm64(np.asarray(x, np.float64), np.asarray(weight, np.float64), config)
        assert found.dtype == dtype
        if dtype == jnp.float32:
            assert_near(found, want, FLOAT32_CPU["same_maths"])
        else:
            assert_same_bits(found, jnp.asarray(want, jnp.float32).astype(dtype))


@pytest.mark.parametrize("seed", range(5))
def test_positions_count_within_each_document(seed):
    rng = np.random.default_rng(seed)
    segments = np.repeat(rng.permutation(6), rng.multinomial(17, [1 / 6] * 6))[None].astype(np.int32)
    want = [t - min(s for s in range(t + 1) if (segments[0, s : t + 1] == segments[0, t]).all()) for t in range(17)]
    assert default_positions(jnp.asarray(segments))[0].tolist() == want


def test_the_head_is_the_embedding_where_they_are_tied():
    tied, untied = params(CONFIGS["gemma"]), params(CONFIGS["llama"])
    assert head_weight(tied) is tied["embed_tokens"]["weight"] and "lm_head" not in tied
    assert head_weight(untied) is untied["lm_head"]["weight"]


def test_logits_and_gradients_at_padding_are_finite():
    config = gemma([LOCAL])
    nothing = jnp.zeros((2, 9), jnp.int32)
    value = lambda tree: forward(config, tree, nothing, nothing).sum()  # noqa: E731
    logits, gradient = jax.jit(jax.value_and_grad(value))(params(config))
    assert np.isfinite(logits) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_layers_run_in_their_order():
    """Swapping two layers of one stage, or of two stages, changes the logits: none is skipped or taken twice."""
    config = gemma([LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL])
    tree, tokens = jax.tree.map(np.asarray, params(config)), np.stack(documents(config, [13]))
    base = run(config, tree, tokens)
    stack_of = tree["layers"][0][0]
    swapped = ((jax.tree.map(lambda x: x[::-1], stack_of), tree["layers"][0][1]), tree["layers"][1])
    assert not np.allclose(base, run(config, {**tree, "layers": swapped}, tokens), atol=1e-3)
    for stage, position, repeat in slots(config.stages):
        half = lambda x, r=repeat: np.where((np.arange(len(x)) == r).reshape(-1, *[1] * (x.ndim - 1)), x / 2, x)  # noqa: E731
        layers = [list(period) for period in tree["layers"]]
        layers[stage][position] = jax.tree.map(half, layers[stage][position])
        changed = run(config, {**tree, "layers": tuple(tuple(period) for period in layers)}, tokens)
        assert not np.allclose(base, changed, atol=1e-3)
