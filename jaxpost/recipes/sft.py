"""`jaxpost sft`: a checkpoint and rows in, an adapter or a checkpoint out. Reads top to bottom."""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpost.adapters import Adapters, init, num_parameters
from jaxpost.core.config import dump_config, load_config
from jaxpost.core.errors import InputError, RunError
from jaxpost.core.files import fill_folder, refuse_existing, write_file
from jaxpost.core.progress import progress
from jaxpost.data.batches import BatchPlan
from jaxpost.data.encode import encode_rows
from jaxpost.data.sources import read_rows
from jaxpost.hub.checkpoint import load
from jaxpost.hub.model import Model
from jaxpost.hub.peft import load_adapter, save_adapter
from jaxpost.hub.save import write
from jaxpost.hub.verify import check_written
from jaxpost.objectives import adapter_policy, full_policy, sft
from jaxpost.recipes.sft_config import LoraConfig, SftConfig, resolve
from jaxpost.sharding import batch_sharding, dropped_axes, make_mesh, replicated, tree_shardings
from jaxpost.train.loop import total_steps, train
from jaxpost.train.metrics import MetricsFile, weighted_mean
from jaxpost.train.optimizers import adamw, schedule
from jaxpost.train.programs import Compiled, Program, compile_largest, mebibytes
from jaxpost.train.state import TrainState, init_state
from jaxpost.train.step import make_step

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
    config = resolve(config)
    assert config.learning_rate is not None, "filled in by resolve"
    refuse_existing(config.output)
    mesh = _mesh(config)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    model = load(config.model, dtype="float32" if config.full else config.dtype, mesh=mesh)
    encoded = encode_rows(
        model.tokenizer,
        read_rows(config.data),
        max_length=config.max_length,
        overlong=config.overlong,
        vocab_size=model.config.vocab_size,
        stop_ids=model.stop_ids,
    )
    plan = BatchPlan(
        examples=encoded.examples,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size or config.batch_size,
        max_length=config.max_length,
        packing=config.packing == "on",
        seed=config.seed,
    )
    steps = total_steps(config.steps, config.epochs, plan.steps_per_epoch)
    rate = schedule(config.schedule, config.learning_rate, steps, config.warmup_ratio)
    optimizer = adamw(rate, weight_decay=config.weight_decay)
    sizes = _micro_batch_sizes(config, mesh)
    trainable, frozen, spec = _start(config, model)
    say(str(encoded.counts))  # nothing is said before the last refusal of an option: that is one line
    say(parameter_line(model, trainable, spec))
    if config.full and config.lora != LoraConfig():
        say("the lora options are not used: --full trains all weights")
    heads = (model.config.num_kv_heads, model.config.num_heads)
    if mesh is not None and (dropped := dropped_axes(model.params, mesh, *heads)):
        say(f"not cut along the mesh, as sizes or heads do not divide: {', '.join(dropped)}")
    objective = sft(
        model.config,
        full_policy if config.full else adapter_policy,
        loss=config.loss,
        dtype=_compute_dtype(config),
        remat=config.remat,
    )
    state = init_state(trainable, optimizer, config.seed)
    del trainable
    if config.full:
        model = dataclasses.replace(model, params=None)  # the state has its own copy
    places = None if mesh is None else tree_shardings(state, mesh, *heads)
    state = state if mesh is None else jax.device_put(state, places)
    step = make_step(objective, optimizer, max_grad_norm=config.max_grad_norm or None, state_shardings=places)
    plan, compiled = _compile(sizes, plan, steps, step, state, frozen, mesh, say)
    records: list[dict[str, Any]] = []
    config.output.mkdir(parents=True, exist_ok=True)
    write_file(config.output / "run.yaml", dump_config(config))
    with MetricsFile(config.output / "metrics.jsonl") as file, progress(steps, label="sft") as show:

        def report(record: dict[str, Any]) -> None:
            file.write(record)
            records.append(record)
            show(record["step"], weighted_mean(records[-10:]), record["tokens_per_s"])

        state = train(
            state,
            frozen,
            lambda n: _batch(plan, n, mesh),
            lambda state, frozen, batch: compiled[batch["rows"]["tokens"].shape].call(state, frozen, batch),
            steps=steps,
            learning_rate=lambda n: float(rate(n)),
            max_skipped_steps=config.max_skipped_steps,
            report=report,
        )
    _save(config, model, state, spec)
    mean, last = weighted_mean(records), weighted_mean(records[-1:])
    say(f"{config.output}: {steps} steps, mean loss {mean:.4f}, last {last:.4f}")
    return config.output


def _mesh(config: SftConfig) -> Mesh | None:
    """As asked; otherwise all accelerators on `fsdp`. A CPU's devices are one machine's cores: no mesh unasked."""
    many = jax.device_count() > 1 and jax.default_backend() != "cpu"
    return make_mesh(config.mesh) if config.mesh is not None or many else None


def _compute_dtype(config: SftConfig) -> Any:
    if config.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.dtype)


def _start(config: SftConfig, model: Model) -> tuple[Any, Any, Any]:
    """What is trained, what is frozen, and the adapter's spec (None with `--full`)."""
    if config.full:
        return model.params, {}, None
    options = dataclasses.asdict(config.lora)
    if config.adapter is not None:
        loaded = load_adapter(config.adapter, model)
        kept = loaded.spec.dropout if config.lora.dropout is None else config.lora.dropout
        adapters = Adapters(loaded.factors, dataclasses.replace(loaded.spec, dropout=kept))
    else:
        adapters = init(jax.random.key(config.seed), model, **options)
        if outside := [path for path in adapters.factors if not path.startswith("layers/")]:
            raise InputError(f"`--lora.targets` must be inside the layers; got {outside[0]}. Leave it out.")
    return adapters.factors, {"params": model.params, "spec": adapters.spec}, adapters.spec


def parameter_line(model: Model, trainable: Any, spec: Any) -> str:
    """The field's line: trainable and all parameters, and their ratio in percent."""
    base = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params))
    trained = base if spec is None else num_parameters(Adapters(trainable, spec))
    total = base if spec is None else base + trained
    return f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}"


def _compile(
    sizes: Sequence[int],
    plan: BatchPlan,
    steps: int,
    step: Any,
    state: TrainState,
    frozen: Any,
    mesh: Mesh | None,
    say: Callable[[str], None],
) -> tuple[BatchPlan, dict[Any, Compiled]]:
    """The plan with the micro-batch that fits, and one executable a bucket; its memory is said before step 0."""

    def programs(micro: int) -> dict[Any, Program]:
        sized = dataclasses.replace(plan, micro_batch_size=micro)
        return {
            bucket: Program(function=step, arguments=(state, frozen, _abstract_batch(bucket, mesh)), mesh=mesh)
            for bucket in sized.buckets(steps)
        }

    micro, compiled = compile_largest(programs, sizes)
    for (accumulate, rows, length), program in compiled.items():
        m = program.memory
        say(
            f"bucket {accumulate} x {rows} x {length}: {mebibytes(m.peak_bytes)} a device "
            f"({mebibytes(m.argument_bytes)} arguments, {mebibytes(m.temp_bytes)} temporaries)"
        )
    return dataclasses.replace(plan, micro_batch_size=micro), compiled


def _micro_batch_sizes(config: SftConfig, mesh: Mesh | None) -> list[int]:
    """Sizes to try, largest first: divisors of the batch that the mesh's batch axes divide."""
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    asked = config.micro_batch_size
    if config.batch_size % shards or (asked is not None and asked % shards):
        raise InputError(
            f"`--batch-size` and `--micro-batch-size` must be multiples of data x fsdp = {shards}; got "
            f"{config.batch_size} and {asked}. Change them or `--mesh`."
        )
    divisors = [n for n in range(config.batch_size, 0, -1) if config.batch_size % n == 0 and n % shards == 0]
    return divisors if asked is None else [asked]


def _abstract_batch(bucket: tuple[int, int, int], mesh: Mesh | None) -> Any:
    rows = batch_sharding(mesh, leading=1) if mesh else None
    ints, floats = (jax.ShapeDtypeStruct(bucket, dtype, sharding=rows) for dtype in (jnp.int32, jnp.float32))
    total = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh) if mesh else None)
    named = {"tokens": ints, "segment_ids": ints, "positions": ints, "loss_mask": floats}
    return {"rows": named, "totals": {"tokens": total}}


def _batch(plan: BatchPlan, step: int, mesh: Mesh | None) -> tuple[Any, dict[str, Any]]:
    rows, totals, info = plan.batch(step)
    batch = {"rows": rows, "totals": totals}
    if mesh is not None:
        places = {
            "rows": dict.fromkeys(rows, batch_sharding(mesh, leading=1)),
            "totals": dict.fromkeys(totals, replicated(mesh)),
        }
        batch = jax.device_put(batch, places)
    facts = {"num_tokens": info.num_tokens, "trained_tokens": info.trained_tokens, "epoch": round(info.epoch, 4)}
    return batch, facts


def _save(config: SftConfig, model: Model, state: TrainState, spec: Any) -> None:
    """The adapter or checkpoint into the output folder, every file whole; read again and compared."""
    with fill_folder(config.output) as aside:
        if config.full:
            write(aside, model, state.trainable)
            check_written(aside, model.config, state.trainable)
        else:
            adapters = Adapters(state.trainable, spec)
            save_adapter(aside, adapters, model, base_name=config.model)
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
