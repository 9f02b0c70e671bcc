"""`jaxpost rows --run DIR --step N`: which rows a step was made of, and what each did to it."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxpost.core.config import load_config, option
from jaxpost.core.errors import InputError
from jaxpost.core.files import write_json
from jaxpost.recipes.row_figures import RowFigures, row_figures
from jaxpost.recipes.sft_config import SftConfig
from jaxpost.recipes.sft_replay import Replay, replay

ABOUT = (
    "Name the rows of one step of a run, by file and line, and run the step again from the nearest checkpoint: loss, "
    "tokens and gradient norm of each row, the worst first."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """The options of `jaxpost rows`."""

    run: Path = option(help="output folder of a run of `jaxpost sft`")
    step: int = option(help="the `step` of a record of metrics.jsonl", range="[1, inf)")
    top: int | None = option(20, "rows to print; none prints all", range="[1, inf)")
    sort: Literal["loss", "grad_norm"] = option("loss", "figure by which the rows are ordered, largest first")
    json: Path | None = option(None, "file for all rows and figures; one that is there is replaced")


def main(argv: Sequence[str]) -> int:
    """Runs the command on its arguments; 0 when the table is printed."""
    config = load_config(RowsConfig, argv, command="rows", about=ABOUT)
    done, found = rows(config, lambda text: print(text, file=sys.stderr, flush=True))
    print("\n".join(table(done, found, config.top)))
    if config.json is not None:
        write_json(config.json, as_json(config, done, found))
    return 0


def rows(config: RowsConfig, say: Callable[[str], None]) -> tuple[Replay, list[RowFigures]]:
    """The step run again, and the figures of its rows, sorted. Nothing is written.

    Raises:
      InputError: a folder without a run, a step that the run has not, data or a model that are others by now.
    """
    if not (config.run / "run.yaml").is_file():
        raise InputError(f"`--run` must be the output folder of a run; got {config.run}, which has no run.yaml.")
    if config.json is not None and not config.json.absolute().parent.is_dir():
        raise InputError(f"`--json` must be a file in a folder that exists; got {config.json}. Make the folder.")
    settings = load_config(SftConfig, [], config.run / "run.yaml")
    found: list[RowFigures] = []
    done = replay(
        dataclasses.replace(settings, output=config.run),
        config.step,
        say,
        before=lambda setup, state: found.extend(row_figures(setup, state.trainable, config.step)),
    )
    return done, sorted(found, key=lambda row: _rank(getattr(row, config.sort)), reverse=True)


def table(done: Replay, found: Sequence[RowFigures], top: int | None) -> list[str]:
    """The lines to print: what the step gave, then a row a line."""
    lines = [_first_line(done, len(found)), f"{'loss':>9}  {'grad_norm':>9}  {'trained':>7}  {'tokens':>6}  row"]
    for row in found[:top]:
        lines.append(
            f"{row.loss:9.4f}  {row.grad_norm:9.4f}  {row.trained_tokens:7d}  {row.tokens:6d}  "
            f"{row.where}: {row.excerpt}"
        )
    hidden = len(found) - len(found[:top])
    return lines + ([f"{hidden} more rows: --top none prints them"] if hidden else [])


def as_json(config: RowsConfig, done: Replay, found: Sequence[RowFigures]) -> dict[str, Any]:
    """The whole answer in JSON's types."""
    rows = [_finite(dataclasses.asdict(row)) for row in found]
    head = {"run": str(config.run), "sort": config.sort, **dataclasses.asdict(done), "equal": done.equal}
    return {**head, "rows": rows}


def _first_line(done: Replay, count: int) -> str:
    start = "from the start" if done.checkpoint is None else f"from checkpoint {done.checkpoint}"
    figures = ", ".join(f"{name} {_text(value)}" for name, value in done.figures.items())
    if done.recorded is None:
        verdict = "the run has no record of it"
    elif done.equal:
        verdict = "as the run recorded, bit for bit"
    else:
        verdict = f"the run recorded {', '.join(f'{name} {_text(value)}' for name, value in done.recorded.items())}"
    return f"step {done.step}, {start}: {count} rows, {figures} ({verdict})"


def _text(value: float | None) -> str:
    return "nan" if value is None else f"{value:.6g}"


def _rank(value: float) -> float:
    return float("inf") if value != value else value  # a row whose loss is no number is the worst of all


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null stands for them."""
    bad = lambda value: isinstance(value, float) and not abs(value) < float("inf")  # noqa: E731
    return {name: None if bad(value) else value for name, value in values.items()}
