"""What a run of `jaxpost sft` leaves: the case files' losses, an adapter, metrics, and a run.yaml that repeats it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny

import jaxpost
from jaxpost.adapters import Adapters
from jaxpost.cli import main
from jaxpost.core.config import load_config
from jaxpost.recipes import sft as recipe
from jaxpost.recipes.sft_config import SftConfig

CASES = Path(__file__).resolve().parents[1] / "cases"


def test_R7_run_yaml_repeats_the_run_bit_for_bit(tmp_path, sft):
    """The effective configuration, its defaults filled in. (A typo is refused: test_sft_refusals.py.)

    Mutation: jaxpost/recipes/sft.py: `dump_config(dataclasses.replace(setup.config, resume=False))` -> `dump_config(config)`
    """  # noqa: E501
    run = sft("--lora.dropout", "0.1", "--warmup-ratio", "0.5")
    saved = load_config(SftConfig, [], run.out / "run.yaml")
    assert (saved.steps, saved.lora.dropout, saved.warmup_ratio, saved.learning_rate) == (4, 0.1, 0.5, 2e-4)
    assert main(["sft", "--config", str(run.out / "run.yaml"), "--output", str(tmp_path / "again")]) == 0
    again, first = ((folder / "adapter_model.safetensors").read_bytes() for folder in (tmp_path / "again", run.out))
    assert again == first


def test_metrics_have_the_fields_names_and_tell_each_step(sft):
    records = sft().records
    names = {"step", "loss", "grad_norm", "learning_rate", "num_tokens", "trained_tokens", "epoch", "tokens_per_s"}
    assert all(names | {"mean_token_accuracy", "entropy", "skipped"} == record.keys() for record in records)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    seen = [record["num_tokens"] for record in records]
    assert seen == sorted(set(seen)), "tokens are counted over the run"
    assert all(0 < record["entropy"] < np.log(400) and 0 <= record["mean_token_accuracy"] <= 1 for record in records)


def test_memory_and_parameters_are_said_before_the_first_step(sft, models):
    lines = sft().stderr.splitlines()
    first_step = next(i for i, line in enumerate(lines) if "step 1/" in line)
    said = "\n".join(lines[:first_step])
    model = jaxpost.load(models())
    rank, shapes = 16, model.config.linear_shapes().values()
    trainable = model.config.num_layers * sum(rank * (a + b) for a, b in shapes)
    assert f"trainable params: {trainable:,} || all params: " in said
    assert "bucket 1 x 2 x 64: " in said and "MiB a device" in said


def test_R1_one_program_for_each_bucket(sft):
    """Without packing batches have several lengths: as many programs as buckets, compiled before step 0, none later.

    Mutation: jaxpost/data/batches.py: `max(BUCKET, 1 << (length - 1).bit_length())` -> `length`
    """
    run = sft("--packing", "off", "--max-length", "256")
    assert len(run.buckets) == len({length for _, _, length in run.buckets}) >= 2
    assert all(length in (64, 128, 256) for _, _, length in run.buckets)


def test_the_adapter_loads_again_and_changes_the_model(sft, models):
    model = jaxpost.load(models())
    adapters = jaxpost.load_adapter(sft().out, model)
    assert all(np.abs(np.asarray(f["lora_B"])).max() > 0 for f in adapters.factors.values())


LOSSES = {"D02": (3, 6.071908003844145, 23), "D14": (5, 6.287429679410775, 30)}


@pytest.mark.parametrize("case", LOSSES)
def test_first_loss_of_the_cases(tmp_path, case):
    """BOM, CRLF and blank lines (D02); `tools` that are no tools (D14). Losses of a float64 model."""
    batch, loss, trained = LOSSES[case]
    argv = ["--model", str(CASES / case / "model"), "--data", str(CASES / case / "data.jsonl")]
    argv += ["--steps", "1", "--batch-size", str(batch), "--dtype", "float32", "--lora.rank", "4"]
    assert main(["sft", *argv, "--output", str(tmp_path / "out")]) == 0
    (record,) = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert abs(record["loss"] - loss) < 2e-4
    assert record["trained_tokens"] == trained


def test_D19_fewer_rows_than_the_batch_train(tmp_path, models):
    """Three rows and a batch of eight: a part batch, a step, an adapter that changed.

    Mutation: jaxpost/data/batches.py: `return -(-len(self.rows) // self.batch_size)` -> `return len(self.rows) // self.batch_size`
    """  # noqa: E501
    argv = ["--model", str(models()), "--data", str(CASES / "D11" / "data.jsonl"), "--epochs", "1"]
    assert main(["sft", *argv, "--batch-size", "8", "--output", str(tmp_path / "out")]) == 0
    adapters = jaxpost.load_adapter(tmp_path / "out", jaxpost.load(models()))
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 1
    assert all(np.abs(np.asarray(f["lora_B"])).max() > 0 for f in adapters.factors.values())


def test_R5b_stop_ids_of_the_three_files_are_kept(tmp_path):
    """config.json keeps its one, generation_config.json its two: case H28, trained with --full.

    Mutation: jaxpost/hub/save.py: `"generation_config.json",` -> ``
    """
    folder = tiny.make(tmp_path / "model", num_hidden_layers=1)
    data = CASES / "H28" / "data.jsonl"
    argv = ["--model", str(folder), "--data", str(data), "--steps", "1", "--batch-size", "2", "--full"]
    assert main(["sft", *argv, "--output", str(tmp_path / "out")]) == 0
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    before, after = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "out"))
    assert before == after


@pytest.mark.parametrize("wrong", ["factor", "scale"])
def test_an_adapter_that_reads_back_otherwise_is_not_kept(tmp_path, capsys, monkeypatch, models, rows, wrong):
    """Mutation: jaxpost/recipes/sft.py: `_check_adapter(adapters, load_adapter(aside, model))` -> `pass`
    Mutation: jaxpost/recipes/sft.py: `return jax.device_get((live, spec.scale))` -> `return jax.device_get(live)`
    """
    load = recipe.load_adapter

    def other(folder, model):
        found = load(folder, model)
        path = next(iter(found.factors))
        if wrong == "factor":
            factor = found.factors[path]["lora_B"]
            changed = {**found.factors[path], "lora_B": factor.at[(0,) * factor.ndim].add(1e-6)}
            return Adapters({**found.factors, path: changed}, found.spec)
        scale = {**found.spec.scale, path: found.spec.scale[path] * 1.001}
        return Adapters(found.factors, dataclasses.replace(found.spec, scale=scale))

    monkeypatch.setattr(recipe, "load_adapter", other)
    argv = ["--model", str(models()), "--data", str(rows), "--steps", "1", "--batch-size", "2", "--max-length", "64"]
    assert main(["sft", *argv, "--output", str(tmp_path / "out")]) == 1
    assert "not the one that was trained" in capsys.readouterr().err
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_axes_that_do_not_divide_are_said(sft):
    """Two key heads over four devices: k and v stay whole.

    Mutation: jaxpost/recipes/sft_setup.py: `uncut = [] if mesh is None else` -> `uncut = [] if True else`
    """
    run = sft("--mesh", "data=2,tensor=4")
    line = next(line for line in run.stderr.splitlines() if line.startswith("not cut along the mesh"))
    assert "k_proj/weight: tensor" in line and "v_proj/weight: tensor" in line
