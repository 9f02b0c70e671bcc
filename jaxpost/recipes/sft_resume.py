"""Going on with a run of `jaxpost sft`: from which checkpoint, with which options, without what a crash left."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from jaxpost.core.config import dump_config, load_config
from jaxpost.core.errors import InputError
from jaxpost.core.files import is_leftover, refuse_existing, remove_leftovers
from jaxpost.core.lock import LOCK, FolderLock
from jaxpost.core.options import options
from jaxpost.recipes import sft_fingerprints
from jaxpost.recipes.sft_config import SftConfig, resolve
from jaxpost.recipes.sft_results import RESULTS
from jaxpost.recipes.sft_setup import Setup, compute_dtype
from jaxpost.train.checkpoint import Counters, Meta, damage, discard_after, newest_whole, read_meta, release, restore
from jaxpost.train.metrics import cut_back

# Options that may be others when a run goes on. These change no number of it:
FREE = {"output", "resume", "date", "save_steps", "save_total_limit", "max_skipped_steps", "skip_bad_rows", "report_to"}
FREE |= {"micro_batch_size"}  # beyond rounding, which is said when it is known which one fits, see `compile_steps`
# These change no row and no number beyond rounding (and which inputs dropout drops), which is said:
ROUNDING = {"mesh", "remat"}
ROUNDING_PACKAGES = ("jax", "jaxlib", "optax")
PACKAGES = (*ROUNDING_PACKAGES, "jaxpost", "numpy", "orbax-checkpoint")
# These may change in one direction only, which changes no step:
ONE_WAY = {"keep": ("best", "last")}
# Of `sft_fingerprints.OPTIONS` and of the date the content must stay, the name need not. Every other option must stay.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run starts.

    Attributes:
      folder: the checkpoint to go on from, None for step 0.   meta: its metadata.
      finished: the run is over already, nothing is to be done.
      notes: lines to say.
    """

    folder: Path | None = None
    meta: Meta | None = None
    finished: bool = False
    notes: Sequence[str] = ()

    @property
    def step(self) -> int:
        return 0 if self.meta is None else self.meta.step

    @property
    def counters(self) -> Counters:
        return Counters() if self.meta is None else self.meta.counters


def checkpoints(config: SftConfig) -> Path:
    """The folder of a run's checkpoints."""
    return config.output / "checkpoints"


def dated(config: SftConfig) -> SftConfig:
    """The configuration with the day on which its run started: its run.yaml's, or today."""
    run_yaml = config.output / "run.yaml"
    started = load_config(SftConfig, [], run_yaml).date if config.resume and run_yaml.is_file() else None
    return dataclasses.replace(config, date=config.date or started or datetime.date.today())


def find_start(config: SftConfig) -> Start:
    """Where the run that `config` describes starts; nothing is written or removed.

    Raises:
      InputError: the folder holds something and `--resume` is not given, or it holds something else than a run; an
        option that changes the result is not the run's.
    """
    run_yaml = config.output / "run.yaml"
    if not config.resume and run_yaml.is_file():
        raise InputError(
            f"`--output` must be a new or empty folder; got {config.output}, which is not empty: it holds a run. Go "
            "on with it by `--resume`, or choose another."
        )
    if not config.resume or not config.output.is_dir():
        if not (config.output.is_dir() and _is_unused(config.output)):
            refuse_existing(config.output)
        return Start()
    if not run_yaml.is_file():
        if not _is_unused(config.output):
            raise InputError(f"`--resume` must find a run.yaml in `--output`; got {config.output}. Choose another.")
        return Start()
    if (config.output / RESULTS).is_file():
        _check_options(options_of(load_config(SftConfig, [], run_yaml)), config, run_yaml, finished=True)
        return Start(finished=True, notes=[f"{config.output}: the run is finished, nothing is left to do"])
    root = checkpoints(config)
    damaged: list[str] = []
    folder = newest_whole(root, damaged.append)
    if folder is None and damaged:  # to start at step 0 would remove what somebody may still be able to mend
        raise InputError(
            f"`--resume` must find a checkpoint that is whole; got none: {'; '.join(damaged)}. Choose another "
            f"`--output`, or remove {root} to start at step 0."
        )
    if folder is None:
        return Start(notes=[f"no checkpoint to go on from in {root}: starts at step 0"])
    meta = read_meta(folder)
    notes = [*_check_options(meta.config, config, folder), *_other_packages(meta.versions)]
    if config.keep == "best":
        _check_best(folder, meta.counters)
    return Start(folder=folder, meta=meta, notes=[*damaged, *notes, f"goes on from {folder}"])


def options_of(config: SftConfig) -> dict[str, Any]:
    """The options as YAML has them, nested, with what depends on others and on the machine filled in."""
    return yaml.safe_load(dump_config(dataclasses.replace(resolve(config), dtype=compute_dtype(config).name)))


def meta_of(
    step: int, counters: Counters, options: Mapping[str, Any], fingerprints: Mapping[str, str], micro: int
) -> Meta:
    """The metadata of a checkpoint of this run and these packages."""
    return Meta(
        step=step,
        counters=counters,
        fingerprints=fingerprints,
        config=options,
        micro_batch_size=micro,
        versions={name: version(name) for name in PACKAGES},
    )


def go_on(setup: Setup, start: Start, fingerprints: Mapping[str, str]) -> Setup:
    """The setup with the checkpoint's state, bit for bit, on the devices of now; at step 0 the setup itself.

    Args:
      fingerprints: of the setup, see `sft_fingerprints`.

    Raises:
      InputError: base, adapter or rows are not the run's.
    """
    if start.folder is None or start.meta is None:
        return setup
    sft_fingerprints.check(fingerprints, start.meta.fingerprints, start.folder)
    return dataclasses.replace(setup, state=restore(start.folder, release(setup.state)))


def claim(config: SftConfig, lock: FolderLock) -> None:
    """Makes the output folder this run's, if it is not yet.

    Raises:
      InputError: another run is at work there, or was since `find_start` looked.
    """
    output = config.output
    output.mkdir(parents=True, exist_ok=True)
    if lock.taken:
        return
    lock.take()
    if not _is_unused(output):
        raise InputError(f"`--output` must be a folder that no other run uses; got {output}. Choose another.")


def clean(config: SftConfig, start: Start) -> list[dict[str, Any]]:
    """Removes what a run that goes on makes again or a crash left half written; the records that stay."""
    discard_after(checkpoints(config), start.step)
    remove_leftovers(config.output)
    kept = start.step if start.meta is not None else -1  # from the start, the evaluation of step 0 is made again too
    return cut_back(config.output / "metrics.jsonl", kept)


def _is_unused(output: Path) -> bool:
    """Whether nothing is in the folder, or what a run left that was killed before its run.yaml."""
    return all(item.name == LOCK or is_leftover(item.name) for item in output.iterdir())


def _check_best(folder: Path, counters: Counters) -> None:
    """InputError where the checkpoint in `folder` names a best step whose checkpoint is damaged."""
    best = folder if counters.best_step is None else folder.with_name(str(counters.best_step))
    if best != folder and (wrong := damage(best)):
        raise InputError(
            f"`--keep best` must find the best step's checkpoint whole, which {folder} names; got {best}: {wrong}. Go "
            "on with `--keep last`, which needs none, or start anew with another `--output`."
        )


def _other_packages(versions: Mapping[str, str]) -> list[str]:
    """A line where the checkpoint was made with other packages that compute."""
    others = [name for name in ROUNDING_PACKAGES if versions.get(name) != version(name)]
    told = ", ".join(f"{name} {version(name)} instead of {versions.get(name)}" for name in others)
    return [f"{told}: results are equal up to rounding"] if others else []


def _check_options(saved: Mapping[str, Any], config: SftConfig, where: Path, *, finished: bool = False) -> list[str]:
    """InputError for an option that must stay and does not; lines for those that change the rounding.

    Args:
      finished: nothing comes any more that an option could change.
    """
    before, now = _flat(saved), _flat(options_of(config))
    notes = []
    for option in options(SftConfig):
        name = option.name
        old = before.get(name, option.default)  # a version that did not know the option did as its default does
        if now[name] == old or name in FREE or name in sft_fingerprints.OPTIONS:
            continue
        if ONE_WAY.get(name) == (old, now[name]) and not finished:
            notes.append(f"{option.flag} {_text(now[name])} instead of {_text(old)}")
            continue
        if name not in ROUNDING:
            raise InputError(
                f"`{option.flag}` must stay {_text(old)} when a run goes on; got {_text(now[name])}, other than at "
                f"{where}. Drop it, or start anew with another `--output`."
            )
        notes.append(f"{option.flag} {_text(now[name])} instead of {_text(old)}: results are equal up to rounding")
    return notes


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value.

    >>> _flat({"steps": 3, "lora": {"rank": 4}})
    {'steps': 3, 'lora.rank': 4}
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
