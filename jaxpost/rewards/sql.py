"""The SQL verifier: a predicted query is right when its result is that of the gold query, on every given database."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpost.rewards.sql_process import Limits, ProcessFailed, SqlProcess
from jaxpost.rewards.sql_result import Result, same_result
from jaxpost.rewards.sql_text import completion_text, extract_query, is_ordered

Database = str | os.PathLike[str]
Completion = str | Sequence[Mapping[str, Any]]


def sql(
    completion: Completion,
    database: Database | Sequence[Database],
    gold: str,
    *,
    limits: Limits = Limits(),  # noqa: B008
) -> float | None:
    """1.0 where the query of `completion` gives what `gold` gives, 0.0 where it does not, None where `gold` is no help.

    Results are compared by columns' places and rows' values, as multisets unless the outermost gold query has an ORDER
    BY; see `same_result`. A query that needs no table or view of the database cannot be right where the gold one does.

    One database can be guessed: where three people are counted, `SELECT 3 FROM people LIMIT 1` gives the right result.
    A model that is rewarded finds such answers, so give several databases of one schema and different contents: a query
    must be right on each of them.

    Queries run in a process of their own, on read-only files, with an authorizer that lets them read the database's
    tables and call harmless functions, and within `limits`; a completion that breaks one has failed.

    Args:
      completion: text, or messages whose last one is the answer; see `extract_query` for what is taken from it.
      database: SQLite file, or several with one schema and other contents.
      gold: a query that gives the right result.
    Returns:
      1.0, 0.0, or None where the verifier failed: gold does not run, finds no row in any database, or no process
      could be started.
    """
    return _scores([completion], [database], [gold], limits)[0]


def sql_reward(
    completions: Sequence[Completion],
    database: Sequence[Database | Sequence[Database]],
    sql: Sequence[str],
    *,
    root: str | os.PathLike[str] = ".",
    limits: Limits = Limits(),  # noqa: B008
    **_: Any,
) -> list[float | None]:
    """`sql` for a batch, with TRL's signature of reward functions: columns of the rows in, one number a row out.

    Args:
      completions: what the model wrote.
      database: the rows' column, files relative to `root`; several for a row (a list) keep it from being guessed.
      sql: the rows' column of gold queries.
    """
    paths = [[Path(root, path) for path in _several(paths)] for paths in database]
    return _scores(completions, paths, sql, limits)


def _scores(
    completions: Sequence[Completion],
    databases: Sequence[Database | Sequence[Database]],
    golds: Sequence[str],
    limits: Limits,
) -> list[float | None]:
    known: dict[tuple[str, str], Result | None] = {}  # a group of completions shares its gold
    with SqlProcess(limits) as process:

        def expected(path: Database, gold: str) -> Result | None:
            key = (os.fspath(path), gold)
            if key not in known:
                known[key] = process.run(path, gold)
            return known[key]

        def score(completion: Completion, paths: Sequence[Database], gold: str) -> float | None:
            try:
                wanted = [expected(path, gold) for path in paths]
                if any(result is None for result in wanted) or not any(result and result.rows for result in wanted):
                    return None
                query = extract_query(completion_text(completion))
                found = (process.run(path, query) for path in paths) if query else [None]
                return float(all(_right(want, got, gold) for want, got in zip(wanted, found)))  # noqa: B905
            except ProcessFailed:
                return None

        rows = zip(completions, databases, golds, strict=True)
        return [score(completion, _several(paths), gold) for completion, paths, gold in rows]


def _right(want: Result | None, got: Result | None, gold: str) -> bool:
    if want is None or got is None or (want.reads and not got.reads):
        return False
    return same_result(want, got, ordered=is_ordered(gold))


def _several(paths: Database | Sequence[Database]) -> Sequence[Database]:
    return [paths] if isinstance(paths, str | os.PathLike) else paths
