"""The options of `jaxpost generate`: names, defaults and meaning, here and nowhere else."""

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxpost.core.config import option
from jaxpost.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Sampling from a model."""

    model: str = option(help="folder or hub id of the model")
    adapter: Path | None = option(None, "PEFT folder to sample with")
    prompt: tuple[str, ...] = option((), "raw text to continue; repeatable", verbatim=True)
    data: tuple[str, ...] = option(
        (),
        "JSONL or Parquet file, or data set of the hub, of rows with prompt (text or messages), or messages up to the "
        "last user turn; repeatable",
    )
    chat_template: str | None = option(None, "chatml, or a Jinja file: in place of the tokenizer's own template")
    date: datetime.date | None = option(
        None,
        "day for chat templates that write one (Llama 3.2); none is today, with --adapter too: the day of its training "
        "stands in its run.yaml",
    )
    chat: bool = option(False, "talk in the terminal; messages go through the chat template")
    output: Path | None = option(None, "new JSONL file, one line a completion; none prints them")
    max_new_tokens: int = option(256, "of a completion", unit="tokens", range="[1, inf)")
    max_length: int | None = option(
        None, "of prompt and completion; none is the model's max_position_embeddings", unit="tokens", range="[2, inf)"
    )
    overlong_prompt: Literal["error", "keep-end"] = option(
        "error", "a prompt that leaves no room in max_length is refused, or loses its beginning"
    )
    temperature: float = option(0.0, "0 takes the likeliest token each time", range="[0, inf)")
    n: int = option(1, "completions of each prompt", range="[1, inf)")
    seed: int = option(
        0,
        "with the prompt (and the day, where the template writes it), all that a completion depends on",
        range="[0, 4294967295]",
    )
    batch_size: int = option(16, "completions under way at a time", range="[1, inf)")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "of computation and weights; auto is float32 on CPU, bfloat16 elsewhere"
    )


UNUSED_IN_CHAT = ("output", "n", "batch_size")


def check(config: GenerateConfig) -> None:
    """Refuses contradictions, and options that the chosen way would not look at."""
    given = [name for name in ("prompt", "data", "chat") if getattr(config, name)]
    if len(given) != 1:
        got = " and ".join(f"--{name}" for name in given) or "none"
        raise InputError(f"one of `--prompt`, `--data` and `--chat` must be given; got {got}. Choose one.")
    if config.temperature == float("inf"):
        raise InputError("`--temperature` must be a finite number; got inf. Choose one such as 1.")
    if config.prompt and config.date is not None:
        raise InputError(
            f"`--date` must not be given with `--prompt`, whose text has no template; got {config.date}. Drop it."
        )
    defaults = {field.name: field.default for field in dataclasses.fields(GenerateConfig)}
    if config.chat and (ignored := [name for name in UNUSED_IN_CHAT if getattr(config, name) != defaults[name]]):
        flag = "--" + ignored[0].replace("_", "-")
        raise InputError(f"`{flag}` must not be given with `--chat`, which has no use for it. Drop it.")
