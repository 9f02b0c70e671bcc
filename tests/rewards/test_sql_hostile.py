"""Completions that attack the SQL verifier: nothing is changed, reached, outlived or scored above 0."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from jaxpost.rewards import Limits, sql, sql_process, sql_reward

GOLD = "SELECT count(*) FROM people"
SHORT = Limits(seconds=0.1)
NUMBERS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r)"
TENFOLD = ", 'a', 'aaaaaaaaaa')"
DOUBLED = ", ".join(["c0 AS (SELECT 1 AS x)", *(f"c{i} AS (SELECT * FROM c{i - 1}, c{i - 1})" for i in range(1, 40))])

# Each would be worth 1 if what it tries were let through, or takes what it should not.
HOSTILE = {
    # writing
    "drop": "DROP TABLE people",
    "drop after the answer": f"{GOLD}; DROP TABLE people",
    "drop before the answer": f"DROP TABLE people; {GOLD}",
    "drop behind a comment": f"{GOLD} /* ; */ ; -- x\n DROP TABLE people",
    "delete": "DELETE FROM people RETURNING 3",
    "delete in an expression": "WITH d AS (DELETE FROM people RETURNING *) SELECT count(*) FROM d",
    "delete behind WITH": "WITH n AS (SELECT 3) DELETE FROM people RETURNING 3",
    "insert": "INSERT INTO people SELECT * FROM people",
    "insert behind WITH": "WITH n AS (SELECT 9) INSERT INTO people SELECT 9, 'x' FROM n RETURNING 3",
    "update": "UPDATE people SET name = 'x'",
    "update behind WITH": "WITH n AS (SELECT 3) UPDATE people SET id = 7 RETURNING 3",
    "replace": "REPLACE INTO people VALUES (1, 'x')",
    "create a table": "CREATE TABLE more (a)",
    "create a table from the answer": f"CREATE TABLE more AS {GOLD}",
    "create a temporary table": f"CREATE TEMP TABLE more AS {GOLD}",
    "create a view": f"CREATE VIEW more AS {GOLD}",
    "create a trigger": "CREATE TRIGGER tr AFTER INSERT ON people BEGIN SELECT 1; END",
    "create an index": "CREATE INDEX i ON people (name)",
    "create a virtual table": "CREATE VIRTUAL TABLE f USING fts5(a)",
    "alter": "ALTER TABLE people RENAME TO persons",
    "reindex": "REINDEX",
    "analyze": "ANALYZE",
    "vacuum": "VACUUM",
    "vacuum into a file": "VACUUM INTO 'stolen.sqlite'",
    "begin": "BEGIN EXCLUSIVE",
    "commit": f"{GOLD}; COMMIT",
    "savepoint": "SAVEPOINT s",
    # reaching
    "attach": "ATTACH 'other.sqlite' AS other",
    "attach and read": "ATTACH 'other.sqlite' AS other; SELECT count(*) FROM other.people",
    "attach behind the answer": f"{GOLD}; ATTACH '/tmp/x' AS x",
    "detach": "DETACH main",
    "load an extension": f"{GOLD} WHERE load_extension('evil') IS NULL",
    "load an extension with an entry": "SELECT load_extension('libc.so.6', 'system')",
    "read a file": "SELECT readfile('/etc/passwd')",
    "write a file": "SELECT writefile('x', 'y')",
    "edit": "SELECT edit('x', 'vi')",
    "fts3 tokenizer": f"{GOLD} WHERE fts3_tokenizer('simple') IS NOT NULL",
    "the schema's text": "SELECT count(*) + 2 FROM sqlite_master",
    "the schema by its other name": "SELECT count(*) + 2 FROM sqlite_schema",
    "the temporary schema": "SELECT 3 FROM (SELECT count(*) FROM sqlite_temp_master)",
    "a pragma": "PRAGMA table_info(people)",
    "a writable schema": "PRAGMA writable_schema=ON",
    "a pragma that writes": "PRAGMA user_version=7",
    "a pragma that lifts the memory limit": "PRAGMA hard_heap_limit=0",
    "a pragma as a table": "SELECT 1 + count(*) FROM pragma_table_info('people')",
    "a list of files": "SELECT 2 + count(file) FROM pragma_database_list",
    "dbstat": "SELECT count(*) FROM dbstat",
    "prepared statements": "SELECT count(*) FROM sqlite_stmt",
    "json as a table": "SELECT count(*) FROM json_each('[1,2,3]')",
    "series": "SELECT count(*) FROM generate_series(1, 3)",
    "sqlite's version": f"{GOLD} WHERE sqlite_version() > ''",
    "the source id": f"{GOLD} WHERE sqlite_source_id() > ''",
    "rows of the last change": "SELECT count(*) + changes() + last_insert_rowid() FROM people",
    # guessing
    "a constant": "SELECT 3",
    "a constant from values": "SELECT * FROM (VALUES (3))",
    "values": "VALUES (3)",
    "chance": "SELECT 3 + 0 * random() FROM people LIMIT 1",
    "random bytes": "SELECT 3 FROM people WHERE randomblob(4) IS NOT NULL LIMIT 1",
    "explain": f"EXPLAIN {GOLD}",
    "the query plan": f"EXPLAIN QUERY PLAN {GOLD}",
    "a parameter": "SELECT ?1 FROM people",
    "a named parameter": f"{GOLD} WHERE :gold IS NULL",
    # taking time
    "endless recursion": f"{NUMBERS} SELECT count(*) FROM r, people",
    "endless recursion in a condition": f"{GOLD} WHERE 1 IN ({NUMBERS} SELECT x + 1 FROM r)",
    "endless recursion, sorted": f"{NUMBERS} SELECT x FROM r ORDER BY x DESC",
    "cross joins": f"SELECT count(*) FROM {', '.join(f'people p{i}' for i in range(40))}",
    "views of views of joins": f"WITH {DOUBLED} SELECT count(*) FROM c39, people",
    "many wildcards": f"{NUMBERS} {GOLD} JOIN r WHERE hex(x) || printf('%.*c', 9999, 'a') LIKE '{'%a' * 40}b'",
    "many stars": f"{GOLD} WHERE printf('%.*c', 999999, 'a') GLOB '{'*a' * 49}b' OR 1 IN ({NUMBERS} SELECT 0 FROM r)",
    "long searches": f"{GOLD} WHERE instr(printf('%.*c', 999999, 'a'), printf('%.*c', 499999, 'a') || 'b')",
    # taking memory
    "a billion random bytes": "SELECT length(randomblob(1000000000)) FROM people",
    "a billion zeros": "SELECT 3 FROM people WHERE length(zeroblob(1000000000)) LIMIT 1",
    "hex of many zeros": "SELECT hex(zeroblob(500000000)) FROM people",
    "a wide format": "SELECT printf('%.*c', 1000000000, 'x') FROM people",
    "a wide number": "SELECT printf('%1000000000d', 3) FROM people",
    "replacing again and again": f"SELECT {'replace(' * 12}'aaaa'{TENFOLD * 12} FROM people",
    "endless concatenation": f"{NUMBERS} SELECT group_concat(x) FROM r, people",
    "growing text": "WITH RECURSIVE r(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM r) SELECT max(length(x)) FROM r",
    "an endless result": f"{NUMBERS} SELECT x, name FROM r, people",
    "distinct numbers without end": f"{NUMBERS} SELECT count(DISTINCT x) FROM r, people",
    "wide rows": f"SELECT {', '.join(['name'] * 3000)} FROM people",
    "deep brackets": f"SELECT {'(' * 1500}3{')' * 1500} FROM people",
    "deep negation": f"{GOLD} WHERE {'NOT ' * 900}1",
    "deep queries": f"SELECT * FROM {'(SELECT * FROM ' * 100}people{')' * 100}",
    "many unions": " UNION ALL ".join(["SELECT 1 FROM people"] * 150),
    "many conditions": f"{GOLD} WHERE {' OR '.join(['id = 9'] * 380)}",
    "a long query": f"{GOLD} WHERE name <> '{'x' * 100_000}'",
    # not text
    "a zero byte": f"{GOLD}\0",
    "a lone surrogate": f"{GOLD} WHERE name <> '\ud800'",
    "an integer that is too large": "SELECT abs(-9223372036854775808) FROM people",
    "infinity": "SELECT 9e999 FROM people",
    "no UTF-8": "SELECT CAST(x'fffe' AS TEXT) FROM people",
    "another line for the process": f'{GOLD}\n{{"database": "x", "query": "{GOLD}"}}',
    "a reply of the process": '{"columns": 1, "rows": [[3]], "reads": true}',
}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    path = tmp_path_factory.mktemp("databases") / "people.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE people (id INT, name TEXT)")
        connection.executemany("INSERT INTO people VALUES (?, ?)", [(1, "ann"), (2, "bob"), (3, "cy")])
        connection.commit()
    (path.parent / "other.sqlite").write_bytes(path.read_bytes())
    return path


def surroundings(path):
    """What an attack could have changed: the folder's bytes, names in the working and temporary folders, processes."""
    folders = {Path.cwd(), Path(tempfile.gettempdir()), Path("/")}
    names = {str(file) for folder in folders for file in folder.glob("*.sqlite*")} | {str(Path("x").exists())}
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}, names, len(psutil.Process().children())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_completions_change_nothing_and_are_worth_nothing(people, name):
    """Mutation: jaxpost/rewards/sql_worker.py: `connection.set_authorizer(authorizer(tables))` -> ``

    Mutation: jaxpost/rewards/sql_worker.py: `if second.lower() in FUNCTIONS` -> `if second`
    Mutation: jaxpost/rewards/sql_text.py: `if end >= 0 and bare[end:].strip("; \\t\\r\\n"):` -> `if end < -1:`
    """
    before, started = surroundings(people), time.monotonic()
    assert sql(HOSTILE[name], people, GOLD, limits=SHORT) == 0.0
    assert sql(f"```sql\n{HOSTILE[name]}\n```", people, GOLD, limits=SHORT) == 0.0
    assert surroundings(people) == before
    assert time.monotonic() - started < 30  # processor time is what is limited; this machine may be busy


@pytest.mark.parametrize(
    "query",
    [
        "SELECT name FROM sqlite_master",
        "SELECT sql FROM people, sqlite_schema",
        "SELECT count(*) FROM people, sqlite_master",
        "SELECT name FROM pragma_table_info('people')",
        "SELECT value FROM json_each('[1]')",
        "PRAGMA user_version",
        "PRAGMA query_only",
        "BEGIN",
        "ATTACH ':memory:' AS x",
        "DELETE FROM people RETURNING 3",
    ],
)
def test_the_authorizer_alone_refuses(people, query):
    """Without the look at the first word, and where the answer would not be compared with anything.

    Mutation: jaxpost/rewards/sql_worker.py: `if action != sqlite3.SQLITE_READ:` -> `if action == 0:`
    Mutation: jaxpost/rewards/sql_worker.py: `SQLITE_OK if own else` -> `SQLITE_OK if 1 else`
    """
    with sql_process.SqlProcess(SHORT) as process:
        assert process.run(people, query) is None
        assert process.run(people, "WITH p AS (SELECT * FROM people) SELECT count(*) FROM p").rows == [(3,)]


def test_answers_among_hostile_ones_keep_their_worth(people):
    """One batch, one process where it survives: what came before changes nothing for what follows."""
    texts = [text for attack in list(HOSTILE.values())[::3] for text in (attack, GOLD)]
    assert sql_reward(texts, [people] * len(texts), [GOLD] * len(texts), limits=SHORT) == [0.0, 1.0] * (len(texts) // 2)


FAKE = """
import json, sys, time
sys.stdin.readline()
print('{"ready": true}', flush=True)
for line in sys.stdin:
    query = json.loads(line)["query"]
    if "HANG" in query:
        time.sleep(600)
    if "DIE" in query:
        sys.exit(1)
    if "HALF" in query:
        print('{"columns": 1, "rows"', end="", flush=True)
        sys.exit(0)
    print('{"columns": 1, "rows": [[3]], "reads": true}', flush=True)
"""


@pytest.mark.parametrize("failure", ["HANG", "DIE", "HALF"])
def test_G16_a_process_that_hangs_or_dies_is_replaced(people, tmp_path, monkeypatch, failure):
    """In a prediction: 0; in the gold query: None; the rest of the batch goes on.

    Mutation: jaxpost/rewards/sql_process.py: `timer.start()` -> `pass`
    Mutation: jaxpost/rewards/sql_process.py: `if line.endswith(b"\\n") else None` -> ``
    """
    monkeypatch.setattr(sql_process, "WORKER", tmp_path / "fake.py")
    (tmp_path / "fake.py").write_text(FAKE)
    before = psutil.Process().children()
    texts, golds = [GOLD, f"SELECT {failure}", GOLD, GOLD], [GOLD, GOLD, f"SELECT {failure}", GOLD]
    started, limits = time.monotonic(), Limits(wall_seconds=1.0)
    assert sql_reward(texts, [people] * 4, golds, limits=limits) == [1.0, 0.0, None, 1.0]
    assert time.monotonic() - started < 60
    assert psutil.Process().children() == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
def test_a_query_does_not_outlive_a_killed_trainer(people):
    """kill -9 of the process that asked: the one that runs the endless query ends by itself.

    Mutation: jaxpost/rewards/sql_worker.py: ` or os.getppid() != parent` -> ``
    """
    code = f"""
    from jaxpost.rewards import Limits, sql
    limits = Limits(seconds=300.0, wall_seconds=300.0)
    sql({f"{NUMBERS} SELECT count(*) FROM r"!r}, {str(people)!r}, {GOLD!r}, limits=limits)
    """
    trainer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        workers = wait_for(lambda: [c for c in psutil.Process(trainer.pid).children() if c.cpu_times().user > 0.2])
    finally:
        os.kill(trainer.pid, signal.SIGKILL)
        trainer.wait()
    assert workers
    assert wait_for(lambda: not workers[0].is_running() or workers[0].status() == psutil.STATUS_ZOMBIE)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_an_interrupt_leaves_no_process(people, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = psutil.Process().children()
    with pytest.raises(KeyboardInterrupt), sql_process.SqlProcess(SHORT) as process:
        assert process.run(people, GOLD) is not None
        assert len(psutil.Process().children()) == len(before) + 1
        monkeypatch.setattr(sql_process.json, "loads", interrupt)
        process.run(people, GOLD)
    assert psutil.Process().children() == before


def test_a_sort_that_outgrows_memory_fails(people):
    """It must neither write a file nor take more.

    Mutation: jaxpost/rewards/sql_worker.py: `f"hard_heap_limit={limits['memory_bytes']}",` -> ``
    """
    texts = "SELECT x || printf('%.*c', 9999, 'a') AS t FROM r LIMIT 3000"
    query = f"{NUMBERS} SELECT length(t) FROM ({texts}) ORDER BY t LIMIT 1 OFFSET 2000"
    for memory, works in ((256 << 20, True), (4 << 20, False)):
        with sql_process.SqlProcess(Limits(seconds=5.0, memory_bytes=memory)) as process:
            assert (process.run(people, query) is not None) is works
            assert process.run(people, GOLD) is not None
