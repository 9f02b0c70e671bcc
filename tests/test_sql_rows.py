"""scripts/make_sql_rows.py: the same rows for a seed, held-out tables never trained on, one right answer a question."""

import importlib.util
import json
import random
import re
import sqlite3
import subprocess
import sys
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_sql_rows.py"
SEEDS = (0, 1, 7)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_sql_rows", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def make(folder, *flags):
    subprocess.run([sys.executable, str(SCRIPT), "--output", str(folder), *flags], check=True, stdout=subprocess.PIPE)
    return {name: [json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in ("train", "heldout")}


def test_same_seed_same_bytes_and_another_seed_other_rows(tmp_path):
    flags = ("--train", "150", "--heldout", "60", "--seed")
    first, again, other = (make(tmp_path / name, *flags, seed) for name, seed in (("a", "3"), ("b", "3"), ("c", "4")))
    assert first == again and len(first["train"]) == 150 and len(first["heldout"]) == 60
    assert not {json.dumps(row) for row in first["train"]} & {json.dumps(row) for row in other["train"]}


def test_fewer_rows_are_the_first_ones(script):
    assert list(script.rows(5, "train", 400))[:37] == list(script.rows(5, "train", 37))


@pytest.mark.parametrize("seed", SEEDS)
def test_heldout_tables_are_not_in_training(script, seed):
    """No table of the held-out rows is trained on, and every kind of question and column is in both splits."""
    table = re.compile(r"CREATE TABLE (\w+) \((.*)\)")
    seen = {}
    for split in ("train", "heldout"):
        rows = list(script.rows(seed, split, 1500))
        tables, columns = zip(*(table.fullmatch(row["schema"]).groups() for row in rows), strict=True)
        names = {column.split()[0] for schema in columns for column in schema.split(", ")}
        seen[split] = set(tables), names, {row["kind"] for row in rows}
    assert not seen["train"][0] & seen["heldout"][0]
    assert len(seen["heldout"][0]) >= 20
    assert seen["train"][1:] == seen["heldout"][1:]
    assert seen["train"][2] == set(script.KINDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_question_has_one_answer(script, seed):
    """The SQL is a function of schema and question: exact match is meaningful."""
    rows = [row for split in ("train", "heldout") for row in script.rows(seed, split, 3000)]
    answers = defaultdict(set)
    for row in rows:
        answers[row["schema"], row["question"]].add(row["sql"])
    assert len(answers) == len(rows)
    # asked again of the same schema with other words drawn, a question still has that answer
    rng = random.Random(seed)
    for row in rows[:200]:
        name, columns = re.fullmatch(r"CREATE TABLE (\w+) \((.*)\)", row["schema"]).groups()
        schema = script.Schema(table=name, columns=tuple(tuple(column.split()) for column in columns.split(", ")))
        for kind in script.KINDS:
            question, sql = script.ask(rng, schema, kind)
            answers[schema.ddl, question].add(sql)
    assert {len(found) for found in answers.values()} == {1}


@pytest.mark.parametrize("seed", SEEDS)
def test_queries_answer_their_question_on_data(script, seed):
    """On a filled table, sqlite gives what the question's words ask for, for the kinds that are told by one number."""
    words = {"highest": max, "maximum": max, "lowest": min, "minimum": min, "total": sum}
    checked = 0
    for row in script.rows(seed, "train", 600):
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute(row["schema"])
            columns = [item.split() for item in row["schema"].split("(")[1].rstrip(")").split(", ")]
            values = [[7 * i % 11 if kind == "INTEGER" else f"v{i % 3}" for _, kind in columns] for i in range(9)]
            connection.executemany(
                f"INSERT INTO {row['schema'].split()[2]} VALUES ({','.join('?' * len(columns))})", values
            )
            got = connection.execute(row["sql"]).fetchall()
        if row["kind"] == "count":
            assert got == [(9,)]
        if row["kind"] == "aggregate":
            word = next((word for word in words if word in row["question"]), None)
            column = re.search(r"\((\w+)\)", row["sql"]).group(1)
            at = [name for name, _ in columns].index(column)
            if word:
                assert got == [(words[word](line[at] for line in values),)]
                checked += 1
        if row["kind"] == "distinct":
            assert len(got) == 3
    assert checked > 10


def test_formats(tmp_path):
    """Chat rows, and prompt with completion; both carry schema and kind."""
    chat = make(tmp_path / "a", "--train", "40", "--heldout", "5")["train"]
    plain = make(tmp_path / "b", "--train", "40", "--heldout", "5", "--format", "completion")["train"]
    for one, other in zip(chat, plain, strict=True):
        system, user, assistant = one["messages"]
        assert [turn["role"] for turn in one["messages"]] == ["system", "user", "assistant"]
        assert user["content"].startswith(one["schema"]) and other["prompt"].startswith(one["schema"])
        assert assistant["content"] == other["completion"] and other["completion"].startswith("SELECT ")
        assert (one["schema"], one["kind"]) == (other["schema"], other["kind"])
        assert user["content"].split("\n")[1] in other["prompt"]


def test_a_query_that_does_not_run_ends_the_script(script):
    with pytest.raises(sqlite3.OperationalError):
        script.check({"schema": "CREATE TABLE cars (price INTEGER)", "sql": "SELECT prise FROM cars"})
