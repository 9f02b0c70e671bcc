"""The SQL verifier: what counts as the same result, and as a query; always a number or None."""

import concurrent.futures
import contextlib
import multiprocessing
import random
import sqlite3
import time

import pytest

from jaxpost.rewards import Limits, sql, sql_process, sql_reward
from jaxpost.rewards.sql_result import Result, same_result
from jaxpost.rewards.sql_text import extract_query, is_ordered

SEEDS = (0, 1, 2)
ROWS = [(1, "ann", 10, 2.5), (2, "bob", 30, None), (3, "cy", 20, 4.0), (4, "dee", 30, 0.5)]


def make(path, rows=ROWS):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE people (id INT, name TEXT, age INT, score REAL)")
        connection.executemany("INSERT INTO people VALUES (?, ?, ?, ?)", rows)
        connection.commit()
    return path


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return make(tmp_path_factory.mktemp("databases") / "people.sqlite")


ACCEPTED = {
    "itself": ("SELECT name FROM people", "SELECT name FROM people"),
    "another order of rows": ("SELECT name FROM people ORDER BY age DESC", "SELECT name FROM people"),
    "other names of columns": ("SELECT name AS x FROM people", "SELECT name FROM people"),
    "a whole float": ("SELECT age * 1.0 FROM people", "SELECT age FROM people"),
    "large numbers in another order": (
        "SELECT id + 1700000000, id / 50.0 + 1234567 FROM people ORDER BY id DESC",
        "SELECT id + 1700000000, id / 50.0 + 1234567 FROM people",
    ),
    "NULL": ("SELECT max(score, NULL) FROM people", "SELECT NULL FROM people"),
    "a sum in another order": ("SELECT 0.1 + 0.2 + 0.3 FROM people", "SELECT 0.3 + 0.2 + 0.1 FROM people"),
    "a common table expression": (
        "WITH p AS (SELECT * FROM people) SELECT count(*) FROM p",
        "SELECT 4 FROM people LIMIT 1",
    ),
    "a window": (
        "SELECT name FROM (SELECT name, rank() OVER (ORDER BY age) AS r FROM people) WHERE r = 1",
        "SELECT name FROM people ORDER BY age LIMIT 1",
    ),
    "blobs": ("SELECT CAST(name AS BLOB) FROM people", "SELECT CAST(name AS BLOB) FROM people WHERE id > 0"),
    "text that is not UTF-8": ("SELECT CAST(x'ff' AS TEXT) FROM people", "SELECT CAST(x'ff' AS TEXT) FROM people"),
}
REFUSED = {
    "a missing row": ("SELECT name FROM people WHERE id < 4", "SELECT name FROM people"),
    "a row twice": ("SELECT age FROM people", "SELECT DISTINCT age FROM people"),
    "as many rows, other multiplicities": (
        "SELECT min(age, 20) FROM people",
        "SELECT max(age, 20) - 10 * (age > 20) FROM people",
    ),
    "columns the other way round": ("SELECT age, name FROM people", "SELECT name, age FROM people"),
    "one column more": ("SELECT name, age FROM people", "SELECT name FROM people"),
    "a number as text": ("SELECT CAST(age AS TEXT) FROM people", "SELECT age FROM people"),
    "text as a blob": ("SELECT CAST(name AS BLOB) FROM people", "SELECT name FROM people"),
    "zero for NULL": ("SELECT ifnull(score, 0) FROM people", "SELECT score FROM people"),
    "a float that is near": ("SELECT age + 0.001 FROM people", "SELECT age FROM people"),
    "large integers that are near": ("SELECT 9007199254740993 FROM people", "SELECT 9007199254740992 FROM people"),
    "the wrong order": ("SELECT name FROM people ORDER BY id DESC", "SELECT name FROM people ORDER BY id"),
    "an empty result": ("SELECT name FROM people WHERE 0", "SELECT name FROM people"),
    "a time that is near": ("SELECT 1700000001 FROM people", "SELECT 1700000002 FROM people"),
    "other case of a text": ("SELECT upper(name) FROM people", "SELECT name FROM people"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_same_result_is_right(people, name):
    assert sql(ACCEPTED[name][0], people, ACCEPTED[name][1]) == 1.0


@pytest.mark.parametrize("name", REFUSED)
def test_another_result_is_wrong(people, name):
    """Mutation: jaxpost/rewards/sql.py: `ordered=is_ordered(gold))` -> `ordered=False)`

    Mutation: jaxpost/rewards/sql_result.py: `first.columns != second.columns or ` -> ``
    """
    assert sql(REFUSED[name][0], people, REFUSED[name][1]) == 0.0


ANSWERS = {
    "SELECT 1": "SELECT 1",
    "  select 1 ;;\n": "select 1",
    "```sql\nSELECT 1;\n```": "SELECT 1",
    "```\nSELECT 1\n```": "SELECT 1",
    "```SQL SELECT 1```": "SELECT 1",
    "```sqlite\r\nSELECT 1\r\n```": "SELECT 1",
    "Sure:\n```sql\nSELECT 1\n```\nThis counts.": "SELECT 1",
    "```sql\nSELECT 1\n```\nor\n```sql\nSELECT 2\n```": "SELECT 2",
    "```sql\nSELECT 1": "SELECT 1",
    "<think>SELECT 9;</think>SELECT 1": "SELECT 1",
    "<think>One.</think><think>Two.</think>SELECT 1": "SELECT 1",
    "so a count</think>\n```sql\nSELECT 1\n```": "SELECT 1",  # the generation prompt had opened the thinking
    "SELECT ';' AS a": "SELECT ';' AS a",
    "SELECT 1 -- one; two": "SELECT 1 -- one; two",
    "SELECT 1; -- done": "SELECT 1",
    "/* count */ SELECT 1": "/* count */ SELECT 1",
    "WITH a AS (SELECT 1) SELECT * FROM a": "WITH a AS (SELECT 1) SELECT * FROM a",
    "SELECT 1; SELECT 2": "",
    "The answer is SELECT 1": "",
    "SELECTED": "",
    "DROP TABLE people": "",
    "EXPLAIN SELECT 1": "",
    "VALUES (1)": "",
    "": "",
    " \n": "",
    "```sql\n```": "",
    ";": "",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_query_of_an_answer(answer):
    assert extract_query(answer) == ANSWERS[answer]


@pytest.mark.parametrize(
    "cut_off",
    [
        "<think>```sql\nSELECT 1\n```",
        "<think>```sql SELECT 1```",
        "<think>\nPerhaps\n```sql\nSELECT 1\n```\nBut no:",
        "<think>SELECT 1",
        "Well. <think>```sql\nSELECT 1",
        "<think>One.</think>Again. <think>```sql\nSELECT 1\n```",
        "SELECT 1\n<think>",
    ],
)
def test_thinking_that_was_cut_off_has_no_query(cut_off):
    """Mutation: jaxpost/rewards/sql_text.py: `if "<think>" in answer:` -> `if False:`"""
    assert extract_query(cut_off) == ""
    assert extract_query(cut_off + "</think>SELECT 2") == "SELECT 2"


@pytest.mark.parametrize(
    "piece", ["[", "'", '"', "`", "```", "```\n", "```sql ", "/*", "--", "<think>", ";", " ", "(", "a'"]
)
@pytest.mark.parametrize("start", ["", "SELECT ", "```sql\nSELECT "])
def test_long_texts_are_read_in_linear_time(piece, start):
    """Mutation: jaxpost/rewards/sql_text.py: `[^][]*` -> `[^]]*`"""
    started = time.process_time()
    extract_query(start + piece * (300_000 // len(piece)))
    is_ordered(start + piece * (300_000 // len(piece)))
    assert time.process_time() - started < 3


def test_nothing_of_the_environment_is_inherited(people, tmp_path, monkeypatch):
    """Mutation: jaxpost/rewards/sql_process.py: `for name in INHERITED if` -> `for name in os.environ if`"""
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setattr(sql_process, "WORKER", tmp_path / "shows.py")
    answer = "print(json.dumps({'columns': 1, 'rows': [[','.join(os.environ)]], 'reads': False}), flush=True)"
    (tmp_path / "shows.py").write_text(f"import json, os, sys\nfor line in sys.stdin: {answer}\n")
    with sql_process.SqlProcess(Limits()) as process:
        shown = process.run(people, "SELECT 1").rows[0][0]
    assert "SECRET" not in shown and "PATH" not in shown.split(",")


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order  \n by a limit 1", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT ' ORDER BY ' FROM t", False),
        ("SELECT a -- ORDER BY a\nFROM t", False),
        ("SELECT a /* ( */ FROM t ORDER BY a", True),
        ("SELECT a FROM t ORDER /* x */ BY a", True),
        ("SELECT a FROM t ORDER/**/BY a", True),
        ("SELECT a FROM t ORDER -- by b\n BY a", True),
        ("SELECT a FROM t ORDER /* ' */ /* ) */ BY a -- '", True),
        ("SELECT a FROM t /* ORDER */ -- BY a", False),
        ("SELECT a FROM (SELECT a FROM t ORDER /* ) */ BY a)", False),
        ("SELECT '/*' FROM t ORDER BY a -- */", True),
        ("SELECT '--' FROM t ORDER BY a", True),
        ("SELECT \"/*\", [--] FROM t ORDER BY '*/'", True),
        ("SELECT ' /* ', a AS 'order' FROM t", False),
        ("SELECT 'it''s -- ORDER BY', a FROM t", False),
        ('SELECT a AS "order"/**/, by FROM t', False),
        ("SELECT a AS border FROM t", False),
        ("SELECT ')' FROM (SELECT a FROM t ORDER BY a)", False),
        ('SELECT "order by" FROM t', False),
        ("WITH x AS (SELECT a FROM t ORDER BY a) SELECT a FROM x", False),
    ],
)
def test_order_matters_only_where_the_outermost_query_asks(query, ordered):
    """Mutation: jaxpost/rewards/sql_text.py: `" " if match["comment"] else " ' ", query` -> `" ' ", query`"""
    assert is_ordered(query) is ordered


def test_G16_an_empty_answer_is_zero_and_a_failing_gold_is_none(people, tmp_path):
    """Mutation: jaxpost/rewards/sql.py: `if query else [None]` -> `if query else wanted`"""
    gold = "SELECT count(*) FROM people"
    for nothing in ("", " ", "```sql\n```", ";", "I do not know.", []):
        assert sql(nothing, people, gold) == 0.0
    for broken in ("SELECT count(*) FROM persons", "", "DELETE FROM people", "SELECT name FROM people WHERE 0"):
        assert sql("SELECT count(*) FROM people", people, broken) is None
    assert sql(gold, tmp_path / "missing.sqlite", gold) is None
    (tmp_path / "text.sqlite").write_text("no database" * 100)
    assert sql(gold, tmp_path / "text.sqlite", gold) is None


def test_G16_no_process_is_none_not_zero(people, monkeypatch, tmp_path):
    """Mutation: jaxpost/rewards/sql.py: `except ProcessFailed:` -> `except ZeroDivisionError:`"""
    gold = "SELECT count(*) FROM people"
    monkeypatch.setattr(sql_process.sys, "executable", str(tmp_path / "no python"))
    assert sql_reward([gold, gold], [people] * 2, [gold] * 2) == [None, None]
    monkeypatch.setattr(sql_process, "WORKER", tmp_path / "no_worker.py")
    assert sql(gold, people, gold) is None


def test_a_constant_is_not_an_answer(people):
    """Mutation: jaxpost/rewards/sql.py: ` or (want.reads and not got.reads)` -> ``"""
    assert sql("SELECT 4", people, "SELECT count(*) FROM people") == 0.0
    assert sql("SELECT count(*) FROM people", people, "SELECT count(id) FROM people") == 1.0


FAKED = [
    "WITH people AS (SELECT 1) SELECT 4 FROM people",
    "WITH People(x) AS (VALUES (1)) SELECT 4 FROM PEOPLE",
    "WITH people AS MATERIALIZED (SELECT 4 AS x) SELECT x FROM people",
    "WITH people AS (SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4) SELECT count(*) FROM people",
    "WITH people AS (SELECT 1), p AS (SELECT 2 FROM people) SELECT 4 FROM p",
    "WITH elders AS (SELECT 1) SELECT 4 FROM elders",
    "WITH p AS (SELECT 1 FROM people) SELECT 4",
    "SELECT 4 FROM (SELECT 1) AS people",
    "SELECT 3 + count(*) FROM (SELECT 1) people WHERE 1 IN (WITH people AS (SELECT 1) SELECT 1 FROM people)",
]
READING = [
    "SELECT count(*) FROM people",
    "SELECT count(1) FROM main.people AS p",
    "SELECT sum(1) FROM (SELECT * FROM people)",
    "SELECT count(p.id) FROM people p JOIN people q ON p.id = q.id",
    "WITH p AS (SELECT * FROM people) SELECT count(*) FROM p",
    "WITH p AS (SELECT 1 FROM people) SELECT count(*) FROM p",
    "WITH people AS (SELECT * FROM main.people) SELECT count(*) FROM people",
    "SELECT (SELECT count(*) FROM people)",
    "SELECT count(*) + 2 FROM elders",
    "SELECT max(rowid) FROM people",
    "SELECT 4 WHERE EXISTS (SELECT 1 FROM people)",
    "SELECT 4 WHERE 3 IN (SELECT id FROM people)",
]


@pytest.fixture(scope="module")
def with_view(tmp_path_factory):
    path = make(tmp_path_factory.mktemp("databases") / "view.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIEW elders AS SELECT name FROM people WHERE age > 20")
        connection.commit()
    return path


@pytest.mark.parametrize("query", FAKED)
def test_a_name_that_the_query_makes_up_is_no_table(with_view, query):
    """A common table expression under a table's name, which the authorizer hears as if it were the table.

    Mutation: jaxpost/rewards/sql_worker.py: `"reads": needs_database(query, tables, limits)}` -> `"reads": True}`
    """
    assert sql(query, with_view, "SELECT count(*) FROM people") == 0.0
    with sql_process.SqlProcess(Limits()) as process:
        assert process.run(with_view, query).reads is False


@pytest.mark.parametrize("query", READING)
def test_a_query_that_reads_a_table_in_any_way_may_be_right(with_view, query):
    """Mutation: jaxpost/rewards/sql_worker.py: `return True` -> `return False`"""
    assert sql(query, with_view, "SELECT count(*) FROM people") == 1.0
    with sql_process.SqlProcess(Limits()) as process:
        assert process.run(with_view, query).reads is True


def test_a_constant_of_the_greatest_length_is_no_answer_either(people):
    """Mutation: jaxpost/rewards/sql_worker.py: `limits["query_bytes"] + len(explain)` -> `limits["query_bytes"]`"""
    query = "SELECT 4 WHERE 'x' <> '"
    query += "y" * (Limits().query_bytes - len(query) - 1) + "'"
    with sql_process.SqlProcess(Limits()) as process:
        assert process.run(people, query).rows == [(4,)]
    assert sql(query, people, "SELECT count(*) FROM people") == 0.0


def test_all_databases_must_agree(people, tmp_path):
    """A lucky number on one of them is found out on the other.

    Mutation: jaxpost/rewards/sql.py: `float(all(` -> `float(any(`
    """
    other = make(tmp_path / "other.sqlite", ROWS[:2])
    lucky, gold = "SELECT 4 FROM people LIMIT 1", "SELECT count(*) FROM people"
    assert sql(lucky, people, gold) == 1.0
    assert sql(lucky, [people, other], gold) == 0.0
    assert sql(gold, [people, other], gold) == 1.0


def test_the_form_of_TRL(people):
    """Strings or conversations, columns as lists, paths relative to `root`, anything else ignored."""
    gold = "SELECT name FROM people WHERE age > 15"
    texts = [gold, "SELECT name FROM people", "", "SELECT name FROM people WHERE age >= 20;"]
    want = [1.0, 0.0, 0.0, 1.0]
    columns = {"database": [people.name, [people.name], [people.name] * 2, people.name], "sql": [gold] * 4}
    more = {"prompts": ["?"] * 4, "completion_ids": [[1]] * 4, "trainer_state": None, "schema": ["people"] * 4}
    assert sql_reward(completions=texts, root=people.parent, **columns, **more) == want
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert sql_reward(completions=chats, root=people.parent, **columns, **more) == want


def test_a_group_runs_its_gold_once_and_one_process(people, monkeypatch):
    asked = []
    run = sql_process.SqlProcess.run
    monkeypatch.setattr(
        sql_process.SqlProcess, "run", lambda self, path, query: asked.append(query) or run(self, path, query)
    )
    gold = "SELECT name FROM people"
    assert sql_reward(["SELECT id FROM people"] * 5, [people] * 5, [gold] * 5) == [0.0] * 5
    assert asked.count(gold) == 1 and len(asked) == 6


def test_G16_in_threads(people):
    gold = "SELECT name FROM people WHERE age > 15"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(sql, text, people, gold) for text in [gold, "SELECT 1"] * 4]
        assert [job.result() for job in jobs] == [1.0, 0.0] * 4


def test_G16_in_another_process(people):
    gold = "SELECT name FROM people WHERE age > 15"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.starmap(sql, [(gold, people, gold), ("SELECT 1", people, gold)]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("limits", "query"),
    [
        (Limits(rows=3), "SELECT name FROM people"),
        (Limits(result_bytes=50), "SELECT name || '0123456789012345' FROM people"),
        (Limits(query_bytes=40), "SELECT name FROM people WHERE name <> 'nobody at all'"),
    ],
)
def test_every_limit_is_kept(people, limits, query):
    """Mutation: jaxpost/rewards/sql_worker.py: `len(rows) > limits["rows"] or ` -> ``

    Mutation: jaxpost/rewards/sql_worker.py: ` or size > limits["result_bytes"]` -> ``
    Mutation: jaxpost/rewards/sql_worker.py: `("SQL_LENGTH", limits["query_bytes"])` -> `("SQL_LENGTH", 10000)`
    """
    gold = "SELECT name FROM people WHERE id = 1"
    with sql_process.SqlProcess(limits) as process:
        assert process.run(people, query) is None
        assert process.run(people, gold) is not None
    with sql_process.SqlProcess(Limits()) as process:
        assert process.run(people, query) is not None


def random_rows(rng):
    values = [None, 0, 1, 2, 2**53 + 1, 0.5, 1.0, 1e300, "", "a", "1", b"", b"a"]
    width = rng.randint(1, 4)
    return width, [tuple(rng.choice(values) for _ in range(width)) for _ in range(rng.randint(0, 9))]


@pytest.mark.parametrize("seed", range(40))
def test_results_of_random_tables(seed):
    """Shuffled rows are the same unless order counts; a changed or further row is not; noise does not matter."""
    rng = random.Random(seed)
    width, rows = random_rows(rng)
    result = Result(columns=width, rows=rows)
    shuffled = rng.sample(rows, len(rows))
    noisy = [
        tuple(v * (1 + rng.uniform(-1e-13, 1e-13)) if isinstance(v, float) else v for v in row) for row in shuffled
    ]
    for ordered in (False, True):
        assert same_result(result, result, ordered=ordered)
        assert not same_result(result, Result(columns=width, rows=[*rows, ("new",) * width]), ordered=ordered)
        if rows:
            at = rng.randrange(len(rows))
            changed = [*rows[:at], ("new", *rows[at][1:]), *rows[at + 1 :]]
            assert not same_result(result, Result(columns=width, rows=changed), ordered=ordered)
    assert same_result(result, Result(columns=width, rows=noisy), ordered=False)
    moved = any(
        not same_result(*(Result(columns=width, rows=[r]) for r in pair), ordered=True)
        for pair in zip(rows, shuffled, strict=True)
    )
    assert same_result(result, Result(columns=width, rows=shuffled), ordered=True) is not moved


@pytest.mark.parametrize("seed", SEEDS)
def test_random_queries_against_python(tmp_path, seed):
    """On a random table: `age > k` as SQL has the rows that Python finds, and another k with other rows is wrong."""
    rng = random.Random(seed)
    rows = [(i, rng.choice("abc"), rng.randint(0, 9), rng.random()) for i in range(rng.randint(5, 40))]
    path = make(tmp_path / "random.sqlite", rows)
    bounds = [k for k in range(-1, 9) if any(row[2] > k for row in rows)]
    gold = rng.choice(bounds)
    texts = [f"SELECT id FROM people WHERE age > {k}" for k in bounds]
    found = [{row[0] for row in rows if row[2] > k} for k in bounds]
    want = [float(ids == found[bounds.index(gold)]) for ids in found]
    assert sql_reward(texts, [path] * len(texts), [texts[bounds.index(gold)]] * len(texts)) == want
