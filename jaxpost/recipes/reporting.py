"""What every training recipe tells of its run: reporters while it goes on, loss curve and model card at its end."""

import functools
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxpost.core.config import plain_config
from jaxpost.core.errors import InputError, RunError
from jaxpost.core.files import write_file
from jaxpost.core.options import options
from jaxpost.data.names import DataName, parse_names
from jaxpost.recipes.sft_config import SftConfig
from jaxpost.recipes.sft_setup import Setup
from jaxpost.report import Card, Persistent, Reporter, Reporters, attempt, loss_curve, model_card, wandb
from jaxpost.report.tensorboard import TensorBoard
from jaxpost.train.metrics import MetricsFile, missing_steps, weighted_mean

METRICS, EVENTS, CURVE, CARD = "metrics.jsonl", "runs", "loss.png", "README.md"
PACKAGES = ("jaxpost", "jax", "jaxlib", "optax", "transformers")
UNTOLD = ("model", "data", "output", "adapter")  # the card has places of their own for them
Say = Callable[[str], None]


def check_reporters(names: Sequence[str]) -> None:
    """InputError for a combination that makes no sense, or one that is not installed and has to be."""
    if "none" in names and len(names) > 1:
        raise InputError(f"`--report-to` must not name none beside others; got {', '.join(names)}. Drop one.")
    if "wandb" in names and not wandb.installed():
        raise InputError("`--report-to` must not name wandb where it is not installed. Run: pip install wandb")


def open_reporters(config: SftConfig, say: Say, kept: int = -1) -> Reporters:
    """`metrics.jsonl`, which has to hold every record, and what `--report-to` names, which need not.

    Args:
      kept: the last step whose records stay in a run that goes on, -1 for none.

    Raises:
      RunError: `metrics.jsonl` cannot be opened.
    """
    folder = config.output
    makers: dict[str, Callable[[], Reporter]] = {}
    if "tensorboard" in config.report_to:
        makers["TensorBoard"] = lambda: TensorBoard(folder / EVENTS, kept)
    if "wandb" in config.report_to:
        makers["Weights & Biases"] = lambda: wandb.WandB(folder, plain_config(config))
    return Reporters(Persistent(METRICS, _metrics_file(folder / METRICS), say), makers, say)


def _metrics_file(path: Path) -> MetricsFile:
    try:
        return MetricsFile(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}. Mend the disk or its permissions.") from error


def gap_notes(records: Sequence[Mapping[str, Any]], step: int) -> list[str]:
    """A line where a run goes on from `step` without the records of all steps up to it.

    >>> gap_notes([{"step": 1, "loss": 2.0}, {"step": 4, "loss": 2.0}], 5)
    ['metrics.jsonl lacks 3 of 5 steps (2, 3, 5): mean losses and the loss curve are those of the others']
    >>> gap_notes([{"step": 1, "loss": 2.0}], 1)
    []
    """
    lost = missing_steps(records, step)
    named = ", ".join(map(str, lost[:10])) + (" ..." if len(lost) > 10 else "")
    told = (
        f"{METRICS} lacks {len(lost)} of {step} steps ({named}): mean losses and the loss curve are those of the others"
    )
    return [told] if lost else []


def write_summary(setup: Setup, records: Sequence[Mapping[str, Any]], written: int, say: Say) -> None:
    """Loss curve and model card into the output folder, which is otherwise whole; what cannot be made is said.

    Args:
      records: of metrics.jsonl.
      written: step whose weights are in the folder.
    """
    folder = setup.config.output
    title = f"{setup.config.model} on {', '.join(_data_names(setup.config.data))}"
    attempt(f"no {CURVE}", lambda: loss_curve(folder / CURVE, records, title[:100]), say)
    attempt(f"no {CARD}", lambda: write_file(folder / CARD, model_card(_card(setup, records, written))), say)


def on_hub(base: str) -> bool:
    """Whether a model's name, which was loaded, is a Hub id: it is no folder."""
    return not Path(base).expanduser().exists()


def _card(setup: Setup, records: Sequence[Mapping[str, Any]], written: int) -> Card:
    config = setup.config
    started_from = None if config.adapter is None else _data_names([config.adapter])[0]
    return Card(
        name=config.output.absolute().name,
        folder=str(config.output),
        base_model=config.model,
        on_hub=on_hub(config.model),
        adapter=None if config.full else "LoRA adapter",
        has_tokenizer=(config.output / "tokenizer_config.json").exists(),
        started_from=started_from,
        method=("sft", "supervised fine-tuning"),
        data=tuple(_data_names(config.data)),
        counts=str(setup.counts),
        options=_options(setup),
        results=_results(records, written),
        versions={"Python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        hardware=f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})",
        chat_templates=_chat_templates(setup.model.tokenizer),
    )


def _options(setup: Setup) -> dict[str, Any]:
    """Every option of the run that played a part, files by their names alone; the micro-batch is that which ran."""
    config, unused = setup.config, ("lora.",) if setup.config.full else ()
    told = {}
    for option in options(SftConfig):
        if option.name in UNTOLD or option.name.startswith(unused):
            continue
        told[option.name] = _without_folders(functools.reduce(getattr, option.name.split("."), config))
    return {**told, "micro_batch_size": setup.plan.micro_batch_size}


def _results(records: Sequence[Mapping[str, Any]], written: int) -> dict[str, Any]:
    """Words and figures. Losses of the first and the last tenth of the run are means over their tokens."""
    train = [record for record in records if "loss" in record]
    evals = {record["step"]: record["eval_loss"] for record in records if record.get("eval_loss") is not None}
    window = max(1, len(train) // 10)
    found: dict[str, Any] = {}
    if train:
        found["Steps"], found["Passes over the data"] = train[-1]["step"], train[-1]["epoch"]
        found["Tokens"] = f"{sum(record['trained_tokens'] for record in train):,} trained, "
        found["Tokens"] += f"{train[-1]['num_tokens']:,} seen"
        for words, part in (("first", train[:window]), ("last", train[-window:])):
            found[f"Training loss, {words} {_steps(len(part))}"] = weighted_mean(part)
        if written != train[-1]["step"]:
            found["Weights"] = f"of step {written}"
    if written in evals:
        found["Evaluation loss"] = evals[written]
    return found


def _steps(count: int) -> str:
    return "step" if count == 1 else f"{count} steps"


def _data_names(data: Sequence[Any]) -> list[str]:
    """A file by its name alone, as a card may be published; a Hub id as it is; each with its weight."""
    return [_data_name(name) for name in parse_names(data)]


def _data_name(name: DataName) -> str:
    shown = name.text if name.path is None else name.path.name
    return shown if name.weight is None else f"{shown}={name.weight:g}"


def _without_folders(value: Any) -> Any:
    """An option in YAML's types, files that are there by their names alone."""
    if isinstance(value, tuple):
        return [_without_folders(item) for item in value]
    if isinstance(value, str | Path) and Path(value).is_file():
        return Path(value).name
    return plain_config(value)


def _chat_templates(tokenizer: Any) -> dict[str, str]:
    found = getattr(tokenizer, "chat_template", None)
    if not found:
        return {}
    return dict(found) if isinstance(found, Mapping) else {"default": found}
