#!/usr/bin/env python3
"""The text-to-SQL task from a seed: SQLite databases, and questions with the query that answers each.

    python scripts/make_sql_task.py --seed 0 --output task

writes task/train.jsonl, heldout_question.jsonl (schemas of the training rows, questions that are not among them),
heldout_schema.jsonl (tables that no training row has) and task/databases/. A row holds `messages` for `jaxpost sft`,
and for scoring `sql` (the gold query) and `database`: two files with the schema's tables and different contents, so
that a lucky answer is found out. Further columns: `schema`, `family`, `split`. Another seed gives other schemas.

Each gold query finds rows in both databases, and where their order counts no two are equal by it; none of the
common mistakes (a missing condition, the other direction, one row too many ...) gives the same result on both.
"""

import argparse
import contextlib
import json
import random
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxpost.rewards.sql_result import Result, same_result
from jaxpost.rewards.sql_text import is_ordered

SYSTEM = "Answer with one SQL query."
HELDOUT_TABLES = 2  # parents and children of each world whose tables are in heldout_schema only
HELDOUT_QUESTIONS = 0.15  # of the questions of a training schema
SECOND_CHILD = 0.35  # part of the schemas with three tables
COPIES = 2  # databases of a schema
TRIES = 300  # of a question of a family, before another family is taken

WORDS = yaml.safe_load(Path(__file__).with_name("sql_task.yaml").read_text(encoding="utf-8"))
FAMILIES: dict[str, dict] = WORDS["families"]
JOIN = "{c} JOIN {p} ON {c}.{fk} = {p}.id"
LARGE = {"year": (1950, 2024)}  # ranges of numbers that are not 1 to 400


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its name, the column that tells its rows apart, and the others by type. A child has a parent's key."""

    name: str
    label: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    key: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        key = () if self.key is None else (self.key,)
        return ("id", *key, self.label, *self.texts, *self.numbers)

    @property
    def ddl(self) -> str:
        """Without types, which SQLite does not need: they would be a sixth of the prompt."""
        return f"CREATE TABLE {self.name} ({', '.join(self.columns)})"


@dataclass(frozen=True, kw_only=True)
class Schema:
    """A parent and one or two children, and the contents of each copy: table name -> rows."""

    parent: Table
    children: tuple[Table, ...]
    contents: tuple[dict[str, list[tuple]], ...]

    @property
    def name(self) -> str:
        return "_".join(table.name for table in self.tables)

    @property
    def tables(self) -> tuple[Table, ...]:
        return (self.parent, *self.children)

    @property
    def ddl(self) -> str:
        return "\n".join(table.ddl for table in self.tables)

    def column(self, table: Table, name: str) -> list:
        """The values of a column in the first copy."""
        return [row[table.columns.index(name)] for row in self.contents[0][table.name]]

    def fill(self, connection: sqlite3.Connection, copy: int) -> None:
        for table in self.tables:
            rows = self.contents[copy][table.name]
            connection.execute(table.ddl)
            connection.executemany(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(table.columns))})", rows)
        connection.commit()


def singular(name: str) -> str:
    return name.removesuffix("s")


def make_schemas(seed: int, split: str, count: int) -> list[Schema]:
    """The first `count` schemas of `train` or `heldout`, worlds in turn; a pair of tables occurs once."""
    pairs: list[list] = []
    for number, world in enumerate(WORDS["worlds"]):
        rng = random.Random(f"{seed}/world {number}")  # its own: both splits must see the same shuffles
        parents, children = world["parents"].split(), world["children"].split()
        rng.shuffle(parents)
        rng.shuffle(children)
        cut = slice(None, HELDOUT_TABLES) if split == "heldout" else slice(HELDOUT_TABLES, None)
        parents, children = parents[cut], children[cut]
        mine = [(world, parent, child, children) for parent in parents for child in children]
        rng.shuffle(mine)
        pairs.append(mine)
    most = max(map(len, pairs))
    in_turn = [mine[i] for i in range(most) for mine in pairs if i < len(mine)]
    return [make_schema(random.Random(f"{seed}/{split}/{i}"), *pair) for i, pair in enumerate(in_turn[:count])]


def make_schema(rng: random.Random, world: dict[str, str], parent: str, child: str, children: list[str]) -> Schema:
    """Columns and contents drawn for these tables; sometimes a second child, which a query must not take."""

    def table(name: str, kind: str, label: str, key: str | None = None) -> Table:
        texts, numbers = (world[f"{kind}_{which}"].split() for which in ("texts", "numbers"))
        chosen = rng.sample(texts, rng.randint(1, 2)), rng.sample(numbers, 2)
        return Table(name=name, label=label, texts=tuple(chosen[0]), numbers=tuple(chosen[1]), key=key)

    names = [child, *rng.sample([c for c in children if c != child], rng.random() < SECOND_CHILD)]
    top = table(parent, "parent", "name")
    below = tuple(table(name, "child", world["label"], f"{singular(parent)}_id") for name in names)
    values = {text: rng.sample(WORDS["texts"][text].split(), 4) for table in (top, *below) for text in table.texts}
    contents = tuple(fill_tables(rng, top, below, values) for _ in range(COPIES))
    return Schema(parent=top, children=below, contents=contents)


def fill_tables(rng: random.Random, parent: Table, children: tuple[Table, ...], values: dict) -> dict[str, list[tuple]]:
    """Rows: labels and numbers differ within a table, groups differ in size, and some parents have no child."""
    size = rng.randint(12, 16)
    contents = {parent.name: list(fill_table(rng, parent, size, values, ()))}
    ids = list(range(1, size + 1))
    for child in children:
        parents = rng.sample(ids, size - 3)
        contents[child.name] = list(fill_table(rng, child, rng.randint(30, 45), values, parents))
    return contents


def fill_table(rng: random.Random, table: Table, size: int, values: dict, parents: object) -> Iterator[tuple]:
    numbers = [rng.sample(range(*LARGE.get(name, (1, 400))), size) for name in table.numbers]
    codes = rng.sample(WORDS["names"].split(), size) if table.key is None else rng.sample(range(100, 1000), size)
    for i in range(size):
        key = [] if table.key is None else rng.choices(parents, weights=range(1, len(parents) + 1))
        label = codes[i] if table.key is None else f"{table.name[0].upper()}{codes[i]}"
        texts = [rng.choices(values[name], weights=(4, 3, 2, 1))[0] for name in table.texts]
        yield i + 1, *key, label, *texts, *(column[i] for column in numbers)


def ask(rng: random.Random, schema: Schema, family: str) -> tuple[str, str]:
    """A question of this family and its SQL; whether it can be asked is for `is_fair` to say."""
    table, child, parent = rng.choice(schema.tables), rng.choice(schema.children), schema.parent
    slots: dict[str, Any] = {"t": table.name, "p": parent.name, "c": child.name}
    slots |= {"ps": singular(parent.name), "cs": singular(child.name), "fk": child.key}
    for prefix, of in (("", table), ("p", parent), ("c", child)):
        b = rng.choice(of.texts)
        a = rng.choice([name for name in (of.label, *of.texts) if name != b])
        n = rng.choice(of.numbers)
        low, high = sorted(rng.sample(schema.column(of, n), 2))
        named = {"a": a, "b": b, "v": rng.choice(schema.column(of, b)), "n": n, "k": low, "m": high}
        slots |= {prefix + name: value for name, value in named.items()}
    slots |= {"name": rng.choice(schema.column(parent, "name")), "i": rng.randint(2, 6)}
    slots["join"] = JOIN.format(**slots)
    symbols = {slot: rng.choice(list(words)) for slot, words in WORDS["words"].items()}
    spoken = {slot: rng.choice(WORDS["words"][slot][symbol]) for slot, symbol in symbols.items()}
    question = rng.choice(FAMILIES[family]["phrasings"]).format(**slots | spoken)
    return question, FAMILIES[family]["sql"].format(**slots | symbols)


def execute(connection: sqlite3.Connection, query: str) -> Result | None:
    """The result of a query that was made here; None where a mistake made it no SQL."""
    try:
        cursor = connection.execute(query)
    except sqlite3.Error:
        return None
    rows = cursor.fetchall()
    return Result(columns=len(cursor.description), rows=rows)


def is_fair(connections: list[sqlite3.Connection], query: str) -> bool:
    """Whether the result is never empty nor SQLite's choice, and every mistake changes it on some copy."""
    ordered = is_ordered(query)
    results = [execute(connection, query) for connection in connections]
    for connection, result in zip(connections, results, strict=True):
        if result is None or not result.rows or result.rows[0][0] is None:
            return False
        settled = [execute(connection, re.sub(r" (ASC|DESC)\b", rf" \1, 1 {way}", query)) for way in ("ASC", "DESC")]
        if any(other is None or not same_result(result, other, ordered=ordered) for other in settled):
            return False  # rows that are equal by the ORDER BY, and come out in an order that SQLite chose
    wrong = {re.sub(pattern, other, query, count=1) for pattern, other in WORDS["mistakes"]} - {query}
    return not any(
        all(
            other is None or same_result(result, other, ordered=ordered)
            for result, other in zip(results, [execute(connection, mistake) for connection in connections], strict=True)
        )
        for mistake in wrong
        if execute(connections[0], mistake) is not None
    )


def is_heldout(seed: int, schema: Schema, query: str) -> bool:
    """Whether a question about a training schema is kept out of training; all its phrasings share this query."""
    return random.Random(f"{seed}/{schema.name}/{query}").random() < HELDOUT_QUESTIONS


def make_rows(seed: int, split: str, schemas: list[Schema], count: int) -> Iterator[dict]:
    """`count` distinct rows; a smaller count gives the first of them. `split` is the file's name without suffix."""
    rng = random.Random(f"{seed}/{split}")
    seen: set[tuple[str, str]] = set()
    with contextlib.ExitStack() as stack:
        opened = [in_memory(stack, schema) for schema in schemas]
        due: list[str] = []
        while len(seen) < count:
            due = due or rng.sample(list(FAMILIES), len(FAMILIES))  # every family in turn, in another order each time
            family = due.pop()
            for _ in range(TRIES):
                i = rng.randrange(len(schemas))
                question, query = ask(rng, schemas[i], family)
                wanted = split == "heldout_schema" or is_heldout(seed, schemas[i], query) == (split != "train")
                if wanted and (schemas[i].name, question) not in seen and is_fair(opened[i], query):
                    seen.add((schemas[i].name, question))
                    yield row(schemas[i], split, family, question, query)
                    break


def in_memory(stack: contextlib.ExitStack, schema: Schema) -> list[sqlite3.Connection]:
    connections = [stack.enter_context(contextlib.closing(sqlite3.connect(":memory:"))) for _ in range(COPIES)]
    for copy, connection in enumerate(connections):
        schema.fill(connection, copy)
    return connections


def row(schema: Schema, split: str, family: str, question: str, query: str) -> dict:
    turns = (("system", SYSTEM), ("user", f"{schema.ddl}\n{question}"), ("assistant", query))
    return {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "sql": query,
        "database": [database(schema, copy) for copy in range(COPIES)],
        "schema": schema.name,
        "family": family,
        "split": split,
    }


def database(schema: Schema, copy: int) -> str:
    return f"databases/{schema.name}.{copy}.sqlite"


def write_database(path: Path, schema: Schema, copy: int) -> None:
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous=OFF")  # it can be made again
        schema.fill(connection, copy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-rows", type=int, default=2000)
    parser.add_argument("--heldout-rows", type=int, default=400, help="of each held-out file")
    parser.add_argument("--train-schemas", type=int, default=60, help="at most 160")
    parser.add_argument("--heldout-schemas", type=int, default=40, help="at most 40")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    trained, unseen = (
        make_schemas(args.seed, "train", args.train_schemas),
        make_schemas(args.seed, "heldout", args.heldout_schemas),
    )
    (args.output / "databases").mkdir(parents=True, exist_ok=True)
    for schema in [*trained, *unseen]:
        for copy in range(COPIES):
            write_database(args.output / database(schema, copy), schema, copy)
    for split, schemas, count in (
        ("train", trained, args.train_rows),
        ("heldout_question", trained, args.heldout_rows),
        ("heldout_schema", unseen, args.heldout_rows),
    ):
        path = args.output / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(args.seed, split, schemas, count)))
        print(path)


if __name__ == "__main__":
    main()
