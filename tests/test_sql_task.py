"""scripts/make_sql_task.py: disjoint splits, and gold queries that find something and tell right from wrong."""

import importlib.util
import json
import re
import sqlite3
import subprocess
import sys
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest

from jaxpost.data.rows import ChatRow, make_row
from jaxpost.rewards import sql_reward

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_sql_task.py"
SPLITS = ("train", "heldout_question", "heldout_schema")
SEEDS = ("0", "23")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_sql_task", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def make(folder, *flags):
    subprocess.run([sys.executable, str(SCRIPT), "--output", str(folder), *flags], check=True, stdout=subprocess.PIPE)
    return {name: [json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in SPLITS}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Seed -> (folder, rows of each split)."""
    folders = {seed: tmp_path_factory.mktemp("tasks") / seed for seed in SEEDS}
    flags = ("--train-rows", "700", "--heldout-rows", "150")
    return {seed: (folder, make(folder, "--seed", seed, *flags)) for seed, folder in folders.items()}


def question(row):
    return row["messages"][1]["content"].rpartition("\n")[2]


def ddl(row):
    return row["messages"][1]["content"].rpartition("\n")[0]


def tables(row):
    return set(re.findall(r"CREATE TABLE (\w+)", ddl(row)))


def test_same_seed_same_bytes_and_another_seed_other_schemas(tmp_path):
    flags = ("--train-rows", "60", "--heldout-rows", "20", "--seed")
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        make(tmp_path / name, *flags, seed)
    files = [file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file()]
    assert len(files) == 3 + 2 * (60 + 40)
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    first, other = (make(tmp_path / name, *flags, seed) for name, seed in (("a", "3"), ("c", "4")))
    for split in SPLITS:
        assert not {ddl(row) for row in first[split]} & {ddl(row) for row in other[split]}


def test_fewer_rows_are_the_first_ones(script):
    schemas = script.make_schemas(5, "train", 9)
    assert script.make_schemas(5, "train", 20)[:9] == schemas
    assert list(script.make_rows(5, "train", schemas, 80))[:37] == list(script.make_rows(5, "train", schemas, 37))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_heldout_question_is_in_training(tasks, seed):
    """Of heldout_question neither the question nor its answer is trained on that schema, though the schema is."""
    _, rows = tasks[seed]
    trained = {(row["schema"], text) for row in rows["train"] for text in (question(row), row["sql"])}
    for row in rows["heldout_question"]:
        assert not {(row["schema"], question(row)), (row["schema"], row["sql"])} & trained
    assert {row["schema"] for row in rows["heldout_question"]} <= {row["schema"] for row in rows["train"]}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_heldout_table_is_in_training(tasks, seed):
    """Tables of heldout_schema are in no training row; their columns are, and so is every family."""
    _, rows = tasks[seed]
    trained, unseen = (set().union(*(tables(row) for row in rows[split])) for split in ("train", "heldout_schema"))
    assert not trained & unseen
    assert len(unseen) == 40 and len({row["schema"] for row in rows["heldout_schema"]}) >= 36
    columns = [{name for row in rows[s] for name in re.findall(r"(\w+)[,)]", ddl(row))} for s in SPLITS]
    assert len(columns[2] & columns[0]) > 0.7 * len(columns[2])  # the others are the keys of its tables


@pytest.mark.parametrize("seed", SEEDS)
def test_families_and_phrasings_are_all_there(tasks, script, seed):
    _, rows = tasks[seed]
    for split in SPLITS:
        counts = defaultdict(int)
        for row in rows[split]:
            counts[row["family"]] += 1
        assert counts.keys() == script.FAMILIES.keys()
        assert max(counts.values()) <= min(counts.values()) + len(rows[split]) / 20
    for family, entry in script.FAMILIES.items():
        patterns = [re.sub(r"\\{\w+\\}", ".+", re.escape(phrase)) for phrase in entry["phrasings"]]
        asked = [question(row) for row in rows["train"] if row["family"] == family]
        assert len(patterns) >= 3
        assert all(any(re.fullmatch(pattern, text) for text in asked) for pattern in patterns), family
    assert not [row for split in SPLITS for row in rows[split] if re.search(r"[{}]", question(row) + row["sql"])]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_gold_query_finds_rows_in_both_databases_and_verifies(tasks, seed):
    folder, rows = tasks[seed]
    for split in SPLITS:
        some = rows[split][:150]
        columns = {"database": [row["database"] for row in some], "sql": [row["sql"] for row in some]}
        completions = [row["messages"][2:] for row in some]
        assert sql_reward(completions, **columns, root=folder) == [1.0] * len(some)
        for row in some:
            assert len(row["database"]) == 2 and row["messages"][2]["content"] == row["sql"]
            for name in row["database"]:
                with closing(sqlite3.connect(f"file:{folder / name}?mode=ro", uri=True)) as connection:
                    assert connection.execute(row["sql"]).fetchone()[0] is not None
                    made = "\n".join(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master"))
                    assert made == ddl(row)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_question_has_one_answer(tasks, seed):
    answers = defaultdict(set)
    for split in SPLITS:
        for row in tasks[seed][1][split]:
            answers[row["schema"], question(row)].add(row["sql"])
    assert all(len(found) == 1 for found in answers.values())
    assert len(answers) == sum(len(rows) for rows in tasks[seed][1].values())


WRONG = {
    "no condition": (r" WHERE \S+ = '\w+'$", ""),
    "the other direction": (r"DESC", "ASC"),
    "the other comparison": (r" > ", " < "),
    "one row too many": (r"LIMIT (\d)", r"LIMIT 1\1"),
    "no distinct": (r"DISTINCT ", ""),
    "no order": (r" ORDER BY .*", ""),
    "or for and": (r" AND ", " OR "),
    "in for not in": (r"NOT IN", "IN"),
    "no grouping": (r" GROUP BY \S+", ""),
    "no having": (r" HAVING .*", ""),
    "the mean for the sum": (r"SUM", "AVG"),
    "the least for the most": (r"MAX", "MIN"),
}


@pytest.mark.parametrize("name", WRONG)
def test_common_mistakes_are_noticed(tasks, name):
    folder, rows = tasks["23"]
    pattern, other = WRONG[name]
    hit = [row for row in rows["train"] if re.search(pattern, row["sql"])][:40]
    assert len(hit) >= 10
    columns = {"database": [row["database"] for row in hit], "sql": [row["sql"] for row in hit]}
    assert sql_reward([re.sub(pattern, other, row["sql"]) for row in hit], **columns, root=folder) == [0.0] * len(hit)


def test_constants_and_empty_answers_are_noticed(tasks):
    folder, rows = tasks["0"]
    some = rows["heldout_schema"]
    columns = {"database": [row["database"] for row in some], "sql": [row["sql"] for row in some]}
    for guess in ("", "SELECT 12", "SELECT name FROM sqlite_master"):
        assert set(sql_reward([guess] * len(some), **columns, root=folder)) == {0.0}


def test_a_result_in_an_order_of_sqlites_choice_is_not_asked_for(script):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (a TEXT, n INT, m INT)")
        connection.executemany("INSERT INTO t VALUES (?, ?, ?)", [("y", 2, 1), ("x", 1, 2), ("z", 2, 3)])
        assert not script.is_fair([connection], "SELECT a FROM t ORDER BY n DESC LIMIT 2")
        assert script.is_fair([connection], "SELECT a FROM t ORDER BY m DESC LIMIT 2")
        assert script.is_fair([connection], "SELECT n FROM t GROUP BY n ORDER BY COUNT(*) DESC LIMIT 1")
        connection.execute("INSERT INTO t VALUES ('w', 1, 0)")
        assert not script.is_fair([connection], "SELECT n FROM t GROUP BY n ORDER BY COUNT(*) DESC LIMIT 1")
        assert not script.is_fair([connection], "SELECT a FROM t WHERE n > 2")


def test_rows_are_what_sft_reads(tasks):
    for split in SPLITS:
        for number, columns in enumerate(tasks["0"][1][split][:40], 1):
            row = make_row(columns, source=number, where="x")
            assert isinstance(row, ChatRow) and [turn["role"] for turn in row.messages] == [
                "system",
                "user",
                "assistant",
            ]
