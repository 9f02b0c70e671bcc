"""`jaxpost export`: base and adapter in, merged Hugging Face checkpoint out, every adapter tensor accounted for."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxpost.adapters import Adapters, bind, delta_norms, merge
from jaxpost.core.config import load_config, option
from jaxpost.core.errors import InputError, RunError
from jaxpost.core.files import new_folder, refuse_existing
from jaxpost.hub.checkpoint import load
from jaxpost.hub.model import Model
from jaxpost.hub.peft import load_adapter
from jaxpost.hub.save import write
from jaxpost.hub.verify import changed_tensors, check_written
from jaxpost.models.config import ModelConfig
from jaxpost.models.decoder import forward
from jaxpost.recipes.chat_template import with_tokenizer
from jaxpost.stages import hf_names

ABOUT = "Merge an adapter into its base: a Hugging Face checkpoint that needs no adapter."
PROBE_TOKENS = 64  # of the text on which the merged folder is compared with base plus adapter
# Largest difference of logits over the largest logit that rounding the merged weights may cause.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The options of `jaxpost export`."""

    model: str = option(help="folder or hub id of the base model")
    adapter: Path = option(help="PEFT folder to merge")
    output: Path = option(help="new folder for the merged checkpoint")
    dtype: Literal["checkpoint", "float32", "bfloat16", "float16"] = option(
        "checkpoint", "of the written tensors; checkpoint keeps the base's"
    )


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the adapter does to one weight."""

    module: str
    delta_norm: float  # Frobenius norm of scale B A


def main(argv: Sequence[str]) -> int:
    """Runs the command on its arguments; 0 when the folder is there."""
    config = load_config(ExportConfig, argv, command="export", about=ABOUT)
    changes, difference = export(config)
    for change in changes:
        print(f"{change.module}: norm of the change {change.delta_norm:.4g}")
    largest = max(changes, key=lambda change: change.delta_norm)
    print(f"{config.output}: {len(changes)} weights changed, most {largest.module} (norm {largest.delta_norm:.4g})")
    print(f"reloaded: largest difference of logits {difference:.2e} of the largest logit", file=sys.stderr)
    return 0


def export(config: ExportConfig) -> tuple[list[Change], float]:
    """Writes the merged folder, whole or not at all.

    Returns:
      each changed weight, and the largest difference of the reloaded folder's logits from base plus adapter, over the
      largest logit.

    Raises:
      InputError: an adapter that does not fit the base, or a tensor of it that changes nothing, in what was written.
      RunError: the folder, read again, is not base plus adapter.
    """
    refuse_existing(config.output)
    model = load(config.model)
    model = with_tokenizer(model, config.adapter, None, trains_rows=False)
    adapters = load_adapter(config.adapter, model)
    changes = account(model, adapters)
    dtype = None if config.dtype == "checkpoint" else config.dtype
    # In float32, so that merging rounds once, when the tensors are written.
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), model.params)
    merged = merge(wide, adapters)
    with new_folder(config.output) as aside:
        write(aside, model, merged, dtype)
        check_written(aside, model.config, merged)
        del merged
        check_changes(model, changes, aside)
        difference = compare(model.config, bind(wide, adapters), aside)
    return changes, difference


def account(model: Model, adapters: Adapters) -> list[Change]:
    """One `Change` for each adapted layer; a tensor that would change nothing is an error that names it."""
    changes = []
    for path, norms in delta_norms(adapters).items():
        ranks = np.asarray(adapters.spec.rank_mask[path]).sum(-1).reshape(-1)
        names = hf_names(path, model.config.stages)
        for name, rank, norm in zip(names, ranks, np.asarray(norms).reshape(-1), strict=True):
            if rank:
                changes.append(Change(module=name, delta_norm=float(norm)))
    idle = [change.module for change in changes if not change.delta_norm > 0.0]
    if idle or not changes:
        raise InputError(
            f"every tensor of `--adapter` must change a weight; {len(idle)} of {len(changes)} do not, "
            f"{idle[0] if idle else 'as it has none'} first. Was it trained?"
        )
    return changes


def check_changes(model: Model, changes: Sequence[Change], folder: Path) -> None:
    """Exactly the adapted weights changed, in the dtype that was written."""
    assert model.folder is not None, "it was loaded"
    adapted = {f"{change.module}.weight" for change in changes}
    changed = changed_tensors(folder, model.folder)
    if lost := sorted(adapted - changed):
        raise InputError(
            f"every tensor of `--adapter` must change a weight; {len(lost)} changes are rounded away, first that of "
            f"{lost[0]}. Export with `--dtype float32`."
        )
    if others := sorted(changed - adapted):
        raise RunError(f"`{others[0]}` changed, which the adapter does not adapt; nothing was kept.")


def compare(config: ModelConfig, bound: Any, folder: Path) -> float:
    """Largest difference of logits between the folder and the bound tree, over the largest logit."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (1, PROBE_TOKENS)), jnp.int32)
    merged = load(folder, dtype="float32")
    logits = jax.jit(forward, static_argnums=0)
    want, got = logits(config, bound, tokens), logits(merged.config, merged.params, tokens)
    difference = float(jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want)))
    narrowest = min((jnp.finfo(name).bits, name) for name in set(merged.checkpoint_dtypes.values()))[1]
    if not difference <= TOLERANCE[narrowest]:
        raise RunError(
            f"the merged folder must give the logits of base plus adapter within {TOLERANCE[narrowest]} "
            f"({narrowest}); the largest difference is {difference:.2e}. Nothing was written."
        )
    return difference
