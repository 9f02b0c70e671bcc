"""The options of `jaxpost sft`: names, defaults and meaning, here and nowhere else."""

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxpost.core.config import option
from jaxpost.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter."""

    rank: int = option(16, "rank of each adapted matrix", range="[1, inf)")
    alpha: float = option(32.0, "scaling is alpha / rank", range="(0, inf)")
    dropout: float | None = option(
        None, "of the inputs of the low-rank branch; none is 0, or that of --adapter", range="[0, 1)"
    )
    targets: str | tuple[str, ...] = option("all-linear", "all-linear, names joined by commas, or re:PATTERN")
    variant: Literal["lora"] = option("lora", "kind of adapter")


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning."""

    model: str = option(help="folder or hub id of the model to start from")
    data: tuple[str, ...] = option(
        help="JSONL or Parquet file, or data set of the hub, ORG/NAME[/CONFIG][@REVISION][:SPLIT], of text, "
        "prompt + completion, messages or ShareGPT rows; repeatable; FILE=0.7 and ORG/NAME=0.3 mix by rows: an epoch "
        "ends where one is used up"
    )
    skip_bad_rows: bool = option(False, "count and name rows that are broken, and go on without them")
    eval_data: tuple[str, ...] = option((), "rows to evaluate on during training, as --data; repeatable")
    output: Path = option(help="new folder for the adapter (or checkpoint), metrics.jsonl and run.yaml")
    adapter: Path | None = option(None, "PEFT folder to start from; it is trained further")
    chat_template: str | None = option(None, "chatml or a file with Jinja, in place of the tokenizer's own template")
    date: datetime.date | None = option(
        None, "day for chat templates that write one (Llama 3.2); none is the day on which the run starts"
    )
    full: bool = option(False, "train all weights instead of an adapter")
    lora: LoraConfig = LoraConfig()
    loss: Literal["nll", "dft", "eaft"] = option("nll", "likelihood, or weighted by probability or by entropy")
    steps: int | None = option(None, "optimizer steps, instead of epochs", range="[1, inf)")
    epochs: float = option(3.0, "passes over the data", range="(0, inf)")
    batch_size: int = option(8, "rows a step: packed rows with packing, documents without", range="[1, inf)")
    micro_batch_size: int | None = option(None, "rows at a time; none takes the most that fit", range="[1, inf)")
    max_length: int = option(1024, "of a row", unit="tokens", range="[2, inf)")
    packing: Literal["on", "off"] = option("on", "several documents in a row, none sees another")
    overlong: Literal["truncate", "drop", "error"] = option("truncate", "what becomes of rows over max_length")
    learning_rate: float | None = option(None, "none is 2e-4 for an adapter, 2e-5 with --full", range="[0, inf)")
    schedule: Literal["linear", "cosine", "constant"] = option("linear", "of the learning rate, after the warm-up")
    warmup_ratio: float = option(0.03, "part of the steps in which the rate rises", range="[0, 1]")
    weight_decay: float = option(0.0, "of AdamW", range="[0, inf)")
    max_grad_norm: float = option(1.0, "global norm to which gradients are clipped; 0 is off", range="[0, inf)")
    neftune_alpha: float = option(
        0.0, "noise on the embeddings while training, alpha / sqrt(document's tokens x features)", range="[0, inf)"
    )
    max_skipped_steps: int = option(10, "steps in a row without a finite gradient that end the run", range="[1, inf)")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "of computation and frozen weights; auto is float32 on CPU, bfloat16 elsewhere"
    )
    quantize: Literal["none"] = option("none", "storage of the frozen weights")
    double_quant: bool = option(False, "quantise the statistics of quantised weights as well")
    remat: Literal["auto", "none", "full", "attention", "qkv", "mlp"] = option(
        "auto", "what the backward pass keeps of each layer; full recomputes all"
    )
    mesh: str | None = option(None, "data=..,fsdp=..,tensor=..; none puts all accelerators on fsdp")
    report_to: tuple[Literal["tensorboard", "wandb", "none"], ...] = option(
        ("tensorboard",), "where the metrics go beside metrics.jsonl; repeatable"
    )
    eval_steps: int | None = option(None, "steps between evaluations; none is each epoch", range="[1, inf)")
    early_stopping_patience: int | None = option(
        None, "evaluations in a row without a lower eval_loss that end the run; none is off", range="[1, inf)"
    )
    early_stopping_threshold: float = option(0.0, "by how much eval_loss must fall to count", range="[0, inf)")
    save_steps: int | None = option(500, "steps between checkpoints; none saves only when stopped", range="[1, inf)")
    save_total_limit: int = option(2, "checkpoints that are kept, the newest", range="[1, inf)")
    keep: Literal["last", "best"] = option("last", "step whose weights are written at the end; best is by eval_loss")
    resume: bool = option(False, "go on from the newest checkpoint of --output")
    seed: int = option(0, "of order, adapter and dropout", range="[0, 4294967295]")


LEARNING_RATE = {"adapter": 2e-4, "full": 2e-5}


def resolve(config: SftConfig) -> SftConfig:
    """The configuration with what depends on other options filled in; contradictions are refused."""
    if config.full and config.adapter is not None:
        raise InputError(f"`--adapter` must not be given with `--full`; got {config.adapter}. Choose one.")
    if config.adapter is not None and dataclasses.replace(config.lora, dropout=None) != LoraConfig():
        raise InputError(
            "`--lora.rank`, `alpha`, `targets` and `variant` must not be set with `--adapter`: they come from "
            f"{config.adapter}. Drop them, or start a fresh adapter."
        )
    if config.steps is not None and config.epochs != SftConfig.epochs:
        raise InputError(
            f"`--epochs` must not be set with `--steps`; got {config.epochs} and {config.steps}. Drop one."
        )
    _check_evaluation(config)
    if config.double_quant:
        raise InputError("`--double-quant` must be off with `--quantize none`: nothing is quantised.")
    kind = "full" if config.full else "adapter"
    rate = LEARNING_RATE[kind] if config.learning_rate is None else config.learning_rate
    # Keeping gate and up costs memory that a full run has no use for: there it is slower (measured on CPU).
    remat = {"full": "qkv", "adapter": "mlp"}[kind] if config.remat == "auto" else config.remat
    fresh = not config.full and config.adapter is None
    dropout = 0.0 if fresh and config.lora.dropout is None else config.lora.dropout
    lora = dataclasses.replace(config.lora, dropout=dropout)
    return dataclasses.replace(config, learning_rate=rate, remat=remat, lora=lora)


def _check_evaluation(config: SftConfig) -> None:
    """InputError for options that nothing would read."""
    asked = {
        "--keep": config.keep == "best",
        "--eval-steps": config.eval_steps is not None,
        "--early-stopping-patience": config.early_stopping_patience is not None,
    }
    if not config.eval_data and (name := next((name for name, given in asked.items() if given), None)):
        raise InputError(f"`{name}` must be given with `--eval-data`; got none. Give rows to evaluate on, or drop it.")
    if config.early_stopping_threshold and config.early_stopping_patience is None:
        raise InputError("`--early-stopping-threshold` must be given with `--early-stopping-patience`; got none.")
    if config.keep == "best" and config.save_steps is None:
        raise InputError("`--keep best` must not be given with `--save-steps none`: the best step is a checkpoint.")
