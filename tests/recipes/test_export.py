"""`jaxpost export`: merged logits are those of base plus adapter, and every adapter tensor is accounted for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from tolerances import FLOAT32_CPU

import jaxpost
from jaxpost.cli import main


def logits(model, params, seed=0):
    tokens = jnp.asarray(tiny.tokens({"vocab_size": model.config.vocab_size}, seed))
    return np.asarray(jaxpost.forward(model.config, params, tokens))


def run(tmp_path, base, adapter, *argv):
    return main(["export", "--model", str(base), "--adapter", str(adapter), "--output", str(tmp_path / "out"), *argv])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_L19_every_adapter_tensor_is_accounted_for(tmp_path, capsys, family):
    """Each changed weight is reported with the norm of its change; the others stay bit for bit.

    Mutation: jaxpost/adapters/bind.py: `params = _replace(params, path.split("/"), fold)` -> `pass`
    """
    base = tiny.make(tmp_path / "base", family, seed=1)
    only = {"layers": (1,), "layers_to_transform": [1]}
    adapter = tiny.make_adapter(tmp_path / "adapter", base, seed=2, targets=("q_proj", "down_proj"), **only)
    assert run(tmp_path, base, adapter) == 0
    said = capsys.readouterr().out
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"}
    for name in changed:
        line = next(line for line in said.splitlines() if line.startswith(name.removesuffix(".weight") + ":"))
        assert float(line.split()[-1]) == pytest.approx(np.linalg.norm(after[name] - before[name]), rel=1e-3)
    model, merged = jaxpost.load(base), jaxpost.load(tmp_path / "out")
    bound = jaxpost.bind(model.params, jaxpost.load_adapter(adapter, model))
    want = logits(model, bound)
    assert np.abs(want - logits(model, model.params)).max() > 0.1
    np.testing.assert_allclose(logits(merged, merged.params), want, atol=FLOAT32_CPU["logits"].absolute)


def test_L19_a_tensor_that_changes_nothing_stops_the_export(tmp_path, capsys):
    """B of one layer is 0: exit 2 names the layer, and nothing is written.

    Mutation: jaxpost/recipes/export.py: `if not change.delta_norm > 0.0` -> `if change.delta_norm < 0.0`
    """
    base = tiny.make(tmp_path / "base")
    model = jaxpost.load(base)
    adapters = jaxpost.adapters.init(jax.random.key(0), model, rank=2, alpha=4.0, targets="q_proj")
    factors = {
        path: {"lora_A": f["lora_A"], "lora_B": f["lora_B"].at[1:].set(1.0)} for path, f in adapters.factors.items()
    }
    jaxpost.save_adapter(tmp_path / "adapter", jaxpost.adapters.Adapters(factors, adapters.spec), model)
    assert run(tmp_path, base, tmp_path / "adapter") == 2
    said = capsys.readouterr().err
    assert "1 of 3 do not, model.layers.0.self_attn.q_proj" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked, written", [("checkpoint", "bfloat16"), ("float32", "float32")])
def test_dtype_of_the_written_tensors(tmp_path, asked, written):
    base = tiny.make(tmp_path / "base", dtype="bfloat16")
    adapter = tiny.make_adapter(tmp_path / "adapter", base)
    assert run(tmp_path, base, adapter, "--dtype", asked) == 0
    assert {t.dtype.name for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {written}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == written


def test_a_folder_that_does_not_give_the_same_logits_is_not_kept(tmp_path, capsys, monkeypatch):
    """The reloaded folder is compared with base plus adapter before it gets its name."""
    from jaxpost.recipes import export

    base = tiny.make(tmp_path / "base")
    adapter = tiny.make_adapter(tmp_path / "adapter", base)
    merge = export.merge
    monkeypatch.setattr(export, "merge", lambda params, adapters: merge(merge(params, adapters), adapters))
    assert run(tmp_path, base, adapter) == 1
    assert "logits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_or_foreign_adapter_is_refused(tmp_path, capsys):
    base = tiny.make(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    assert run(tmp_path, base, tmp_path / "adapter") == 2
    assert "adapter_config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_changes_that_rounding_undoes_stop_the_export(tmp_path, capsys):
    """A change of a thousandth of a bfloat16 step leaves the written weight as it was; in float32 it is there.

    Mutation: jaxpost/recipes/export.py: `if lost := sorted(adapted - changed):` -> `if lost := []:`
    """
    base = tiny.make(tmp_path / "base", dtype="bfloat16")
    model = jaxpost.load(base)
    adapters = jaxpost.adapters.init(jax.random.key(0), model, rank=2, alpha=4.0, targets="q_proj")
    factors = {
        path: {"lora_A": jnp.ones_like(f["lora_A"]), "lora_B": jnp.full_like(f["lora_B"], 1e-12)}
        for path, f in adapters.factors.items()
    }
    jaxpost.save_adapter(tmp_path / "adapter", jaxpost.adapters.Adapters(factors, adapters.spec), model)
    assert run(tmp_path, base, tmp_path / "adapter") == 2
    said = capsys.readouterr().err
    assert "rounded away" in said and "--dtype float32" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_weight_that_the_adapter_does_not_adapt_may_not_change(tmp_path, capsys, monkeypatch):
    """Mutation: jaxpost/recipes/export.py: `if others := sorted(changed - adapted):` -> `if others := []:`"""
    from jaxpost.recipes import export

    base = tiny.make(tmp_path / "base")
    adapter = tiny.make_adapter(tmp_path / "adapter", base, targets=("q_proj",))
    merge = export.merge

    def stray(params, adapters):
        made = merge(params, adapters)
        return {**made, "norm": {"weight": made["norm"]["weight"] * 1.0001}}

    monkeypatch.setattr(export, "merge", stray)
    assert run(tmp_path, base, adapter) == 1
    assert "model.norm.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
