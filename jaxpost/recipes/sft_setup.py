"""What a run of `jaxpost sft` is made of before its first step: shared by training, `rows` and `doctor --numerics`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpost.adapters import Adapters, init, num_parameters
from jaxpost.core.errors import InputError
from jaxpost.data.batches import BatchPlan
from jaxpost.data.dataset import prepare_data
from jaxpost.data.encode import EncodeOptions
from jaxpost.data.examples import Counts, Encoded, Example
from jaxpost.hub.checkpoint import load
from jaxpost.hub.model import Model
from jaxpost.hub.peft import load_adapter
from jaxpost.objectives import adapter_policy, full_policy, make_score, sft
from jaxpost.recipes.chat_template import with_tokenizer
from jaxpost.recipes.sft_config import SftConfig, resolve
from jaxpost.recipes.sft_evaluation import Evaluation
from jaxpost.sharding import batch_sharding, dropped_axes, make_mesh, replicated, tree_shardings
from jaxpost.train.loop import total_steps
from jaxpost.train.optimizers import adamw, schedule
from jaxpost.train.programs import Compiled, Program, compile_largest, mebibytes
from jaxpost.train.state import TrainState, init_state
from jaxpost.train.step import make_step


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """A run that is ready to be compiled.

    Attributes:
      config: as `resolve` gives it.
      model: as loaded; its `params` are None with `--full`, where the state holds them.
      counts: what became of the rows.   data_fingerprint: of the examples.
      plan: the batches.   steps: how many the run takes.
      evaluation: on held-out rows, None without.
      learning_rate: update number -> rate.
      objective: what `step` differentiates, see `objectives.sft`.
      step: jitted (state, frozen, batch) -> (state, metrics); it donates the state.
      state: at step 0.   frozen: the step's second argument.
      spec: of the adapter, None with `--full`.
      mesh: None on one device.
      uncut: paths of weights that do not lie as the mesh's table says.
    """

    config: SftConfig
    model: Model
    counts: Counts
    data_fingerprint: str
    plan: BatchPlan
    steps: int
    evaluation: Evaluation | None
    learning_rate: Callable[[int], Any]
    objective: Callable[..., Any]
    step: Any
    state: TrainState
    frozen: Any
    spec: Any
    mesh: Mesh | None
    uncut: Sequence[str]


def prepare(config: SftConfig) -> Setup:
    """Loads, encodes and lays out everything that `config` names.

    Raises:
      InputError: an input or option that is wrong.
    """
    config = resolve(config)
    assert config.learning_rate is not None, "filled in by resolve"
    mesh = _mesh(config)
    model = load(config.model, dtype="float32" if config.full else config.dtype, mesh=mesh)
    model = with_tokenizer(model, config.adapter, config.chat_template, trains_rows=config.full)
    encoded = _encode(config, model, config.data)
    held_out = _encode_held_out(config, model)
    plan = batch_plan(config, encoded.examples)
    steps = total_steps(config.steps, config.epochs, plan.steps_per_epoch)
    rate = schedule(config.schedule, config.learning_rate, steps, config.warmup_ratio)
    optimizer = adamw(rate, weight_decay=config.weight_decay)
    _micro_batch_sizes(config, mesh)  # refuses what does not divide before anything is made
    trainable, frozen, spec = _start(config, model)
    heads = (model.config.num_kv_heads, model.config.num_heads)
    uncut = [] if mesh is None else dropped_axes(model.params, mesh, *heads)
    policy, dtype = full_policy if config.full else adapter_policy, compute_dtype(config)
    objective = sft(
        model.config, policy, loss=config.loss, dtype=dtype, remat=config.remat, neftune_alpha=config.neftune_alpha
    )
    evaluation = held_out and Evaluation(
        plan=batch_plan(config, held_out.examples),
        counts=held_out.counts,
        fingerprint=held_out.fingerprint,
        score=make_score(model.config, policy, dtype=dtype),
        mesh=mesh,
    )
    state = init_state(trainable, optimizer, config.seed)
    del trainable
    if config.full:
        model = dataclasses.replace(model, params=None)  # the state has its own copy
    places = None if mesh is None else tree_shardings(state, mesh, *heads)
    return Setup(
        config=config,
        model=model,
        counts=encoded.counts,
        data_fingerprint=encoded.fingerprint,
        plan=plan,
        steps=steps,
        evaluation=evaluation,
        learning_rate=rate,
        objective=objective,
        step=make_step(objective, optimizer, max_grad_norm=config.max_grad_norm or None, state_shardings=places),
        state=state if mesh is None else jax.device_put(state, places),
        frozen=frozen,
        spec=spec,
        mesh=mesh,
        uncut=uncut,
    )


def parameter_line(setup: Setup) -> str:
    """The field's line: trainable and all parameters, and their ratio in percent."""
    trainable, spec = setup.state.trainable, setup.spec
    base = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trainable if spec is None else setup.model.params))
    trained = base if spec is None else num_parameters(Adapters(trainable, spec))
    total = base if spec is None else base + trained
    return f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}"


def compile_steps(
    setup: Setup, say: Callable[[str], None], most: int | None = None
) -> tuple[Setup, dict[Any, Compiled]]:
    """The setup with the micro-batch that fits, and one executable a bucket; its memory is said before step 0.

    Args:
      most: the largest micro-batch to try unless the configuration names one: that of the run that goes on. Where
        another is taken, this is said.

    Returns:
      Programs of the training by [accumulate, micro, T], those of the evaluation by [micro, T].
    """

    def programs(micro: int) -> dict[Any, Program]:
        training = dataclasses.replace(setup.plan, micro_batch_size=micro).buckets(setup.steps)
        found: dict[Any, Program] = {bucket: step_program(setup, bucket) for bucket in training}
        if setup.evaluation is not None:
            found |= setup.evaluation.sized(micro).programs(setup.state.trainable, setup.frozen)
        return found

    sizes = _micro_batch_sizes(setup.config, setup.mesh)
    micro, compiled = compile_largest(programs, [n for n in sizes if most is None or n <= most] or sizes)
    if most not in (None, micro):
        why = ", as no more fits" if setup.config.micro_batch_size is None and micro < most else ""
        say(f"--micro-batch-size {micro} instead of {most}{why}: results are equal up to rounding")
    for shape, program in compiled.items():
        m = program.memory
        say(
            f"{'' if len(shape) == 3 else 'evaluation '}bucket {' x '.join(map(str, shape))}: "
            f"{mebibytes(m.peak_bytes)} a device "
            f"({mebibytes(m.argument_bytes)} arguments, {mebibytes(m.temp_bytes)} temporaries)"
        )
    plan = dataclasses.replace(setup.plan, micro_batch_size=micro)
    evaluation = setup.evaluation and setup.evaluation.sized(micro)
    return dataclasses.replace(setup, plan=plan, evaluation=evaluation), compiled


def step_program(setup: Setup, bucket: tuple[int, int, int]) -> Program:
    """The training step at one shape [accumulate, micro, T]."""
    arguments = (setup.state, setup.frozen, _abstract_batch(bucket, setup.mesh))
    return Program(function=setup.step, arguments=arguments, mesh=setup.mesh)


def device_batch(setup: Setup, step: int) -> tuple[Any, dict[str, Any]]:
    """The batch of a step on its devices, and what the host knows of it (see `train`)."""
    rows, totals, info = setup.plan.batch(step)
    batch = placed({"rows": rows, "totals": totals}, setup.mesh)
    facts = {"num_tokens": info.num_tokens, "trained_tokens": info.trained_tokens, "epoch": round(info.epoch, 4)}
    return batch, facts


def placed(batch: dict[str, Any], mesh: Mesh | None) -> dict[str, Any]:
    """A host batch with its rows cut along the mesh; without one as it is."""
    if mesh is None:
        return batch
    places = {
        "rows": dict.fromkeys(batch["rows"], batch_sharding(mesh, leading=1)),
        "totals": dict.fromkeys(batch["totals"], replicated(mesh)),
    }
    return jax.device_put(batch, places)


def _encode(config: SftConfig, model: Model, data: Sequence[str]) -> Encoded:
    options = EncodeOptions(
        max_length=config.max_length,
        overlong=config.overlong,
        vocab_size=model.config.vocab_size,
        stop_ids=model.stop_ids,
        skip_bad_rows=config.skip_bad_rows,
        date=config.date,
    )
    return prepare_data(model.tokenizer, data, options, seed=config.seed)


def _encode_held_out(config: SftConfig, model: Model) -> Encoded | None:
    """The rows of `--eval-data`, encoded as the training's; what is wrong with them names the option."""
    if not config.eval_data:
        return None
    try:
        return _encode(config, model, config.eval_data)
    except InputError as error:
        raise InputError(f"`--eval-data`: {error}") from error


def batch_plan(config: SftConfig, examples: Sequence[Example]) -> BatchPlan:
    """The batches of a run; without a micro-batch size as if a whole batch fitted."""
    return BatchPlan(
        examples=examples,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size or config.batch_size,
        max_length=config.max_length,
        packing=config.packing == "on",
        seed=config.seed,
    )


def _mesh(config: SftConfig) -> Mesh | None:
    """As asked; otherwise all accelerators on `fsdp`. A CPU's devices are one machine's cores: no mesh unasked."""
    many = jax.device_count() > 1 and jax.default_backend() != "cpu"
    return make_mesh(config.mesh) if config.mesh is not None or many else None


def compute_dtype(config: SftConfig) -> Any:
    """Of computation and frozen weights, on this machine."""
    if config.dtype == "auto":
        return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
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
