"""Makes tests/golden/: what TRL + PEFT do on a tiny model, for tests that run without them. Never imports jaxpost.

    python scripts/make_goldens.py        # needs torch, transformers, PEFT, TRL; about a minute

trl_lora/: 50 steps of LoRA SFT (AdamW, constant rate, clipping at 1, two micro-batches) on seeded rows: the rows, the
initial adapter as PEFT saves it, loss and gradient norm of each step.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
STEPS, BATCH, MICRO, RATE = 50, 4, 2, 1e-2
MODEL_SEED = 11


def rows(count: int, seed: int) -> list[list[int]]:
    """Sequences of 9 to 40 ids with something to learn: each token tends to follow its neighbour in the alphabet."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        ids = [int(rng.integers(4, 200))]
        while len(ids) < rng.integers(9, 41):
            jump = int(rng.integers(4, 200))
            ids.append(4 + (ids[-1] - 3) % 196 if rng.random() < 0.8 else jump)
        made.append(ids)
    return made


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    data = rows(STEPS * BATCH, seed=5)
    with tempfile.TemporaryDirectory() as folder:
        base = tiny.make(Path(folder) / "base", "llama", seed=MODEL_SEED)
        logs = run_trl(base, data, GOLDEN / "trl_lora")
    golden = {
        "made_with": versions(),
        "model": {"family": "llama", "seed": MODEL_SEED},
        "learning_rate": RATE,
        "batch_size": BATCH,
        "micro_batch_size": MICRO,
        "loss": [log["loss"] for log in logs],
        "grad_norm": [log["grad_norm"] for log in logs],
        "rows": data,
    }
    (GOLDEN / "trl_lora" / "run.json").write_text(json.dumps(golden) + "\n")
    print(f"loss {golden['loss'][0]:.4f} -> {golden['loss'][-1]:.4f}")


def run_trl(base: Path, data: list[list[int]], golden: Path) -> list[dict[str, Any]]:
    """The logs of each step; the adapter at step 0 is saved into `golden`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.peft_config["default"].base_model_name_or_path = "tests/tiny.py"  # not the folder of this run
    model.save_pretrained(golden)
    (golden / "README.md").unlink(missing_ok=True)
    (golden / "adapter_model.safetensors").chmod(0o644)
    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            output_dir=out,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=BATCH // MICRO,
            max_steps=STEPS,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            max_length=64,
            packing=False,
            train_sampling_strategy="sequential",
        )
        tokenizer = AutoTokenizer.from_pretrained(base)
        dataset = Dataset.from_dict({"input_ids": data})
        trainer = SFTTrainer(model=model, args=settings, train_dataset=dataset, processing_class=tokenizer)
        trainer.train()
        return [log for log in trainer.state.log_history if "loss" in log]


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "trl")}


if __name__ == "__main__":
    main()
