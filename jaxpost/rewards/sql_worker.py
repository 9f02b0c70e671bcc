"""Runs queries of a model on SQLite files, in a process of its own; standard library only.

`python -I -S sql_worker.py` reads one JSON line of limits, then one line `{"database": uri, "query": text}` a query,
and answers each with one line: `{"columns": n, "rows": [...], "reads": bool}` or `{"error": text}`. sql_process.py is
the other end: it kills this process when a query takes too long.
"""

import contextlib
import json
import os
import sqlite3
import sys
import time

# Everything that a query may call; what is not here (load_extension, randomblob, fts3_tokenizer, ...) is refused.
FUNCTIONS = frozenset(
    """
    abs avg ceil ceiling char coalesce concat concat_ws count cume_dist date datetime dense_rank exp first_value floor
    format glob group_concat hex ifnull iif instr julianday lag last_value lead length like ln log log10 log2 lower
    ltrim max min mod nth_value ntile nullif octet_length percent_rank pow power printf quote rank replace round
    row_number rtrim sign sqrt strftime string_agg substr substring sum time timediff total trim trunc typeof unicode
    unixepoch upper
    """.split()  # noqa: SIM905
)
CHECK_EVERY = 200  # virtual machine instructions between two looks at the clock


def main() -> None:
    limits = json.loads(sys.stdin.readline())
    confine(limits)
    answer({"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        allow_cpu_seconds(limits["seconds"])
        try:
            answer(run(job["database"], job["query"], limits))
        # Whatever a query can raise (bad text, no memory, too large an integer) is the query's failure.
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            answer({"error": f"{type(error).__name__}: {error}"})


def answer(content: dict) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def confine(limits: dict) -> None:
    """No file can be written, no core is dumped, and memory ends; on systems that know such limits."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
        space = limits["memory_bytes"] + (512 << 20)  # the interpreter's own address space
        resource.setrlimit(resource.RLIMIT_AS, (space, space))


def allow_cpu_seconds(seconds: float) -> None:
    """The kernel ends this process soon after its time is up: also when its parent is gone."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, hard))


def run(database: str, query: str, limits: dict) -> dict:
    """The result of one query on a connection of its own, which nothing outlives."""
    with contextlib.closing(sqlite3.connect(database, uri=True, isolation_level=None)) as connection:
        tables = prepare(connection, limits)
        connection.set_authorizer(authorizer(tables))
        cursor = connection.execute(query)
        if cursor.description is None:
            return {"error": "no result"}
        rows, size = [], 0
        for row in cursor:
            rows.append([{"hex": value.hex()} if isinstance(value, bytes) else value for value in row])
            size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
            if len(rows) > limits["rows"] or size > limits["result_bytes"]:
                return {"error": "the result is too large"}
        return {"columns": len(cursor.description), "rows": rows, "reads": needs_database(query, tables, limits)}


def needs_database(query: str, tables: set, limits: dict) -> bool:
    """Whether a query that ran means a table or view of its database: in an empty one it is then no valid query.

    The authorizer cannot tell: of `SELECT count(*) FROM name` it hears the same, no column and no schema, whether that
    is the table or a common table expression which the query made up under the table's name.
    """
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
        prepare(empty, limits)
        empty.set_authorizer(authorizer(tables))
        explain = "EXPLAIN "  # checks the query and does not run it
        empty.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, limits["query_bytes"] + len(explain))
        try:
            empty.execute(explain + query)
        except sqlite3.Error:
            return True
        return False


def prepare(connection: sqlite3.Connection, limits: dict) -> set:
    """Sets every limit that SQLite has, and returns the names of the tables and views."""
    for pragma in (
        "query_only=ON",
        "temp_store=MEMORY",  # sorting must not write files
        "trusted_schema=OFF",
        f"hard_heap_limit={limits['memory_bytes']}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    found = connection.execute("SELECT lower(name) FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    for name, value in (
        ("LENGTH", limits["result_bytes"]),
        ("SQL_LENGTH", limits["query_bytes"]),
        ("COLUMN", 100),
        ("EXPR_DEPTH", 100),
        ("COMPOUND_SELECT", 20),
        ("VDBE_OP", 25_000),
        ("FUNCTION_ARG", 20),
        ("ATTACHED", 0),
        ("LIKE_PATTERN_LENGTH", 100),
        ("TRIGGER_DEPTH", 1),
        ("WORKER_THREADS", 0),
    ):
        connection.setlimit(getattr(sqlite3, f"SQLITE_LIMIT_{name}"), value)
    connection.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
    # Time of this process, not of the clock: a busy machine must not make a right answer wrong.
    end, parent = time.process_time() + limits["seconds"], os.getppid()
    connection.set_progress_handler(lambda: time.process_time() > end or os.getppid() != parent, CHECK_EVERY)
    return {name for (name,) in found}


def authorizer(tables: set):
    """Allows reading the database's own tables and calling FUNCTIONS."""

    def decide(action, first, second, schema, _inside):
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            return sqlite3.SQLITE_OK if second.lower() in FUNCTIONS else sqlite3.SQLITE_DENY
        if action != sqlite3.SQLITE_READ:
            return sqlite3.SQLITE_DENY
        name = (first or "").lower()
        if name in tables:
            return sqlite3.SQLITE_OK
        # A query that takes no column of a common table expression asks for its name and no column.
        own = not second and schema is None and not name.startswith(("sqlite_", "pragma_"))
        return sqlite3.SQLITE_OK if own else sqlite3.SQLITE_DENY

    return decide


if __name__ == "__main__":
    main()
