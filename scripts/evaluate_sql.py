#!/usr/bin/env python3
"""How many questions of scripts/make_sql_task.py a model answers, by running its queries.

    python scripts/evaluate_sql.py --model MODEL_DIR --adapter ADAPTER --task task --questions 300 --output tuned.jsonl

Half of the questions are new ones about the schemas of the training rows, half are about schemas that training never
saw. A greedy answer counts if its query's result is that of the gold query on both databases of the schema. Intervals
are 95 % bootstraps over schemas, since questions of one schema are not independent. `--output` gets one line a
question, with the answer and whether it counts; `--against FILE` prints the families beside those of another run.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxpost
from jaxpost.rewards import sql_reward

HALVES = {"heldout_question": "new questions", "heldout_schema": "new schemas"}
MAX_NEW_TOKENS = 48  # gold answers have up to 45, and the stop token
DRAWS = 2000  # of the bootstrap
CHUNK = 75  # questions between two lines of progress, answered at once; 300 and 600 are whole chunks: one program


def read_questions(task: Path, count: int) -> list[dict]:
    """The first `count` / 2 held-out rows of each half."""
    rows = []
    for name, number in zip(HALVES, (count - count // 2, count // 2), strict=True):
        lines = (task / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        if len(lines) < number:
            sys.exit(f"evaluate_sql: error: {task / name}.jsonl has {len(lines)} rows; {number} are asked for.")
        rows += [json.loads(line) for line in lines[:number]]
    return rows


def answer(model: str, adapter: Path | None, rows: Sequence[dict], label: str) -> list[str]:
    """Greedy answers to the rows' prompts, everything before the assistant's turn; progress on stderr."""
    loaded = jaxpost.load(model, dtype="float32")
    params = None
    if adapter is not None:
        params = jaxpost.bind(loaded.params, jaxpost.load_adapter(adapter, loaded))
    prompts = [row["messages"][:-1] for row in rows]
    texts: list[str] = []
    started = time.monotonic()
    for start in range(0, len(prompts), CHUNK):
        part = prompts[start : start + CHUNK]
        limits: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": CHUNK}
        done = jaxpost.generate(loaded, part, temperature=0.0, params=params, **limits)
        texts += [completion.text for completion in done]
        took = time.monotonic() - started
        print(f"{label}: {len(texts)}/{len(prompts)} questions answered, {took:.0f} s", file=sys.stderr, flush=True)
    return texts


def scored(rows: Sequence[dict], texts: Sequence[str], task: Path) -> list[dict]:
    """One record a question: what was asked, wanted and answered, and whether it counts."""
    columns = {"database": [row["database"] for row in rows], "sql": [row["sql"] for row in rows]}
    scores = sql_reward(list(texts), **columns, root=task)
    if None in scores:
        sys.exit(f"evaluate_sql: error: gold queries do not run on the databases in {task}.")
    kept = ("split", "schema", "family", "sql")
    return [
        {name: row[name] for name in kept} | {"question": question(row), "answer": text, "correct": score == 1.0}
        for row, text, score in zip(rows, texts, scores, strict=True)
    ]


def question(row: dict) -> str:
    return row["messages"][-2]["content"].rpartition("\n")[2]


def interval(records: Sequence[dict]) -> tuple[float, float]:
    """95 % bootstrap interval of the share of correct records; whole schemas are drawn, with seed 0."""
    groups = defaultdict(list)
    for record in records:
        groups[record["schema"]].append(record["correct"])
    sums = np.array([(sum(group), len(group)) for group in groups.values()])
    picks = sums[np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))].sum(1)
    low, high = np.quantile(picks[:, 0] / picks[:, 1], [0.025, 0.975])
    return float(low), float(high)


def table(label: str, records: Sequence[dict]) -> list[str]:
    """The lines of one model: each half, and both together."""
    halves = {said: [r for r in records if r["split"] == name] for name, said in HALVES.items()}
    lines = []
    for said, part in (halves | {"both": list(records)}).items():
        low, high = interval(part)
        numbers = f"{100 * share(part):5.1f} %  [{100 * low:5.1f}, {100 * high:5.1f}]"
        lines.append(
            f"{label:<8}{said:<15}{numbers}  {len(part):4} questions, {len({r['schema'] for r in part})} schemas"
        )
    return lines


def share(records: Sequence[dict]) -> float:
    return float(np.mean([record["correct"] for record in records]))


def families(before: Sequence[dict], after: Sequence[dict]) -> list[str]:
    """One line a family: correct before and after, and of how many."""
    names = sorted({record["family"] for record in after})
    counts = [[sum(r["correct"] for r in run if r["family"] == name) for run in (before, after)] for name in names]
    total = [sum(r["family"] == name for r in after) for name in names]
    return [f"  {n:<20}{b:3} -> {a:3} of {t:3}" for n, (b, a), t in zip(names, counts, total, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--task", type=Path, required=True, help="folder of make_sql_task.py")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--label", default="model", help="name in the table")
    parser.add_argument("--against", type=Path, help="--output of another run, for the table of families")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    rows = read_questions(args.task, args.questions)
    records = scored(rows, answer(args.model, args.adapter, rows, args.label), args.task)
    args.output.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    print(*table(args.label, records), sep="\n", flush=True)
    if args.against is not None:
        before = [json.loads(line) for line in args.against.read_text(encoding="utf-8").splitlines()]
        print(*families(before, records), sep="\n", flush=True)


if __name__ == "__main__":
    main()
