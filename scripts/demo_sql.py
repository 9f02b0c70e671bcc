"""The main job on a real model: SmolLM2-135M-Instruct learns text-to-SQL with LoRA, and is measured on unseen schemas.

    python scripts/demo_sql.py --output demo            # 28 steps of 4 x 256 packed tokens: minutes on two cores
    python scripts/demo_sql.py --output demo --task-seed 7 --seed 1

Rows come from make_sql_rows.py; the held-out ones use tables that no training row has. A held-out row counts as exact
when, with the answer's earlier tokens given, each of its tokens and the end of turn is the model's first choice. The
interval is a 95 % bootstrap over schemas, since rows of one schema are not independent. Every seed is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxpost
from jaxpost.data.batches import BatchPlan
from jaxpost.data.encode import encode_rows
from jaxpost.data.sources import read_rows
from jaxpost.objectives import adapter_policy, make_score
from jaxpost.recipes.sft import run
from jaxpost.recipes.sft_config import SftConfig

HERE = Path(__file__).resolve().parent
MAX_LENGTH = 256


def exact_rows(model: Any, adapters: Any, file: Path, micro: int = 8) -> np.ndarray:
    """One bool for each row of `file`, in its order: is every trained token the argmax?"""
    encoded = encode_rows(
        model.tokenizer,
        read_rows(file),
        max_length=MAX_LENGTH,
        overlong="error",
        vocab_size=model.config.vocab_size,
        stop_ids=model.stop_ids,
    )
    plan = BatchPlan(
        examples=encoded.examples,
        batch_size=micro,
        micro_batch_size=micro,
        max_length=MAX_LENGTH,
        packing=False,
        seed=0,
    )
    score = make_score(model.config, adapter_policy)
    frozen = {"params": model.params, "spec": adapters.spec}
    exact = np.zeros(len(encoded.examples), bool)
    for step in range(plan.steps_per_epoch):
        rows, _, info = plan.batch(step)
        rows = {name: leaf[0] for name, leaf in rows.items()}
        correct = np.asarray(score(adapters.factors, frozen, rows)["correct"])
        right = np.all((correct > 0) | (rows["loss_mask"] == 0), axis=1)
        for row, (source,) in enumerate(info.sources):
            exact[source - 1] = right[row]
    return exact


def interval(exact: np.ndarray, schemas: list[str], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, whole schemas drawn."""
    groups = defaultdict(list)
    for schema, value in zip(schemas, exact, strict=True):
        groups[schema].append(bool(value))
    sums = np.array([(sum(g), len(g)) for g in groups.values()])
    rng = np.random.default_rng(0)
    picks = sums[rng.integers(0, len(sums), (draws, len(sums)))].sum(1)
    low, high = np.quantile(picks[:, 0] / picks[:, 1], [0.025, 0.975])
    return float(low), float(high)


def table_line(name: str, exact: np.ndarray, schemas: list[str]) -> str:
    low, high = interval(exact, schemas)
    return f"{name:<22} {100 * exact.mean():5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]  n = {len(exact)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--task-seed", type=int, default=0, help="of tables and questions")
    parser.add_argument("--seed", type=int, default=0, help="of adapter and order")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--heldout", type=int, default=400)
    args = parser.parse_args()
    # transformers would say that it found no PyTorch; it is not needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    print(f"task seed {args.task_seed}, run seed {args.seed}", flush=True)
    folder = subprocess.run([HERE / "demo_model"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    rows = args.output / "rows"
    make = [sys.executable, HERE / "make_sql_rows.py", "--seed", str(args.task_seed), "--heldout", str(args.heldout)]
    subprocess.run([*make, "--output", rows], check=True, stdout=subprocess.DEVNULL)
    heldout = [json.loads(line) for line in (rows / "heldout.jsonl").read_text().splitlines()]
    schemas = [row["schema"] for row in heldout]
    trained = {json.loads(line)["schema"] for line in (rows / "train.jsonl").read_text().splitlines()}
    assert not trained & set(schemas), "a held-out schema is in training"

    model = jaxpost.load(folder, dtype="float32")
    fresh = jaxpost.adapters.init(jax.random.key(args.seed), model)  # B = 0: the base
    before = exact_rows(model, fresh, rows / "heldout.jsonl")
    print(table_line("base", before, schemas), flush=True)
    started = time.perf_counter()
    config = SftConfig(
        model=folder,
        data=(rows / "train.jsonl",),
        output=args.output / "adapter",
        steps=args.steps,
        batch_size=4,
        max_length=MAX_LENGTH,
        learning_rate=1e-3,
        schedule="constant",
        seed=args.seed,
    )
    run(config)
    seconds = time.perf_counter() - started
    tuned = exact_rows(model, jaxpost.load_adapter(config.output, model), rows / "heldout.jsonl")
    print(table_line(f"LoRA r=16, {args.steps} steps", tuned, schemas))
    kinds = sorted({row["kind"] for row in heldout})
    for kind in kinds:
        at = np.array([row["kind"] == kind for row in heldout])
        print(f"  {kind:<20} {100 * before[at].mean():5.1f} % -> {100 * tuned[at].mean():5.1f} %  n = {at.sum()}")
    print(f"training took {seconds:.0f} s with loading and compilation; {len(set(schemas))} unseen schemas")


if __name__ == "__main__":
    main()
