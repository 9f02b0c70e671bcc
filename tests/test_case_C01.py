"""Case C01 from the command line to the saved run.yaml and metrics.jsonl."""

import json
from pathlib import Path

import pytest
import tiny
import yaml

from jaxpost import cli

CASE = Path(__file__).parent / "cases" / "C01"


@pytest.mark.parametrize("spelling", ["underscores", "dashes"])
def test_C01_a_run_keeps_what_the_file_says(spelling, tmp_path):
    """A rate without a dot, zeros and switches that are off arrive in the run and in its record.

    Mutation: jaxpost/core/scalars.py: `return text.lower() in TRUE` -> `return bool(text)`
    """
    model = tiny.make(tmp_path / "model")
    out = tmp_path / "out"
    argv = ["sft", "--config", str(CASE / f"{spelling}.yaml"), "--data", str(CASE / "data.jsonl")]
    assert cli.main([*argv, "--model", str(model), "--output", str(out)]) == 0
    saved = yaml.safe_load((out / "run.yaml").read_text(encoding="utf-8"))
    wanted = {"learning_rate": 2e-5, "seed": 0, "steps": 1, "batch_size": 2, "max_length": 32}
    wanted |= {"double_quant": False, "full": False, "dtype": "float32", "quantize": "none"}
    assert {name: saved[name] for name in wanted} == wanted
    assert (saved["lora"]["dropout"], saved["lora"]["alpha"], saved["lora"]["rank"]) == (0, 8, 4)
    assert saved["lora"]["targets"] == ["q_proj", "v_proj"]
    (record,) = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert record["learning_rate"] == pytest.approx(2e-5)
