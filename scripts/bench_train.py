#!/usr/bin/env python3
"""Time supervised fine-tuning, full or LoRA, through jaxpost's own path; one JSON line.

    python scripts/bench_train.py --model ckpt/base30m --mode lora --batch 4 --seq 512

The blocks come from `corpus.jsonl` beside the model in a fixed order, so that another framework can be given the same
batches and its losses compared: float32, AdamW without decay or clipping, constant rate, alpha = 2 x rank, loss = mean
over all shifted tokens. Time and memory are of one configuration, the default of `jaxpost sft`. The first step includes
compilation.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

import jaxpost
from jaxpost.objectives import adapter_policy, full_policy, sft
from jaxpost.recipes.sft_config import SftConfig, resolve
from jaxpost.train import adamw
from jaxpost.train.programs import Program

TEXTS = 3000  # of the corpus
SEPARATOR = 2  # id after each text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--mode", choices=("full", "lora"), required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4, help="timed steps (default 4)")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them, the first compiles (default 1)")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the adapter's A; B is 0")
    args = parser.parse_args()
    blocks = read_blocks(args.model, args.batch * (args.warmup + args.steps), args.seq)
    print(json.dumps(run(args, blocks)))


def run(args: argparse.Namespace, blocks: np.ndarray) -> dict[str, Any]:
    """Trains over the blocks and reports the timed steps."""
    options = resolve(SftConfig(model=str(args.model), data=(), output=Path(), full=args.mode == "full"))
    model = jaxpost.load(args.model, dtype="float32")
    config = model.config
    trainable, frozen, policy = model.params, {}, full_policy
    if args.mode == "lora":
        adapters = jaxpost.adapters.init(jax.random.key(args.seed), model, rank=args.rank, alpha=2 * args.rank)
        trainable, frozen = adapters.factors, {"params": model.params, "spec": adapters.spec}
        policy = adapter_policy
    optimizer = adamw(args.lr)
    sizes = {"params": count(frozen.get("params", {})) + count(trainable), "trainable": count(trainable)}
    step = jaxpost.make_step(sft(config, policy, remat=options.remat), optimizer, max_grad_norm=None)
    state = jaxpost.init_state(trainable, optimizer, args.seed)
    del trainable, model  # the step takes the state's memory for the next one
    losses, seconds, compiled = [], [], None
    for batch in batches(blocks, args.batch):
        start = time.perf_counter()
        compiled = compiled or Program(function=step, arguments=(state, frozen, batch)).compile()
        state, metrics = compiled.call(state, frozen, batch)
        losses.append(float(metrics["loss"]))  # waits for the step
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    return {"framework": "jaxpost", "mode": args.mode, "batch": args.batch, "seq": args.seq} | {
        "rank": args.rank if args.mode == "lora" else None,
        "remat": options.remat,
        **sizes,
        **timing(seconds, args.warmup, args.batch * args.seq),
        "losses": [round(loss, 5) for loss in losses],
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def timing(seconds: list[float], warmup: int, tokens: int) -> dict[str, Any]:
    """Mean and best of the steps after the warm-up, and tokens a second of both."""
    timed = seconds[warmup:]
    mean, best = sum(timed) / len(timed), min(timed)
    return {
        "tokens_per_s": round(tokens / mean, 2),
        "tokens_per_s_best": round(tokens / best, 2),
        "step_s": round(mean, 4),
        "best_step_s": round(best, 4),
        "first_step_s": round(seconds[0], 3),
        "steps_s": [round(s, 3) for s in seconds],
    }


def batches(blocks: np.ndarray, batch: int) -> Iterator[dict[str, Any]]:
    """One document a row, every token but the first a target."""
    for start in range(0, len(blocks), batch):
        tokens = blocks[None, start : start + batch]
        mask = np.ones(tokens.shape, np.float32)
        mask[..., 0] = 0
        positions = np.broadcast_to(np.arange(tokens.shape[-1], dtype=np.int32), tokens.shape)
        rows = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions, "loss_mask": mask}
        yield {"rows": rows, "totals": {"tokens": mask.sum()}}


def read_blocks(model: Path, count: int, length: int) -> np.ndarray:
    """[count, length] token ids: the corpus' first texts, each followed by the separator, cut in order."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    with (model.resolve().parent / "corpus.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file][:TEXTS]
    ids = np.array([i for encoding in tokenizer.encode_batch(texts) for i in (*encoding.ids, SEPARATOR)], np.int32)
    if len(ids) < count * length:
        raise SystemExit(f"bench_train: error: the corpus has {len(ids)} tokens; {count * length} are needed.")
    return ids[: count * length].reshape(count, length)


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
