"""The doctor's report: for a person on a terminal or in a file, and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxpost.core.config import plain_config
from jaxpost.data.checks.findings import Finding
from jaxpost.data.checks.inspection import Inspected
from jaxpost.data.checks.survey import Survey, chosen_rows, pieces
from jaxpost.recipes.doctor_config import DoctorConfig
from jaxpost.recipes.doctor_numerics import Deviation

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
TRAINED = "bold green"
LONGEST_PIECE = 600  # characters of a run of tokens that are shown
PLAIN_COLUMNS = 120  # where the output is no terminal


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What the doctor found.

    Attributes:
      config: as it was given.
      inspected: the training data.   numbers: None where no row is left.
      findings: errors first.   numerics: empty unless asked for.
    """

    config: DoctorConfig
    inspected: Inspected
    numbers: Survey | None
    findings: Sequence[Finding]
    numerics: Sequence[Deviation]

    def as_json(self, resolved: Any) -> dict[str, Any]:
        """The report for machines; `options` are `resolved`, with the defaults filled in."""
        return {
            "errors": sum(found.severity == "error" for found in self.findings),
            "findings": [dataclasses.asdict(found) | {"text": found.text} for found in self.findings],
            "numbers": dataclasses.asdict(self.numbers) if self.numbers else None,
            "numerics": [dataclasses.asdict(d) | {"fits": d.fits} for d in self.numerics],
            "options": plain_config(resolved),
        }


def print_report(report: Report, tokenizer: Any, file: Any) -> None:
    """Rows, numbers, numerics, findings and the verdict; colours and boxes only on a terminal."""
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, markup=False, emoji=False, width=PLAIN_COLUMNS)
    say = console.print
    if report.inspected.examples:
        say(_heading("Rows as the model sees them"))
        brackets = _brackets(file)
        say(Text.assemble("  trained tokens stand in ", (brackets[0] + " " + brackets[1], TRAINED), " and are green"))
        for why, example in chosen_rows(report.inspected.examples, report.config.show, report.config.seed):
            trained = int(example.trained.sum())
            title = f"{why}: {report.inspected.where(example.source)}, {len(example.ids)} tokens, {trained} trained"
            say(Text(f"\n  {title}", "bold"))
            say(Padding(_row(pieces(tokenizer, example), brackets), (0, 0, 0, 4), expand=False))
    say(_heading("Numbers"))
    for line in _numbers(report):
        say(line)
    if report.numerics:
        say(_heading("Numerics: one step, float32, against the plain layout"))
        say(_numerics(report.numerics))
    say(_heading("Findings"))
    for found in report.findings:
        say(Padding(_finding(found), (0, 0, 0, 2), expand=False))
    say(_verdict(report.findings))


def _heading(title: str) -> Text:
    return Text(f"\n{title}", "bold underline")


def _brackets(file: Any) -> tuple[str, str]:
    """Marks round trained tokens that the output can spell."""
    try:
        "\u27e6\u27e7".encode(getattr(file, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return "[[", "]]"
    return "\u27e6", "\u27e7"


def _row(parts: Sequence[tuple[str, bool]], brackets: tuple[str, str]) -> Text:
    text = Text()
    for piece, trained in parts:
        shown = visible(_shortened(piece))
        text.append(f"{brackets[0]}{shown}{brackets[1]}" if trained else shown, TRAINED if trained else "dim")
    return text


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_PIECE:
        return text
    half = LONGEST_PIECE // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"


def visible(text: str) -> str:
    """A text that a terminal shows as it is: line ends are kept, other control characters spelled out.

    >>> visible("a\\x1b[31m\\tb")
    'a\\\\x1b[31m\\\\tb'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _numbers(report: Report) -> list[RenderableType]:
    lines: list[RenderableType] = [Text(f"  {report.inspected.counts}")]
    n = report.numbers
    if n is None:
        return lines
    least, median, most, nearly, longest = (f"{value:,}" for value in n.lengths)
    rows = max(1, n.rows)
    lines += [
        Text(f"  trained: {n.trained_tokens / max(1, n.tokens):.1%} of the tokens"),
        Text(f"  cut: {n.truncated_rows / rows:.1%} of the rows, {n.lost_tokens:,} tokens behind the cut"),
        Text(f"  tokens a row: {least} to {longest}; half have {median} or fewer, 90 % {most}, 99 % {nearly}"),
        *_bars(n.histogram),
        Text(f"  batches: {n.filled:.1%} filled; {n.steps_per_epoch:,} steps an epoch, {n.steps:,} in all"),
    ]
    return lines


def _bars(histogram: Sequence[tuple[int, int]]) -> list[Text]:
    most = max(count for _, count in histogram)
    return [Text(f"    to {edge:>6,}  {'#' * -(-40 * count // most):<40} {count:,}") for edge, count in histogram]


def _numerics(found: Sequence[Deviation]) -> Table:
    table = Table(box=None, padding=(0, 2))
    table.add_column("layout")
    for name in ("batches x rows x tokens", "loss", "gradient", "worst leaf"):
        table.add_column(name, justify="right")
    table.add_column("")
    for d in found:
        verdict = Text("ok", "green") if d.fits else Text(f"over {d.bar:.1e}", "bold red")
        shape = " x ".join(map(str, d.shape))
        table.add_row(d.name, shape, f"{d.loss:.1e}", f"{d.gradient:.1e}", f"{d.leaf:.1e}", verdict)
    return table


def _finding(found: Finding) -> Text:
    return Text.assemble((f"{found.severity} {found.check}", COLOURS[found.severity]), f": {visible(found.text)}")


def _verdict(findings: Sequence[Finding]) -> Text:
    counts = {name: sum(found.severity == name for found in findings) for name in COLOURS}
    said = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())
    verdict = "training would be wrong" if counts["error"] else "nothing speaks against the run"
    return Text(f"\n{said}: {verdict}", COLOURS["error"] if counts["error"] else "bold green")
