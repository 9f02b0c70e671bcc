#!/usr/bin/env python3
"""The quickstart's answers computed again, by transformers and PEFT from the exported adapter.

    python scripts/reproduce_quickstart.py quickstart --model MODEL_DIR [--questions 60]

Needs the `parity` extra (torch, peft). Answers some of the questions of OUTPUT/base.jsonl and OUTPUT/tuned.jsonl again,
spread over the whole file, greedily and one at a time; prints how many answers are the same text, and the share that
counts in both. Exit status 1 where a share differs.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from jaxpost.rewards import sql_reward

MAX_NEW_TOKENS = 48  # as scripts/evaluate_sql.py


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def chosen(output: Path, name: str, count: int) -> tuple[list[dict], list[dict]]:
    """`count` records of a run's answers, evenly spread, and the task's rows that they are about."""
    records = read_lines(output / f"{name}.jsonl")
    records = records[:: max(1, len(records) // count)][:count]
    splits = {record["split"] for record in records}
    rows = {key(row): row for split in splits for row in read_lines(output / "task" / f"{split}.jsonl")}
    return records, [rows[record["split"], record["schema"], record["question"]] for record in records]


def key(row: dict) -> tuple[str, str, str]:
    return row["split"], row["schema"], row["messages"][-2]["content"].rpartition("\n")[2]


def answers(model: torch.nn.Module, tokenizer, rows: Sequence[dict], stop: Sequence[int]) -> Iterator[str]:
    """Greedy answers, without special tokens."""
    config = GenerationConfig(
        do_sample=False, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=list(stop), pad_token_id=stop[0]
    )
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            row["messages"][:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            ids = model.generate(**prompt, generation_config=config)  # pyright: ignore[reportCallIssue]
        yield tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def stop_ids(folder: str) -> list[int]:
    found = GenerationConfig.from_pretrained(folder).eos_token_id
    return found if isinstance(found, list) else [found]


def compare(name: str, records: Sequence[dict], rows: Sequence[dict], texts: Sequence[str], task: Path) -> bool:
    """Prints one line; whether as many answers count here as there."""
    columns = {"database": [row["database"] for row in rows], "sql": [row["sql"] for row in rows]}
    mine = [score == 1.0 for score in sql_reward(list(texts), **columns, root=task)]
    theirs = [record["correct"] for record in records]
    same = sum(record["answer"] == text for record, text in zip(records, texts, strict=True))
    shares = f"{100 * sum(theirs) / len(theirs):.1f} % here, {100 * sum(mine) / len(mine):.1f} % in transformers"
    print(f"{name:<6} {shares}; {same} of {len(rows)} answers are the same text", flush=True)
    return mine == theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the quickstart")
    parser.add_argument("--model", required=True)
    parser.add_argument("--questions", type=int, default=60)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    same = []
    for name in ("base", "tuned"):
        if name == "tuned":
            model = PeftModel.from_pretrained(model, str(args.output / "adapter")).eval()
        records, rows = chosen(args.output, name, args.questions)
        texts = list(answers(model, tokenizer, rows, stop_ids(args.model)))
        same.append(compare(name, records, rows, texts, args.output / "task"))
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
