"""What is saved loads in transformers and PEFT with equal logits, and theirs loads here."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from tolerances import FLOAT32_CPU

import jaxpost
from jaxpost.adapters import Adapters

peft = pytest.importorskip("peft")

ATOL = FLOAT32_CPU["logits"].absolute
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def our_logits(model, params, tokens):
    return np.asarray(jaxpost.forward(model.config, params, jnp.asarray(tokens)[None]))[0]


def some_tokens(model, seed):
    return tiny.tokens({"vocab_size": model.config.vocab_size}, seed, rows=1, length=23)[0]


@pytest.mark.parametrize("spelling, dtype", [(4, "float32"), (5, "bfloat16")])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_R5_transformers_loads_what_is_saved(tmp_path, family, spelling, dtype):
    """Logits, stop ids, tokenizer, template; several shards; bfloat16 stays bfloat16.

    Mutation: jaxpost/hub/safetensors_writer.py: `weight_map.update({tensor.name: file for tensor in shard})` -> `pass`
    Mutation: jaxpost/hub/save.py: `array[repeat] if leaf.stacked else array` -> `array[0] if leaf.stacked else array`
    """
    folder = tiny.make(tmp_path / "in", family, seed=4, spelling=spelling, dtype=dtype)
    model = jaxpost.load(folder, "float32")
    trained = jax.tree.map(
        lambda x: (x * 1.25).astype(jnp.bfloat16).astype(jnp.float32), model.params
    )  # no rounding left
    jaxpost.save(tmp_path / "out", model, trained, max_shard_bytes=60_000)
    theirs, tokens = oracle.load(tmp_path / "out"), some_tokens(model, 4)
    np.testing.assert_allclose(oracle.logits(theirs, tokens), our_logits(model, trained, tokens), rtol=0, atol=ATOL)
    automatic = oracle.transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in automatic.parameters()} == {getattr(oracle.torch, dtype)}
    assert theirs.generation_config.eos_token_id == [tiny.END, tiny.EOT]
    assert theirs.config.eos_token_id == tiny.END
    tokenizers = [oracle.transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("in", "out")]
    chat = [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "1 < 2"}]
    rendered = [t.apply_chat_template(chat, tokenize=False) for t in tokenizers]
    assert rendered[0] == rendered[1] and "<|im_start|>assistant\n1 < 2<|im_end|>" in rendered[0]
    assert tokenizers[0](rendered[0]).input_ids == tokenizers[1](rendered[1]).input_ids


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_L12_an_untied_pair_reloads_as_the_live_model(tmp_path, family):
    """One of the tied pair was changed: both are written, and transformers computes what the live model does.

    Mutation: jaxpost/hub/save.py: `hf["tie_word_embeddings"] = config.tie_word_embeddings` -> `pass`
    """
    folder = tiny.make(tmp_path / "in", family, seed=6, tie_word_embeddings=True)
    model = jaxpost.load(folder)
    table = np.asarray(model.params["embed_tokens"]["weight"])
    params = {**model.params, "lm_head": {"weight": jnp.asarray(table * 0.7 + table[::-1] * 0.3)}}
    jaxpost.save(tmp_path / "out", model, params)
    tokens = some_tokens(model, 6)
    live = our_logits(model, params, tokens)
    assert np.abs(live - our_logits(model, model.params, tokens)).max() > 0.1
    np.testing.assert_allclose(oracle.logits(oracle.load(tmp_path / "out"), tokens), live, rtol=0, atol=ATOL)
    again = jaxpost.load(tmp_path / "out")
    np.testing.assert_allclose(our_logits(again, again.params, tokens), live, rtol=0, atol=1e-6)


def random_adapters(model, seed, **options):
    adapters = jaxpost.adapters.init(jax.random.key(seed), model, **options)
    rng = np.random.default_rng(seed)
    noise = lambda x: jnp.asarray(rng.standard_normal(x.shape) * x.shape[-1] ** -0.5, jnp.float32)  # noqa: E731
    return Adapters(jax.tree.map(noise, adapters.factors), adapters.spec)


OURS = {
    "all": {"rank": 4, "alpha": 8.0},
    "odd": {"rank": 3, "alpha": 5.5, "targets": "q_proj,down_proj"},
    "one layer": {"rank": 5, "alpha": 2.0, "targets": r"re:.*layers\.1\..*"},
}


@pytest.mark.parametrize(
    "family, options", [*((family, "all") for family in tiny.FAMILIES), ("llama", "odd"), ("gemma3_text", "one layer")]
)
def test_L7_peft_loads_our_adapters(tmp_path, family, options):
    """PeftModel on transformers' base gives our logits, with every tensor of the file in use.

    Mutation: jaxpost/hub/peft_save.py: `return whole if` -> `return 2 * whole if`
    """
    model = jaxpost.load(tiny.make(tmp_path / "base", family, seed=8))
    adapters = random_adapters(model, 8, **OURS[options])
    jaxpost.save_adapter(tmp_path / "adapter", adapters, model)
    theirs = peft.PeftModel.from_pretrained(oracle.load(tmp_path / "base"), tmp_path / "adapter").eval()
    assert_all_used(theirs, tmp_path / "adapter")
    tokens = some_tokens(model, 8)
    live = our_logits(model, jaxpost.bind(model.params, adapters), tokens)
    assert np.abs(live - our_logits(model, model.params, tokens)).max() > 0.1
    np.testing.assert_allclose(oracle.logits(theirs, tokens), live, rtol=0, atol=ATOL)


def assert_all_used(theirs, folder):
    """PEFT warns at most where keys are missing or left over: the names are compared here."""
    from safetensors.numpy import load_file

    live = {name for name, _ in theirs.named_parameters() if ".lora_" in name}
    assert {name.replace(".default.", ".") for name in live} == set(load_file(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize("seed", range(2))
def test_L7_ranks_and_scalings_by_layer_reach_peft(tmp_path, seed):
    """Patterns by full module name: layer 1 is not layer 11.

    Mutation: jaxpost/hub/peft_save.py: `({"alpha_pattern": alphas} if alphas else {})` -> `{}`
    """
    model = jaxpost.load(tiny.make(tmp_path / "base", seed=seed, num_hidden_layers=12))
    adapters = random_adapters(model, seed, rank=6, targets="q_proj,up_proj")
    rng = np.random.default_rng(seed)
    ranks = {path: rng.integers(0, 7, 12) for path in adapters.factors}
    mask = {path: jnp.asarray((np.arange(6) < r[:, None]).astype(np.float32)) for path, r in ranks.items()}
    scale = {path: jnp.asarray(rng.uniform(0.3, 2, 12), jnp.float32) for path in ranks}
    adapters = Adapters(adapters.factors, jaxpost.adapters.AdapterSpec(scale=scale, rank_mask=mask))
    jaxpost.save_adapter(tmp_path / "adapter", adapters, model)
    theirs = peft.PeftModel.from_pretrained(oracle.load(tmp_path / "base"), tmp_path / "adapter").eval()
    assert_all_used(theirs, tmp_path / "adapter")
    tokens = some_tokens(model, seed)
    live = our_logits(model, jaxpost.bind(model.params, adapters), tokens)
    np.testing.assert_allclose(oracle.logits(theirs, tokens), live, rtol=0, atol=ATOL)


THEIRS = {
    "names": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear", "lora_alpha": 3},
    "a pattern": {"target_modules": r".*layers\.[02]\.(self_attn\.[qo]|mlp\.up)_proj"},
    "rsLoRA": {"target_modules": LINEARS, "use_rslora": True, "r": 5},
    "patterns": {
        "target_modules": LINEARS,
        "rank_pattern": {"layers.1.self_attn.q_proj": 7, "q_proj": 2, "up_proj": 1},
        "alpha_pattern": {"mlp.up_proj": 5, "layers.0.self_attn.v_proj": 1},
    },
    "layers": {"target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [0, 2]},
    "excluded": {"target_modules": LINEARS, "exclude_modules": ["k_proj", "model.layers.1.mlp.up_proj"]},
    "rsLoRA with patterns": {"target_modules": ["o_proj"], "use_rslora": True, "rank_pattern": {r"\b2\..*o_proj": 9}},
}


@pytest.mark.parametrize(
    "family, options", [*(("llama", name) for name in THEIRS), ("qwen2", "rsLoRA"), ("gemma3_text", "patterns")]
)
def test_L7_pefts_adapters_load_here(tmp_path, family, options):
    """An adapter that PEFT made and saved gives PEFT's logits; saved again by us it gives them in PEFT once more.

    Mutation: jaxpost/hub/peft_config.py: `alpha / (math.sqrt(rank) if self.use_rslora else rank)` -> `alpha / self.rank`
    """  # noqa: E501
    model = jaxpost.load(tiny.make(tmp_path / "base", family, seed=9))
    oracle.torch.manual_seed(9)
    settings = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **THEIRS[options]})
    theirs = peft.get_peft_model(oracle.load(tmp_path / "base"), settings).eval()
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.5 * weight.shape[1] ** -0.5)
    theirs.save_pretrained(tmp_path / "adapter")
    adapters = jaxpost.load_adapter(tmp_path / "adapter", model)
    tokens = some_tokens(model, 9)
    expected = oracle.logits(theirs, tokens)
    got = our_logits(model, jaxpost.bind(model.params, adapters), tokens)
    np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)
    assert np.abs(expected - our_logits(model, model.params, tokens)).max() > 0.1
    jaxpost.save_adapter(tmp_path / "again", adapters, model)
    again = peft.PeftModel.from_pretrained(oracle.load(tmp_path / "base"), tmp_path / "again").eval()
    np.testing.assert_allclose(oracle.logits(again, tokens), expected, rtol=0, atol=ATOL)
    assert isinstance(json.loads((tmp_path / "again/adapter_config.json").read_text())["target_modules"], list)
