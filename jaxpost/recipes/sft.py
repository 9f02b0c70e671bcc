"""`jaxpost sft`: a checkpoint and rows in, an adapter or a checkpoint out. Reads top to bottom."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpost.adapters import Adapters
from jaxpost.core.config import dump_config, load_config
from jaxpost.core.errors import RunError, Stopped
from jaxpost.core.files import fill_folder, write_file, write_json
from jaxpost.core.lock import FolderLock
from jaxpost.core.progress import progress
from jaxpost.core.signals import StopRequest, stop_requests
from jaxpost.hub.peft import load_adapter, save_adapter
from jaxpost.hub.save import write
from jaxpost.hub.tokenizer_files import write_tokenizer
from jaxpost.hub.verify import check_written
from jaxpost.recipes.reporting import check_reporters, gap_notes, open_reporters, write_summary
from jaxpost.recipes.sft_config import LoraConfig, SftConfig
from jaxpost.recipes.sft_fingerprints import fingerprints
from jaxpost.recipes.sft_results import RESULTS, evaluation_line, results_line, results_of
from jaxpost.recipes.sft_resume import Start, checkpoints, claim, clean, dated, find_start, go_on, meta_of, options_of
from jaxpost.recipes.sft_setup import Setup, compile_steps, device_batch, parameter_line, prepare
from jaxpost.train.checkpoint import Counters, damage, prune, release, restore, save_checkpoint
from jaxpost.train.loop import require_updates, train
from jaxpost.train.metrics import weighted_mean
from jaxpost.train.milestones import Every, Milestones
from jaxpost.train.programs import Compiled
from jaxpost.train.state import TrainState

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
      Stopped: Ctrl-C or SIGTERM came; a checkpoint is there.
    """
    check_reporters(config.report_to)
    config = dated(config)
    with FolderLock(config.output) as lock:
        if (config.output / "run.yaml").is_file():
            lock.take()
        return _run(config, lock)


def _run(config: SftConfig, lock: FolderLock) -> Path:
    """The run, with the lock on its output folder from the moment that there is one."""
    start = find_start(config)
    if start.finished:
        _say(*start.notes)
        return config.output
    setup = prepare(config)
    found = fingerprints(setup)
    setup = go_on(setup, start, found)
    _say(*start.notes, str(setup.counts))  # nothing is said before the last refusal of an option: that is one line
    if setup.evaluation is not None:
        _say(f"evaluation: {setup.evaluation.counts}")
    _say(parameter_line(setup))
    if config.full and config.lora != LoraConfig():
        _say("the lora options are not used: --full trains all weights")
    if setup.uncut:
        _say(f"not cut along the mesh, as sizes or heads do not divide: {', '.join(setup.uncut)}")
    setup, compiled = compile_steps(setup, _say, start.meta and start.meta.micro_batch_size)
    with stop_requests() as stop:
        claim(config, lock)
        write_file(config.output / "run.yaml", dump_config(dataclasses.replace(setup.config, resume=False)))
        records = clean(config, start)
        _say(*gap_notes(records, start.step))
        state, milestones = _train(setup, compiled, start, found, records, stop)
        step = int(state.step)
        if stop.signal is not None and step < setup.steps and not milestones.patience_is_over:
            raise Stopped(
                f"stopped by {stop.signal.name} after step {step} of {setup.steps}; go on with `jaxpost sft --config "
                f"{shlex.quote(str(config.output / 'run.yaml'))} --resume`.",
                status=128 + stop.signal,
            )
        require_updates(state)
        stop.answer = "the run is at its end and is being written"
        _finish(setup, state, milestones.counters, records)
    return config.output


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _train(
    setup: Setup,
    compiled: Mapping[Any, Compiled],
    start: Start,
    found: Mapping[str, str],
    records: list[dict[str, Any]],
    stop: StopRequest,
) -> tuple[TrainState, Milestones]:
    """Runs the steps that are left; the state at the end and what was counted. Records are added to `records`."""
    config, root, best = setup.config, checkpoints(setup.config), setup.config.keep == "best"
    options, micro = options_of(config), setup.plan.micro_batch_size
    shown = progress(setup.steps, start=start.step, label="sft")
    kept = -1 if start.meta is None else start.step
    with open_reporters(config, _say, kept) as reporters, shown as show:

        def report(record: dict[str, Any]) -> None:
            reporters.write(record)
            records.append(record)
            if "eval_loss" in record:
                _say(evaluation_line(record))
            else:
                show(record["step"], weighted_mean(records[-10:]), record["tokens_per_s"])

        def evaluate(state: TrainState) -> dict[str, Any]:
            assert setup.evaluation is not None, "called where `every.evaluate` is set"
            values = setup.evaluation.run(compiled, state.trainable, setup.frozen)
            return {"epoch": round(int(state.step) / setup.plan.steps_per_epoch, 4), **values}

        def save(state: TrainState, counters: Counters) -> None:
            reporters.sync()
            step = int(state.step)
            save_checkpoint(root, state, meta_of(step, counters, options, found, micro))
            prune(root, limit=config.save_total_limit, with_best=best)

        every = Every(
            evaluate=setup.evaluation and (config.eval_steps or setup.plan.steps_per_epoch),
            save=config.save_steps,
            save_best=best,
            patience=config.early_stopping_patience,
            threshold=config.early_stopping_threshold,
        )
        milestones = Milestones(
            every,
            steps=setup.steps,
            evaluate=evaluate,
            save=save,
            report=report,
            stop=lambda: bool(stop),
            counters=start.counters,
        )
        milestones.start(setup.state)
        if stop or milestones.patience_is_over:
            return setup.state, milestones
        state = train(
            setup.state,
            setup.frozen,
            lambda n: device_batch(setup, n),
            lambda state, frozen, batch: compiled[batch["rows"]["tokens"].shape].call(state, frozen, batch),
            steps=setup.steps,
            learning_rate=lambda n: float(setup.learning_rate(n)),
            max_skipped_steps=config.max_skipped_steps,
            report=report,
            num_tokens=start.counters.num_tokens,
            after=milestones,
        )
    return state, milestones


def _finish(setup: Setup, state: TrainState, counters: Counters, records: Sequence[Mapping[str, Any]]) -> None:
    """The weights into the output folder, and at last the results, which say that the run is finished.

    Raises:
      RunError: the checkpoint of the best step is damaged; those that are there stay.
    """
    config, step = setup.config, int(state.step)
    written = counters.best_step if config.keep == "best" and counters.best_step is not None else step
    best = checkpoints(config) / str(written)
    if written != step and (wrong := damage(best)):
        raise RunError(
            f"the best step's checkpoint, {best}, is damaged: {wrong}. The last step's is there: take its weights by "
            f"`jaxpost sft --config {shlex.quote(str(config.output / 'run.yaml'))} --keep last --resume`."
        )
    results = results_of(records, step=step, written=written, skipped=step - int(state.updates))
    kept = state if written == step else restore(best, release(state))
    _save(setup, kept.trainable)
    write_summary(setup, records, written, _say)
    write_json(config.output / RESULTS, results)
    _say(f"{config.output}: {results_line(results)}")


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
