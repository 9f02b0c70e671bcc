#!/usr/bin/env python3
"""Rows `CREATE TABLE ... question -> SQL` for fine-tuning and evaluation, from a seed; standard library only.

    python scripts/make_sql_rows.py --seed 0 --train 2000 --heldout 400 --output rows

writes rows/train.jsonl and rows/heldout.jsonl. The tables are split before anything else: no held-out row shares its
table with a training row. Each SQL text is the one canonical answer of its question (fixed keywords, spacing, quotes,
order), so that an exact match means the right query; each is run on its schema by sqlite before it is written.
"""

import argparse
import contextlib
import json
import random
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEM = "Answer with one SQL query."
ROWS_PER_SCHEMA = 4
HELDOUT_SHARE = 0.3  # of the tables

TEXT_COLUMNS = {
    "name": "Alice Bruno Chloe Daniel Elena Farid Grace Hugo Ines Jonas Keiko Liam",
    "owner": "Anna Boris Carla David Emma Felix Gita Hans Iris Jack",
    "city": "Paris Berlin Madrid Oslo Lima Cairo Tokyo Delhi Boston Quito",
    "country": "France Germany Spain Norway Peru Egypt Japan India Canada Kenya",
    "region": "north south east west centre coast",
    "color": "red blue green black white yellow grey orange",
    "status": "active closed pending broken planned paused",
    "category": "basic premium budget classic modern luxury",
    "brand": "Acme Zenith Orion Nova Vertex Lumen Apex",
    "material": "wood steel glass cotton leather plastic stone",
    "genre": "drama comedy horror poetry jazz rock folk",
    "language": "English French German Spanish Arabic Hindi Korean",
    "department": "sales finance legal research support design",
    "role": "manager engineer clerk analyst driver nurse",
    "team": "Eagles Tigers Wolves Sharks Bears Falcons",
    "size": "small medium large tiny huge",
    "shape": "round square oval flat long",
    "season": "spring summer autumn winter",
    "level": "beginner middle advanced expert",
    "supplier": "Delta Kappa Sigma Omega Theta Alpha",
    "breed": "husky poodle beagle collie boxer terrier",
    "habitat": "forest desert ocean river mountain swamp",
    "fuel": "petrol diesel electric hybrid hydrogen",
    "route": "A1 B2 C3 D4 E5 F6",
    "platform": "web mobile desktop console",
    "subject": "history biology physics algebra music art",
    "manager": "Olga Peter Quinn Rosa Stefan Tara Umar Vera",
    "origin": "local imported mixed unknown",
}
NUMBER_COLUMNS = {
    "age": 90,
    "price": 900,
    "salary": 9000,
    "weight": 400,
    "height": 300,
    "length": 800,
    "width": 200,
    "speed": 300,
    "score": 100,
    "rating": 10,
    "stock": 500,
    "pages": 900,
    "capacity": 800,
    "distance": 700,
    "duration": 240,
    "budget": 8000,
    "revenue": 9000,
    "year": 2024,
    "floors": 60,
    "seats": 400,
    "visitors": 5000,
    "calories": 900,
    "points": 150,
    "wins": 80,
    "population": 9000,
    "depth": 500,
    "discount": 70,
    "hours": 60,
    "credits": 40,
    "power": 600,
}
# Tables, the text columns and the number columns that go with them.
DOMAINS = (
    (
        "employees interns contractors managers clerks drivers nurses teachers",
        "name city department role status country manager level",
        "age salary hours score year",
    ),
    (
        "books magazines novels comics journals manuals diaries albums",
        "language genre country status category owner subject",
        "pages price rating year stock",
    ),
    (
        "cars trucks buses trains ferries planes scooters tractors",
        "brand color fuel country owner status route",
        "price speed seats weight year power",
    ),
    (
        "houses hotels offices museums castles garages schools factories",
        "city region owner status material country",
        "floors price visitors capacity year height",
    ),
    (
        "dogs cats horses parrots rabbits turtles whales lizards",
        "name breed color habitat owner origin size",
        "age weight height length speed",
    ),
    (
        "players coaches referees runners swimmers cyclists climbers divers",
        "name team country city level status",
        "age wins points height weight score",
    ),
    (
        "shirts shoes hats jackets dresses gloves scarves belts",
        "color size brand material season category supplier",
        "price stock discount weight rating",
    ),
    (
        "lamps chairs benches desks sofas mirrors carpets shelves",
        "color material shape brand supplier category",
        "price width height weight stock depth",
    ),
    (
        "films concerts plays festivals podcasts songs games exhibitions",
        "genre language country city platform status season",
        "duration budget revenue rating year visitors",
    ),
    (
        "courses lectures workshops exams seminars tutorials degrees classes",
        "subject level language season manager status",
        "credits hours capacity price duration score",
    ),
    (
        "soups cakes salads breads cheeses juices sauces pastries",
        "origin size category season supplier color",
        "calories price weight rating stock",
    ),
    (
        "rivers lakes mountains islands deserts forests valleys caves",
        "country region habitat status season",
        "length depth height population distance visitors",
    ),
    (
        "phones laptops cameras printers routers speakers tablets monitors",
        "brand color platform supplier status category",
        "price weight stock rating year power",
    ),
    (
        "orders invoices shipments returns payments refunds parcels deliveries",
        "status city country supplier route owner",
        "price weight distance discount year",
    ),
)

COMPARISONS = {">": ("above", "more than"), "<": ("below", "less than")}
AGGREGATES = {
    "MAX": ("highest", "maximum"),
    "MIN": ("lowest", "minimum"),
    "AVG": ("average", "mean"),
    "SUM": ("total",),
}
DIRECTIONS = {"ASC": ("ascending",), "DESC": ("descending",)}
EXTREMES = {"ASC": ("lowest",), "DESC": ("highest",)}

# Kind -> (SQL, phrasings). {a}: the text column asked for, {b}: another text column with value {v}, {n}: a number
# column with bound {k}, {c}: a small count. {op}, {agg}, {extreme} and {direction} are symbols in the SQL and words in
# the question.
KINDS = {
    "count": (
        "SELECT COUNT(*) FROM {table}",
        ("How many {table} are there?", "Count all {table}."),
    ),
    "count_where": (
        "SELECT COUNT(*) FROM {table} WHERE {b} = '{v}'",
        ("How many {table} have {b} {v}?", "Count the {table} whose {b} is {v}."),
    ),
    "select_where": (
        "SELECT {a} FROM {table} WHERE {b} = '{v}'",
        ("Show the {a} of the {table} with {b} {v}.", "What is the {a} of the {table} whose {b} is {v}?"),
    ),
    "select_compare": (
        "SELECT {a} FROM {table} WHERE {n} {op} {k}",
        ("Show the {a} of the {table} with {n} {op} {k}.", "What is the {a} of the {table} whose {n} is {op} {k}?"),
    ),
    "two_conditions": (
        "SELECT {a} FROM {table} WHERE {b} = '{v}' AND {n} {op} {k}",
        (
            "Show the {a} of the {table} with {b} {v} and {n} {op} {k}.",
            "What is the {a} of the {table} whose {b} is {v} and whose {n} is {op} {k}?",
        ),
    ),
    "aggregate": (
        "SELECT {agg}({n}) FROM {table}",
        ("What is the {agg} {n} of all {table}?", "Find the {agg} {n} of the {table}."),
    ),
    "aggregate_where": (
        "SELECT {agg}({n}) FROM {table} WHERE {b} = '{v}'",
        ("What is the {agg} {n} of the {table} with {b} {v}?", "Find the {agg} {n} of the {table} whose {b} is {v}."),
    ),
    "top": (
        "SELECT {a} FROM {table} ORDER BY {n} {extreme} LIMIT {c}",
        (
            "Show the {a} of the {c} {table} with the {extreme} {n}.",
            "Which {c} {table} have the {extreme} {n}? Show the {a}.",
        ),
    ),
    "order": (
        "SELECT {a} FROM {table} ORDER BY {n} {direction}",
        (
            "Show the {a} of all {table} in {direction} order of {n}.",
            "List the {a} of the {table} in {direction} order of {n}.",
        ),
    ),
    "group_count": (
        "SELECT {b}, COUNT(*) FROM {table} GROUP BY {b}",
        ("For each {b}, how many {table} are there?", "For each {b}, count the {table}."),
    ),
    "group_aggregate": (
        "SELECT {b}, {agg}({n}) FROM {table} GROUP BY {b}",
        ("For each {b}, what is the {agg} {n} of the {table}?", "For each {b}, find the {agg} {n} of the {table}."),
    ),
    "distinct": (
        "SELECT DISTINCT {b} FROM {table}",
        ("What are the distinct {b} values of the {table}?", "List the distinct {b} of the {table}."),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One table: its name and its columns with their types, in order."""

    table: str
    columns: tuple[tuple[str, str], ...]

    @property
    def ddl(self) -> str:
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns)
        return f"CREATE TABLE {self.table} ({columns})"

    def of_type(self, kind: str) -> list[str]:
        return [name for name, got in self.columns if got == kind]


def split_tables(seed: int) -> dict[str, list[tuple[str, int]]]:
    """(table, its domain) of each split; a share of every domain is held out, so that its columns are not."""
    rng = random.Random(f"{seed}/tables")
    splits: dict[str, list[tuple[str, int]]] = {"train": [], "heldout": []}
    for domain, (tables, _, _) in enumerate(DOMAINS):
        names = tables.split()
        rng.shuffle(names)
        cut = round(HELDOUT_SHARE * len(names))
        splits["heldout"] += [(name, domain) for name in names[:cut]]
        splits["train"] += [(name, domain) for name in names[cut:]]
    return splits


def make_schema(rng: random.Random, table: str, domain: int) -> Schema:
    """Two or three text and as many number columns of the domain, in any order."""
    _, texts, numbers = DOMAINS[domain]
    columns = [(name, "TEXT") for name in rng.sample(texts.split(), rng.randint(2, 3))]
    columns += [(name, "INTEGER") for name in rng.sample(numbers.split(), rng.randint(2, 3))]
    rng.shuffle(columns)
    return Schema(table=table, columns=tuple(columns))


def ask(rng: random.Random, schema: Schema, kind: str) -> tuple[str, str]:
    """A question of this kind and its SQL."""
    a, b = rng.sample(schema.of_type("TEXT"), 2)
    n = rng.choice(schema.of_type("INTEGER"))
    low = 1950 if n == "year" else 1
    plain = {"table": schema.table, "a": a, "b": b, "n": n, "k": rng.randint(low, NUMBER_COLUMNS[n])}
    plain |= {"v": rng.choice(TEXT_COLUMNS[b].split()), "c": rng.randint(2, 9)}
    words = {"op": COMPARISONS, "agg": AGGREGATES, "direction": DIRECTIONS, "extreme": EXTREMES}
    chosen = {slot: rng.choice(list(table)) for slot, table in words.items()}
    spoken = {slot: rng.choice(words[slot][symbol]) for slot, symbol in chosen.items()}
    sql, phrasings = KINDS[kind]
    question = rng.choice(phrasings).format(**plain | spoken | {"table": schema.table.replace("_", " ")})
    return question, sql.format(**plain | chosen)


def rows(seed: int, split: str, count: int) -> Iterator[dict[str, str]]:
    """`count` distinct rows of schema, question, sql and kind; a smaller count gives the first of them."""
    rng = random.Random(f"{seed}/{split}")
    tables, kinds = split_tables(seed)[split], list(KINDS)
    seen: set[tuple[str, str]] = set()
    while len(seen) < count:
        schema = make_schema(rng, *rng.choice(tables))
        for kind in rng.sample(kinds, ROWS_PER_SCHEMA):
            question, sql = ask(rng, schema, kind)
            if (schema.ddl, question) not in seen and len(seen) < count:
                seen.add((schema.ddl, question))
                yield {"schema": schema.ddl, "question": question, "sql": sql, "kind": kind}


def check(row: dict[str, str]) -> None:
    """Run the query on the empty table; sqlite's error ends the script."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(row["schema"])
        connection.execute(row["sql"]).fetchall()


def as_messages(row: dict[str, str]) -> dict:
    user = f"{row['schema']}\n{row['question']}"
    turns = (("system", SYSTEM), ("user", user), ("assistant", row["sql"]))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def as_completion(row: dict[str, str]) -> dict:
    return {"prompt": f"{row['schema']}\n-- {row['question']}\n", "completion": row["sql"]}


FORMATS = {"messages": as_messages, "completion": as_completion}


def write(path: Path, seed: int, split: str, count: int, form: str) -> None:
    """JSON lines; beside the training columns each row keeps its schema and kind, for tables by schema and by kind."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows(seed, split, count):
            check(row)
            line = FORMATS[form](row) | {"schema": row["schema"], "kind": row["kind"]}
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=2000, help="training rows (default 2000)")
    parser.add_argument(
        "--heldout", type=int, default=400, help="rows on tables that are not in training (default 400)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of train.jsonl and heldout.jsonl")
    parser.add_argument("--format", choices=list(FORMATS), default="messages")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "heldout"):
        path = args.output / f"{split}.jsonl"
        write(path, args.seed, split, getattr(args, split), args.format)
        print(path)


if __name__ == "__main__":
    main()
