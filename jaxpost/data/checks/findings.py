"""What the checks of `jaxpost doctor` found: in how many rows, in which ones, and how that reads."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from jaxpost.data.checks.table import CHECKS, Severity

SHOWN_PLACES = 3  # rows that a finding names; the rest is counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
      check: its id in `CHECKS`.
      severity: after the share of rows has been weighed.
      count, total: how many rows, of how many that could have had it; both None for what is not about rows.
      detail: numbers and names of this case, or the line of an error, the first one's; may be empty.
      places: the first few rows, by file and line.
      evaluation: it is about the rows of `--eval-data`.
    """

    check: str
    severity: Severity
    count: int | None = None
    total: int | None = None
    detail: str = ""
    places: Sequence[str] = ()
    evaluation: bool = False

    @property
    def text(self) -> str:
        """One line: what, how much, where, what to do.

        >>> print(finding("eval.near", count=2, total=9, places=["a.jsonl line 4", "a.jsonl line 7"]).text[:51])
        2 of 9 rows of the evaluation are nearly equal to a
        """
        check = CHECKS[self.check]
        title = f"in the evaluation {check.title}" if self.evaluation else check.title
        if self.count is not None:
            rows = ("row" if self.total == 1 else "rows") + " of the evaluation" * self.evaluation
            title = f"{self.count:,} of {self.total:,} {rows} {check.title}"
        shown = ", ".join(self.places) + ", ..." * (0 < len(self.places) < (self.count or 0))
        if check.advice is None:
            return f"{title}{f' ({shown})' if shown else ''}: {self._error()}"
        notes = "; ".join(part for part in (self.detail, shown) if part)
        return f"{title}{f' ({notes})' if notes else ''}. {check.advice}"

    def _error(self) -> str:
        """The line of the error without its place, which stands beside it."""
        line = self.detail
        for place in self.places[:1]:
            line = line.replace(f" (row at {place})", "").replace(f" at {place}", "")
        return line


def finding(
    check: str,
    *,
    count: int | None = None,
    total: int | None = None,
    detail: str = "",
    places: Iterable[str] = (),
) -> Finding:
    """A finding of a check of the table, its severity weighed by the share of rows.

    >>> finding("end.untrained", count=1, total=9).severity, finding("end.untrained", count=9, total=9).severity
    ('warning', 'error')
    """
    entry = CHECKS[check]
    share = count / total if count is not None and total else 0.0
    worse = entry.error_from is not None and share >= entry.error_from
    return Finding(
        check=check,
        severity="error" if worse else entry.severity,
        count=count,
        total=total,
        detail=detail,
        places=tuple(places)[:SHOWN_PLACES],
    )


class Observed:
    """Counts, check by check, the rows that were looked at and those that have it, and keeps the first few places."""

    def __init__(self) -> None:
        self.seen: collections.Counter[str] = collections.Counter()
        self.found: collections.Counter[str] = collections.Counter()
        self._places: dict[str, list[str]] = collections.defaultdict(list)
        self._details: dict[str, str] = {}

    def look(self, check: str, where: str, found: bool, detail: str = "") -> None:
        """One row at `where` was looked at; of the details the first is kept."""
        self.seen[check] += 1
        if found:
            self.find(check, where, detail)

    def find(self, check: str, where: str, detail: str = "") -> None:
        """One row at `where`, which was looked at before without finding it, has it."""
        self.found[check] += 1
        assert self.found[check] <= self.seen[check], f"{check} is found at {where}, where nobody looked for it"
        if self.found[check] <= SHOWN_PLACES:
            self._places[check].append(where)
        if detail:
            self._details.setdefault(check, detail)

    def findings(self) -> list[Finding]:
        """One finding for each check that some row has, in the table's order."""
        return [
            finding(
                check,
                count=self.found[check],
                total=self.seen[check],
                detail=self._details.get(check, ""),
                places=self._places[check],
            )
            for check in CHECKS
            if self.found[check]
        ]
