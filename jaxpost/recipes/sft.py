"""`jaxpost sft`: a checkpoint and rows in, an adapter or a checkpoint out. Reads top to bottom."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpost.adapters import Adapters
from jaxpost.core.config import dump_config, load_config
from jaxpost.core.errors import RunError
from jaxpost.core.files import fill_folder, refuse_existing, write_file
from jaxpost.core.progress import progress
from jaxpost.hub.peft import load_adapter, save_adapter
from jaxpost.hub.save import write
from jaxpost.hub.tokenizer_files import write_tokenizer
from jaxpost.hub.verify import check_written
from jaxpost.recipes.reporting import check_reporters, open_reporters, write_summary
from jaxpost.recipes.sft_config import LoraConfig, SftConfig
from jaxpost.recipes.sft_setup import Setup, compile_steps, device_batch, parameter_line, prepare
from jaxpost.train.loop import train
from jaxpost.train.metrics import weighted_mean

ABOUT = (
    "Fine-tune a Hugging Face checkpoint on rows with text, prompt + completion, messages or ShareGPT conversations."
)


def main(argv: Sequence[str]) -> int:
    """Runs the command on its arguments; 0 when the output is there."""
    run(load_config(SftConfig, argv, command="sft", about=ABOUT))
    return 0


def run(config: SftConfig) -> Path:
    """Trains as `config` says and returns the output folder.

    Raises:
      InputError: an input or option that is wrong; nothing is written then.
      Diverged: too many steps without a finite gradient.
    """
    refuse_existing(config.output)
    check_reporters(config.report_to)
    setup = prepare(config)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    say(str(setup.counts))  # nothing is said before the last refusal of an option: that is one line
    say(parameter_line(setup))
    if config.full and config.lora != LoraConfig():
        say("the lora options are not used: --full trains all weights")
    if setup.uncut:
        say(f"not cut along the mesh, as sizes or heads do not divide: {', '.join(setup.uncut)}")
    setup, compiled = compile_steps(setup, say)
    records: list[dict[str, Any]] = []
    config.output.mkdir(parents=True, exist_ok=True)
    write_file(config.output / "run.yaml", dump_config(setup.config))
    with open_reporters(setup.config, say) as reporters, progress(setup.steps, label="sft") as show:

        def report(record: dict[str, Any]) -> None:
            reporters.write(record)
            records.append(record)
            show(record["step"], weighted_mean(records[-10:]), record["tokens_per_s"])

        state = train(
            setup.state,
            setup.frozen,
            lambda n: device_batch(setup, n),
            lambda state, frozen, batch: compiled[batch["rows"]["tokens"].shape].call(state, frozen, batch),
            steps=setup.steps,
            learning_rate=lambda n: float(setup.learning_rate(n)),
            max_skipped_steps=config.max_skipped_steps,
            report=report,
        )
    _save(setup, state.trainable)
    write_summary(setup, records, setup.steps, say)
    mean, last = weighted_mean(records), weighted_mean(records[-1:])
    say(f"{config.output}: {setup.steps} steps, mean loss {mean:.4f}, last {last:.4f}")
    return config.output


def _save(setup: Setup, trainable: Any) -> None:
    """The adapter or checkpoint into the output folder, every file whole; read again and compared."""
    config, model = setup.config, setup.model
    with fill_folder(config.output) as aside:
        if config.full:
            write(aside, model, trainable)
            check_written(aside, model.config, trainable)
        else:
            adapters = Adapters(trainable, setup.spec)
            save_adapter(aside, adapters, model, base_name=config.model)
            if model.given_tokenizer is not None:
                write_tokenizer(aside, model.given_tokenizer)
            _check_adapter(adapters, load_adapter(aside, model))


def _check_adapter(saved: Adapters, read: Adapters) -> None:
    """RunError unless the adapter that was read again has the factors and scales of every layer, bit for bit."""

    def numbers(adapters: Adapters) -> Any:
        spec = adapters.spec
        live = {
            path: (f["lora_A"] * spec.rank_mask[path][..., None], f["lora_B"] * spec.rank_mask[path][..., None, :])
            for path, f in adapters.factors.items()
        }
        return jax.device_get((live, spec.scale))

    want, got = numbers(saved), numbers(read)
    if jax.tree.structure(want) != jax.tree.structure(got) or not all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True)
    ):
        raise RunError("the adapter that was written is not the one that was trained; nothing was kept.")
