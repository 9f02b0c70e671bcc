"""The options of `jaxpost doctor`: those of `jaxpost sft`, all of them, and its own."""

from dataclasses import dataclass
from pathlib import Path

from jaxpost.core.config import option
from jaxpost.recipes.sft_config import SftConfig


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(SftConfig):
    """The run to look at, as `jaxpost sft` would be told to make it: `sft` and its `run.yaml` become `doctor`.

    Every option is checked as `sft` checks it, and written into `--json`.
    """

    output: Path | None = option(None, "folder of the run, if any; must be free, nothing is written")  # pyright: ignore[reportIncompatibleVariableOverride]
    numerics: bool = option(False, "load the weights and compare one step under other batch layouts, in float32")
    show: int = option(1, "rows shown, chosen by the seed, beside the first and the longest", range="[0, inf)")
    json: Path | None = option(None, "file for the report as JSON")
