"""The small inputs that broke other tools: each loads exactly, or is refused by name."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused
from safetensors.numpy import load_file

import jaxpost

CASES = Path(__file__).resolve().parents[1] / "cases"
TOLERANCE = 2e-4  # the cases' own, against a float64 model


def difference(model, expected, adapter=None):
    """Largest difference of our logits to those of a case."""
    case = load_file(CASES / expected)
    loaded = jaxpost.load(CASES / model)
    adapters = None if adapter is None else jaxpost.load_adapter(CASES / adapter, loaded)
    logits = jaxpost.forward(loaded.config, jaxpost.bind(loaded.params, adapters), jnp.asarray(case["tokens"]))
    return np.abs(np.asarray(logits) - case["logits"]).max()


def test_H01_rotary_buffers_are_computed_anew():
    """Old checkpoints hold `rotary_emb.inv_freq`: the one exception to "every tensor is used".

    Mutation: jaxpost/hub/checkpoint.py: `and not _ROTARY.fullmatch(name)]` -> `]`
    """
    assert difference("H01/model", "H01/expected.safetensors") < TOLERANCE


def test_H05_a_missing_shard_is_named():
    """The message names the file, how many tensors it holds, and that the download looks incomplete.

    Mutation: jaxpost/hub/safetensors_reader.py: `held = sum(file == missing[0] for file in weight_map.values())` -> `held = 0`
    """  # noqa: E501
    index = json.loads((CASES / "H05/model/model.safetensors.index.json").read_text())["weight_map"]
    held = sum(file == "model-00002-of-00002.safetensors" for file in index.values())
    mentions = ["model-00002-of-00002.safetensors", f"holds {held} of {len(index)} tensors", "incomplete"]
    refused(lambda: jaxpost.load(CASES / "H05/model"), *mentions)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_H07_null_keys(name):
    """head_dim, sliding_window, rope_scaling and ids that are null.

    Mutation: jaxpost/models/families.py: `given = fields.optional("head_dim", family.head_dim) is not None` -> `given = True`
    """  # noqa: E501
    assert difference(f"H07/{name}", f"H07/expected-{name}.safetensors") < TOLERANCE


def test_H28_stop_ids_are_kept_in_each_file(tmp_path):
    """R-5b: config.json says 3, generation_config.json [2, 3], the tokenizer 2; saving changes none.

    Mutation: jaxpost/hub/save.py: `    "generation_config.json",` -> `    "x",`
    """
    shutil.copytree(CASES / "H28/model", tmp_path / "model")
    for file in (CASES / "tokenizer").iterdir():
        shutil.copy(file, tmp_path / "model")
    jaxpost.save(tmp_path / "out", jaxpost.load(tmp_path / "model"))
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads(
        (tmp_path / "model/config.json").read_text()
    )


def test_H30_leftovers_load_and_code_is_not_run(tmp_path, monkeypatch):
    """Keys that tools leave behind, and an `auto_map` that is never followed.

    Mutation: jaxpost/models/hf_fields.py: `_HARMLESS_PREFIXES = ("unsloth_",)` -> `_HARMLESS_PREFIXES = ()`
    """
    monkeypatch.chdir(tmp_path)
    assert difference("H30/model", "H30/expected.safetensors") < TOLERANCE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["regex", "all-linear"])
def test_L02_target_modules_as_a_string(tmp_path, name):
    """A pattern, or all-linear; what is written again is a list of names.

    Mutation: jaxpost/hub/peft_config.py: `everything = self.targets.lower() == "all-linear"` -> `everything = False`
    """  # noqa: E501
    assert difference("L02/model", f"L02/expected-{name}.safetensors", f"L02/{name}") < TOLERANCE
    model = jaxpost.load(CASES / "L02/model")
    jaxpost.save_adapter(tmp_path / "out", jaxpost.load_adapter(CASES / "L02" / name, model), model)
    written = json.loads((tmp_path / "out/adapter_config.json").read_text())["target_modules"]
    expected = {"regex": "q_proj v_proj", "all-linear": "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"}
    assert written == expected[name].split()


@pytest.mark.parametrize("name", ["old", "quiet"])
def test_L04_adapters_of_other_years_load(name):
    """Keys of 2023 and of tomorrow that are null, false, 0 or empty.

    Mutation: jaxpost/hub/peft_config.py: `value in (None, False, 0, "", [])` -> `value in ()`
    """
    assert difference("L04/model", "L04/expected.safetensors", f"L04/{name}") < TOLERANCE


@pytest.mark.parametrize("name, key", [("loud", "use_future_scaling"), ("replicated", "layer_replication")])
def test_L04_a_key_with_a_real_value_is_refused(name, key):
    """PEFT ignores even an unknown switch that is on.

    Mutation: jaxpost/hub/peft_config.py: `or _is_off(value):` -> `or True:`
    """
    model = jaxpost.load(CASES / "L04/model")
    refused(lambda: jaxpost.load_adapter(CASES / "L04" / name, model), key)


@pytest.mark.parametrize("name, mention", [("none", "no tensors"), ("zero", "[0]")])
def test_L05_empty_adapters_are_refused(name, mention):
    """A sharded save left a file without tensors, or tensors of shape [0].

    Mutation: jaxpost/hub/peft.py: `    if not tensors:` -> `    if False:`
    Mutation: jaxpost/hub/peft.py: `        if got != shape:` -> `        if False:`
    """
    model = jaxpost.load(CASES / "L05/model")
    refused(lambda: jaxpost.load_adapter(CASES / "L05" / name, model), mention, "gathering")
