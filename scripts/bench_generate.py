#!/usr/bin/env python3
"""Time greedy generation beside transformers', the two taking turns; one JSON line.

    python scripts/bench_generate.py --model ckpt/base30m --batch 1 16

Both live in processes of their own, are warmed up (compilation is not timed), then run one after the other, round by
round; the ratio of a batch size is the median of the rounds' ratios, as a host may change its speed between rounds.
Prompts are pieces of `corpus.jsonl` beside the model; float32; nothing stops before --new tokens. Both prefill and
decoding are timed, and with --ids the new ids are printed, which must be the same. Needs torch and transformers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[list[list[int]], int], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt-length", type=int, default=64, help="tokens of each prompt (default 64)")
    parser.add_argument("--new", type=int, default=128, help="tokens of each completion (default 128)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ids", action="store_true", help="also print the ids of each batch size")
    parser.add_argument("--serve", choices=MAKERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(MAKERS[args.serve](args.model))
    else:
        print(json.dumps(compare(args)))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of both, and their ratio, for each batch size."""
    workers = {name: start(args.model, name) for name in MAKERS}
    line: dict[str, Any] = {"model": args.model.name, "prompt": args.prompt_length, "new": args.new}
    try:
        for batch in args.batch:
            prompts = read_prompts(args.model, batch, args.prompt_length)
            for worker in workers.values():  # warms up
                ask(worker, prompts, args.new)
            rounds = [
                {name: ask(worker, prompts, args.new) for name, worker in workers.items()} for _ in range(args.rounds)
            ]
            line[f"batch {batch}"] = summary(rounds, batch * args.new, args.ids)
    finally:
        for worker in workers.values():
            worker.communicate()
    return line


def summary(rounds: list[dict[str, Any]], tokens: int, ids: bool) -> dict[str, Any]:
    """Median speeds and ratio of a batch size, and whether the new ids are the same."""
    speed = {name: [tokens / run[name]["seconds"] for run in rounds] for name in MAKERS}
    ratios = [ours / theirs for ours, theirs in zip(speed["jaxpost"], speed["transformers"], strict=True)]
    found = {name: round(statistics.median(values), 1) for name, values in speed.items()}
    made = rounds[0]["jaxpost"]["ids"]
    return {
        **found,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "same_ids": made == rounds[0]["transformers"]["ids"],
        **({"ids": made} if ids else {}),
    }


def start(model: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--model", str(model), "--serve", name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: subprocess.Popen, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """One run of a worker: seconds and new ids."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def serve(run: Run) -> None:
    """Answers each line of stdin with one timed run."""
    for line in sys.stdin:
        task = json.loads(line)
        began = time.perf_counter()
        ids = run(task["prompts"], task["new"])
        print(json.dumps({"seconds": time.perf_counter() - began, "ids": ids}), flush=True)


def make_jaxpost(folder: Path) -> Run:
    """Through the sampler that `jaxpost.generate` uses."""
    import jaxpost
    from jaxpost.sampling import Sampler
    from jaxpost.sampling.draw import row_keys

    model = jaxpost.load(folder, dtype="float32")
    sampler = Sampler(model.config)
    weights = sampler.prepare(model.params)

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        rows = list(range(len(prompts)))
        keys = row_keys(0, prompts, [0] * len(rows))
        return sampler.sample(weights, prompts, rows, keys, limits=new, temperature=0.0, stop_ids=()).tokens.tolist()

    return run


def make_transformers(folder: Path) -> Run:
    """`generate(do_sample=False)` with its default cache."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        options: Any = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "eos_token_id": None}
        with torch.no_grad():
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        return whole[:, ids.shape[1] :].tolist()

    return run


MAKERS: dict[str, Callable[[Path], Run]] = {"jaxpost": make_jaxpost, "transformers": make_transformers}


def read_prompts(model: Path, count: int, length: int) -> list[list[int]]:
    """`count` prompts of `length` ids, each the start of a text of the corpus that has so many."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    prompts: list[list[int]] = []
    with (model.resolve().parent / "corpus.jsonl").open(encoding="utf-8") as file:
        for line in file:
            ids = tokenizer.encode(json.loads(line)["text"]).ids
            if len(ids) >= length:
                prompts.append(ids[:length])
            if len(prompts) == count:
                return prompts
    raise SystemExit(
        f"bench_generate: error: the corpus has {len(prompts)} texts of {length} tokens; {count} are needed."
    )


if __name__ == "__main__":
    main()
