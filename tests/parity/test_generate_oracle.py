"""Greedy ids equal transformers' `generate(do_sample=False)`: every family, prompts of unlike length, SmolLM2."""

import numpy as np
import oracle
import pytest
import smollm2
import tiny

import jaxpost
from jaxpost.sampling import Sampler
from jaxpost.sampling.draw import row_keys

NEW = 70  # beyond every window, and over the edge of a cache of 64 slots


def theirs(model, prompt: list[int], new: int, stop_ids: list[int]) -> list[int]:
    """One prompt alone: nothing is padded."""
    ids = oracle.torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0, "eos_token_id": stop_ids or None}
    with oracle.torch.no_grad():
        return model.generate(ids, attention_mask=oracle.torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


def ours(model, prompts: list[list[int]], new: int, stop_ids: list[int]) -> list[list[int]]:
    sampler = Sampler(model.config)
    rows = list(range(len(prompts)))
    keys = row_keys(0, prompts, [0] * len(rows))
    made = sampler.sample(
        sampler.prepare(model.params), prompts, rows, keys, limits=new, temperature=0.0, stop_ids=stop_ids
    )
    return [tokens[:length].tolist() for tokens, length in zip(made.tokens, made.lengths, strict=True)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_ids_of_every_family(family, tmp_path):
    """Prompts of 1 to 70 tokens in one batch, with ids that end rows at unlike times and without.

    Mutation: jaxpost/models/cache.py: `else seen & (slot - held < window)` -> `else seen`
    Mutation: jaxpost/models/cache.py: `held = slot - (slot - place) % size` -> `held = place`
    """
    folder = tiny.make(tmp_path, family, seed=5)
    rng = np.random.default_rng(5)
    prompts = [rng.integers(4, 288, size).tolist() for size in (1, 9, 33, 70)]
    model, reference = jaxpost.load(folder, dtype="float32"), oracle.load(folder)
    expected = [theirs(reference, prompt, NEW, []) for prompt in prompts]
    assert ours(model, prompts, NEW, []) == expected
    stops = [expected[0][3], expected[3][40], 9]
    cut = [next((i + 1 for i, token in enumerate(ids) if token in stops), NEW) for ids in expected]
    assert min(cut) < max(cut)
    assert ours(model, prompts, NEW, stops) == [ids[:end] for ids, end in zip(expected, cut, strict=True)]


def test_greedy_text_of_smollm2():
    """Through the chat template and as raw text."""
    folder = smollm2.folder()
    model, reference = jaxpost.load(folder, dtype="float32"), oracle.load(folder)
    tokenizer = model.tokenizer
    messages = [{"role": "user", "content": "Name three colours of the rainbow."}]
    text = "The capital of France is"
    made = jaxpost.generate(model, [messages, text], max_new_tokens=24)
    stops = sorted(model.stop_ids | {tokenizer.eos_token_id})
    for completion, ids in zip(made, (_chat_ids(tokenizer, messages), tokenizer(text)["input_ids"]), strict=True):
        assert completion.tokens == theirs(reference, list(ids), 24, stops)
        assert completion.text == tokenizer.decode(completion.tokens, skip_special_tokens=True)


def _chat_ids(tokenizer, messages) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
