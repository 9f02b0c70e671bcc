"""Going on with a run of `jaxpost sft`: from which checkpoint, with which options, without what a crash left."""

import dataclasses
import datetime
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from jaxpost.core.config import dump_config, load_config
from jaxpost.core.errors import InputError
from jaxpost.core.files import refuse_existing
from jaxpost.core.options import options
from jaxpost.recipes import sft_fingerprints
from jaxpost.recipes.sft_config import SftConfig, resolve
from jaxpost.recipes.sft_results import RESULTS
from jaxpost.recipes.sft_setup import Setup, compute_dtype
from jaxpost.train.checkpoint import Counters, Meta, discard_after, newest_whole, read_meta, release, restore
from jaxpost.train.metrics import cut_back

# Options that may be others when a run goes on. These change no number of it:
FREE = {"output", "resume", "date", "save_steps", "save_total_limit", "max_skipped_steps", "skip_bad_rows", "report_to"}
# These change no row and no number beyond rounding (and which inputs dropout drops), which is said:
ROUNDING = {"micro_batch_size", "mesh", "remat"}
# Of `sft_fingerprints.OPTIONS` and of the date the content must stay, the name need not. Every other option must stay.

_HALF_WRITTEN = re.compile(r"\..+\.(json|jsonl|yaml|md|png)\.[a-z0-9_]{8}")  # see `write_file`


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
    return dataclasses.replace(config, date=config.date or started or datetime.date.today().isoformat())


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
        refuse_existing(config.output)
        return Start()
    if not run_yaml.is_file():
        if any(not _HALF_WRITTEN.fullmatch(item.name) for item in config.output.iterdir()):
            raise InputError(f"`--resume` must find a run.yaml in `--output`; got {config.output}. Choose another.")
        return Start()
    if (config.output / RESULTS).is_file():
        _check_options(options_of(load_config(SftConfig, [], run_yaml)), config, run_yaml)
        return Start(finished=True, notes=[f"{config.output}: the run is finished, nothing is left to do"])
    damaged: list[str] = []
    folder = newest_whole(checkpoints(config), damaged.append, with_best=config.keep == "best")
    if folder is None:
        return Start(notes=[*damaged, f"no checkpoint to go on from in {checkpoints(config)}: starts at step 0"])
    meta = read_meta(folder)
    notes = _check_options(meta.config, config, folder)
    return Start(folder=folder, meta=meta, notes=[*damaged, *notes, f"goes on from {folder}"])


def options_of(config: SftConfig) -> dict[str, Any]:
    """The options as YAML has them, nested, with what depends on others and on the machine filled in."""
    return yaml.safe_load(dump_config(dataclasses.replace(resolve(config), dtype=compute_dtype(config).name)))


def meta_of(
    step: int, counters: Counters, options: Mapping[str, Any], fingerprints: Mapping[str, str], micro: int
) -> Meta:
    """The metadata of a checkpoint of this run and these packages."""
    packages = ("jaxpost", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")
    return Meta(
        step=step,
        counters=counters,
        fingerprints=fingerprints,
        config=options,
        micro_batch_size=micro,
        versions={name: version(name) for name in packages},
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


def clean(config: SftConfig, start: Start) -> list[dict[str, Any]]:
    """Removes what a run that goes on makes again or a crash left half written; the records that stay."""
    output = config.output.absolute()
    discard_after(checkpoints(config), start.step)
    for item in output.parent.glob(f".{output.name}.????????"):  # see `fill_folder`
        shutil.rmtree(item, ignore_errors=True)
    for item in output.iterdir():
        if _HALF_WRITTEN.fullmatch(item.name):
            item.unlink()
    kept = start.step if start.meta is not None else -1  # from the start, the evaluation of step 0 is made again too
    return cut_back(output / "metrics.jsonl", kept)


def _check_options(saved: Mapping[str, Any], config: SftConfig, where: Path) -> list[str]:
    """InputError for an option that must stay and does not; lines for those that change the rounding."""
    before, now = _flat(saved), _flat(options_of(config))
    notes = []
    for option in options(SftConfig):
        name = option.name
        old = before.get(name, option.default)  # a version that did not know the option did as its default does
        if now[name] == old or name in FREE or name in sft_fingerprints.OPTIONS:
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
