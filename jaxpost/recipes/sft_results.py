"""What a finished run of `jaxpost sft` comes to: `train_results.json`, and its line on stderr."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpost.train.metrics import weighted_mean

RESULTS = "train_results.json"  # written last: a run that has it is finished


def results_of(records: Sequence[Mapping[str, Any]], *, step: int, written: int, skipped: int) -> dict[str, Any]:
    """The numbers of a run, from its records; nothing of it depends on time, so a run that was resumed has the same.

    Args:
      step: the last.   written: the one whose weights are in the output folder.   skipped: steps without an update.
    """
    training = [record for record in records if "loss" in record]
    mean, last = weighted_mean(training), weighted_mean(training[-1:])
    found = {
        "step": step,
        "written_step": written,
        "skipped_steps": skipped,
        "epoch": training[-1]["epoch"] if training else None,
        "num_tokens": training[-1]["num_tokens"] if training else None,
        "train_loss": mean if math.isfinite(mean) else None,
        "last_loss": last if math.isfinite(last) else None,
    }
    held_out = [record for record in records if "eval_loss" in record and record["step"] == written]
    return found | {name: held_out[-1][name] for name in ("eval_loss", "eval_mean_token_accuracy") if held_out}


def results_line(results: Mapping[str, Any]) -> str:
    """The results for people.

    >>> results_line({"step": 4, "written_step": 4, "skipped_steps": 1, "train_loss": 2.0, "last_loss": None})
    '4 steps, mean loss 2.0000, last none, 1 skipped as not finite'
    """
    parts = [
        f"{results['step']} steps, mean loss {_number(results['train_loss'])}, last {_number(results['last_loss'])}"
    ]
    if results["skipped_steps"]:
        parts.append(f"{results['skipped_steps']} skipped as not finite")
    if "eval_loss" in results:
        parts.append(f"weights of step {results['written_step']}, {_held_out(results)}")
    return ", ".join(parts)


def evaluation_line(record: Mapping[str, Any]) -> str:
    """An evaluation for people.

    >>> evaluation_line({"step": 5, "eval_loss": 1.5, "eval_mean_token_accuracy": 0.25})
    'step 5: eval_loss 1.5000, eval_mean_token_accuracy 0.2500'
    """
    return f"step {record['step']}: {_held_out(record)}"


def _held_out(values: Mapping[str, Any]) -> str:
    accuracy = _number(values["eval_mean_token_accuracy"])
    return f"eval_loss {_number(values['eval_loss'])}, eval_mean_token_accuracy {accuracy}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
