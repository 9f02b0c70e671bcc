"""Folders of `jaxpost sft --chat-template` as transformers and PEFT load them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxpost import cli
from jaxpost.data.chat.prompt import encode_prompt
from jaxpost.data.chat.turns import Chat
from jaxpost.hub.checkpoint import load
from jaxpost.models.decoder import forward

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

NEW = "{% for m in messages %}{{ '<|new|>' + m.role + ': ' + m.content + '<|stop|>' }}{% endfor %}"
NEW += "{% if add_generation_prompt %}{{ '<|new|>assistant: ' }}{% endif %}"
TURNS = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]


def train(folder, *flags):
    tiny.make(folder / "base", template=None, num_hidden_layers=1, vocab_size=260)
    (folder / "rows.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n")
    (folder / "new.jinja").write_text(NEW)
    argv = ["sft", "--model", str(folder / "base"), "--data", str(folder / "rows.jsonl"), "--steps", "2"]
    assert cli.main([*argv, "--batch-size", "1", "--max-length", "64", "--output", str(folder / "out"), *flags]) == 0
    return folder / "out"


def test_a_grown_checkpoint_is_the_same_model_in_transformers(tmp_path):
    out = train(tmp_path, "--full", "--dtype", "float32", "--chat-template", str(tmp_path / "new.jinja"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.get_input_embeddings().weight.shape[0] == theirs.config.vocab_size == len(tokenizer) == 262
    assert tokenizer.eos_token_id in theirs.generation_config.eos_token_id
    ids = tokenizer.apply_chat_template(TURNS, return_dict=True)["input_ids"]
    model = load(out)
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits.numpy()
    ours = np.asarray(forward(model.config, model.params, jnp.array([ids])))
    np.testing.assert_allclose(ours, wanted, atol=2e-5, rtol=1e-5)
    prompt = tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encode_prompt(Chat(tokenizer=model.tokenizer), TURNS[:1]) == prompt


def test_an_adapter_s_folder_with_a_tokenizer_loads_in_peft(tmp_path):
    out = train(tmp_path, "--chat-template", "chatml")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(base, out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([tokenizer.apply_chat_template(TURNS, return_dict=True)["input_ids"]])
    with torch.no_grad():
        assert torch.isfinite(adapted(ids).logits).all()
