"""`jaxpost generate`: prompts in, completions out, to a file, to the terminal, or in a conversation."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxpost.adapters import bind
from jaxpost.core.config import load_config
from jaxpost.core.errors import RunError
from jaxpost.core.files import refuse_existing_file, write_file
from jaxpost.data.prompts import Prompt, read_prompts
from jaxpost.hub.checkpoint import load
from jaxpost.hub.peft import load_adapter
from jaxpost.recipes.chat_template import with_tokenizer
from jaxpost.recipes.generate_chat import converse
from jaxpost.recipes.generate_config import GenerateConfig, check
from jaxpost.sampling.generate import Completion, Generator, Limits
from jaxpost.train.programs import mebibytes

ABOUT = "Sample from a model, with an adapter or without: text prompts, rows of a file, or a conversation."
KEPT = "data_"  # before a copied column whose name the record itself uses


def main(argv: Sequence[str]) -> int:
    """Runs the command on its arguments; 0 when all completions are there."""
    run(load_config(GenerateConfig, argv, command="generate", about=ABOUT))
    return 0


def run(config: GenerateConfig) -> None:
    """Generates as `config` says.

    Raises:
      InputError: an option, prompt or file that is wrong; nothing is written then.
      RunError: the model gives log-probabilities that are no numbers.
    """
    check(config)
    limits = Limits(
        max_new_tokens=config.max_new_tokens, max_length=config.max_length, overlong_prompt=config.overlong_prompt
    )
    if config.output is not None:
        refuse_existing_file(config.output)
    prompts = read_prompts(config.data) if config.data else _given(config)
    generator = _generator(config)
    if config.chat:
        converse(generator, limits, temperature=config.temperature, seed=config.seed)
        return
    completions = generator.complete(
        prompts,
        limits=limits,
        n=config.n,
        temperature=config.temperature,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    made = list(records(prompts, completions, config.n))
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        write_file(
            config.output, "".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in made)
        )
    elif config.data:
        for record in made:
            print(json.dumps(record, ensure_ascii=False, default=str))
    else:
        _show(completions, config.n)
    tokens = sum(len(completion.tokens) for completion in completions)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(generator.weights.params))
    print(f"{len(completions)} completions, {tokens:,} tokens; {mebibytes(size)} of weights", file=sys.stderr)


def records(prompts: Sequence[Prompt], completions: Sequence[Completion], n: int) -> Iterator[dict[str, Any]]:
    """One record a completion: the row's columns, then number of the row (from 1) and of the sample, and what was said.

    A column whose name the record itself uses is kept under `data_NAME`, but for the prompt.
    """
    for index, completion in enumerate(completions):
        prompt = prompts[index // n]
        logp = sum(completion.logps)
        if not math.isfinite(logp):
            raise RunError(f"log-probabilities must be numbers; got {logp} for {prompt.where}. Are the weights whole?")
        record = {
            "row": index // n + 1,
            "sample": index % n,
            "prompt": prompt.content,
            "completion": completion.text,
            "logp": logp,
            "finish_reason": completion.finish_reason,
            "num_tokens": len(completion.tokens),
        }
        yield {**_copied(prompt.columns, record), **record}


def _copied(columns: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    return {KEPT + name if name in record else name: value for name, value in columns.items() if name != "prompt"}


def _given(config: GenerateConfig) -> list[Prompt]:
    return [Prompt(content=text, where=f"--prompt {i}") for i, text in enumerate(config.prompt, start=1)]


def _generator(config: GenerateConfig) -> Generator:
    model = load(config.model, dtype=config.dtype)
    params = model.params
    if config.adapter is not None:
        params = bind(params, load_adapter(config.adapter, model))
    model = with_tokenizer(model, config.adapter, config.chat_template, trains_rows=False)
    return Generator(model, params=params, date=config.date)


def _show(completions: Sequence[Completion], n: int) -> None:
    """Texts for a reader; a headline before each where there are several."""
    for index, completion in enumerate(completions):
        if len(completions) > 1:
            print(f"=== prompt {index // n + 1}, completion {index % n + 1} ({completion.finish_reason})")
        print(completion.text)
