"""R-8: every option of `jaxpost sft` is alive. Each changes a number, a program, a file, or is refused."""

import json
import typing
from typing import Literal

import numpy as np
import pytest
import tiny
from sft_runs import SMALL, write_clock, write_rows

from jaxpost.core.options import options, union_members
from jaxpost.recipes.sft_config import SftConfig

KNOWN = {option.name: option for option in options(SftConfig)}
FULL = ("--full", "--steps", "4", "--batch-size", "2", "--max-length", "64", "--dtype", "float32")
EVALUATED = ("--eval-data", "{rows}", "--eval-steps", "1", *SMALL)
# What it is evaluated on is far from what it trains on: the first step is the best.
OVERSHOOT = ("--eval-data", "{contrary}", "--eval-steps", "1", "--learning-rate", "3e-2", *SMALL)
DATED = ("--chat-template", "{clock}", *SMALL)
EPOCH = ("--epochs", "1", "--batch-size", "2", "--max-length", "64", "--dtype", "float32")


def losses(run):
    return run.column("loss")


def norms(run):
    return run.column("grad_norm")


def rates(run):
    return run.column("learning_rate")


def steps(run):
    return run.column("step")


def buckets(run):
    return run.buckets


def tensors(run):
    return run.digest()


def shapes(run):
    return {name: weight.shape for name, weight in run.weights.items()}


def temporaries(run):
    return run.temp_bytes


def arguments(run):
    return [program.memory.argument_bytes for program in run.compiled.values()]


def counts(run):
    return run.stderr.splitlines()[0]


def logs(run):
    return sorted(path.name.split(".")[0] for path in run.out.glob("runs/*"))


def files(run):
    return sorted(path.name for path in run.out.iterdir() if path.is_file())


def checkpoints(run):
    return sorted(path.name for path in run.out.glob("checkpoints/*"))


def evaluations(run):
    return [record["step"] for record in run.records if "eval_loss" in record]


def ends(run):
    """Step of the last record, and the one whose weights were written."""
    results = json.loads((run.out / "train_results.json").read_text())
    return results["step"], results["written_step"]


def trained(run):
    return run.column("trained_tokens")


# option, its other value, what must change, flags of both runs where they are not the usual ones
ALIVE = [
    ("model", "{other_model}", losses),
    ("data", "{other_rows}", counts),
    ("adapter", "{adapter}", losses),
    ("chat_template", "chatml", files),
    ("date", "2025-01-31", losses, DATED),
    ("full", "", shapes),
    ("lora.rank", "5", shapes),
    ("lora.alpha", "8", norms),
    ("lora.dropout", "0.5", norms),
    ("lora.targets", "q_proj,down_proj", shapes),
    ("loss", "dft", losses),
    ("loss", "eaft", losses),
    ("steps", "3", steps),
    ("epochs", "1.5", steps, EPOCH),
    ("batch_size", "3", buckets),
    ("micro_batch_size", "1", buckets),
    ("max_length", "48", buckets),
    ("packing", "off", trained),
    ("overlong", "drop", trained),
    ("overlong", "drop", counts),
    ("learning_rate", "1e-2", rates),
    ("learning_rate", "1e-2", tensors),
    ("schedule", "cosine", rates),
    ("schedule", "cosine", tensors),
    ("schedule", "constant", rates),
    ("schedule", "constant", tensors),
    ("warmup_ratio", "0.75", rates),
    ("warmup_ratio", "0.75", tensors),
    ("weight_decay", "0.5", tensors),
    ("max_grad_norm", "0.1", tensors),
    ("neftune_alpha", "5", losses),
    ("neftune_alpha", "5", tensors),
    ("report_to", "none", logs),
    ("save_steps", "2", checkpoints),
    ("save_steps", "none", checkpoints),
    ("save_total_limit", "1", checkpoints, ("--save-steps", "1", *SMALL)),
    ("eval_data", "{rows}", evaluations),
    ("eval_steps", "3", evaluations, EVALUATED),
    ("early_stopping_patience", "1", ends, OVERSHOOT),
    ("early_stopping_threshold", "9", ends, ("--early-stopping-patience", "1", *EVALUATED)),
    ("keep", "best", ends, OVERSHOOT),
    ("keep", "best", tensors, OVERSHOOT),
    ("dtype", "bfloat16", losses),
    ("dtype", "bfloat16", arguments),
    *(("remat", value, temporaries) for value in ("none", "full", "attention", "qkv")),
    ("mesh", "data=2,tensor=4", arguments),
    ("seed", "1", tensors),
    ("seed", "1", losses, FULL),  # no adapter is drawn: only the order of the rows is
]
# option, a value that is refused
REFUSED = [
    ("chat_template", "no.jinja"),
    ("date", "31.1.2025"),
    ("overlong", "error"),
    ("quantize", "nf4"),
    ("double_quant", ""),
    ("lora.variant", "dora"),
    ("report_to", "none,tensorboard"),
    ("report_to", "tensorbord"),
    ("keep", "best"),
    ("eval_steps", "2"),
]
# These have tests of their own, in test_sft_output.py, test_sft_refusals.py, test_sft_data.py and test_resume.py.
ELSEWHERE = {"output", "max_skipped_steps", "skip_bad_rows", "resume"}


@pytest.fixture(scope="module")
def places(models, rows, tmp_path_factory):
    """What stands for the names in braces."""
    folder = tmp_path_factory.mktemp("places")
    other_rows = folder / "rows.jsonl"
    other_rows.write_text("".join(rows.read_text().splitlines(keepends=True)[2:]))
    adapter = tiny.make_adapter(folder / "adapter", models(), rank=16, alpha=32, targets=("q_proj",))
    contrary = write_rows(
        folder / "contrary.jsonl", [{"prompt": f"q{i} ", "completion": "}{|~^" * 3} for i in range(3)]
    )
    found = {"other_model": models(seed=1), "other_rows": other_rows, "adapter": adapter}
    clock = write_clock(folder / "clock.jinja")
    return {**found, "rows": rows, "contrary": contrary, "clock": clock}


@pytest.mark.parametrize(("name", "value", "observe", "base"), [(*each, ())[:4] for each in ALIVE])
def test_R8_an_option_changes_what_it_should(name, value, observe, base, sft, places):
    """A run with the option at another value differs from the run without, in what the option is for.

    Mutation: jaxpost/recipes/sft_setup.py: `overlong=config.overlong` -> `overlong="truncate"`
    Mutation: jaxpost/recipes/sft_setup.py: `weight_decay=config.weight_decay` -> `weight_decay=0.0`
    Mutation: jaxpost/recipes/sft_setup.py: `remat=config.remat, neftune` -> `remat="mlp", neftune`
    Mutation: jaxpost/recipes/sft_setup.py: `seed=config.seed,` -> `seed=0,`
    """
    common = {"base": tuple(part.format(**places) for part in base)} if base else {}
    flags = (KNOWN[name].flag, *filter(None, [value.format(**places)]))
    before, after = sft(**common), sft(*flags, **common)
    assert (before.status, after.status) == (0, 0), after.stderr
    assert observe(before) != observe(after)


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_R8_a_value_that_cannot_be_honoured_is_refused(name, value, sft):
    """Mutation: jaxpost/recipes/sft_config.py: `if config.double_quant:` -> `if False:`
    Mutation: jaxpost/recipes/reporting.py: `if "none" in names and len(names) > 1:` -> `if False:`
    """
    run = sft(KNOWN[name].flag, *filter(None, [value]))
    assert run.status == 2 and not run.out.exists()
    assert f"`{KNOWN[name].flag}`" in run.stderr or f"set {name} to" in run.stderr, run.stderr
    assert run.stderr.startswith("jaxpost: error: ") and run.stderr.count("\n") == 1


def test_no_option_and_no_choice_is_missing():
    tried = {name for name, *_ in [*ALIVE, *REFUSED]}
    assert tried | ELSEWHERE == set(KNOWN)
    values = {(name, value) for name, value, *_ in [*ALIVE, *REFUSED]}
    for option in KNOWN.values():
        for member in union_members(option.annotation):
            if typing.get_origin(member) is Literal:
                others = set(typing.get_args(member)) - {option.default, "auto"} - {"float32", "mlp"}  # the usual run
                assert {(option.name, choice) for choice in others} <= values, option.name


def test_the_usual_run_is_what_auto_means(sft):
    """On a CPU `--dtype auto` is float32, and `--remat auto` keeps what the adapter's backward pass wants."""
    named, auto = sft("--remat", "mlp"), sft("--dtype", "auto")
    assert named.digest() == sft().digest() == auto.digest()
    assert named.temp_bytes == sft().temp_bytes == auto.temp_bytes


def test_remat_changes_memory_and_no_result(sft):
    runs = {value: sft("--remat", value) for value in ("none", "full", "attention", "qkv", "mlp")}
    assert len({run.temp_bytes for run in runs.values()}) == len(runs)
    assert max(runs, key=lambda value: runs[value].temp_bytes) == "none"
    for run in runs.values():
        np.testing.assert_allclose(losses(run), losses(runs["none"]), rtol=1e-5)


def test_a_run_on_a_mesh_gives_the_same_losses_and_adapter(sft):
    """Mutation: jaxpost/recipes/sft_setup.py: `"totals": dict.fromkeys(batch["totals"], replicated(mesh)),` -> `"totals": {},`"""  # noqa: E501
    one, many = sft(), sft("--mesh", "data=2,tensor=4")
    np.testing.assert_allclose(losses(many), losses(one), rtol=1e-5)
    np.testing.assert_allclose(norms(many), norms(one), rtol=1e-4)
    for name, weight in one.weights.items():
        np.testing.assert_allclose(many.weights[name], weight, atol=2e-5, err_msg=name)


def test_S1_the_micro_batch_changes_the_bucket_and_no_loss(sft):
    """Mutation: jaxpost/recipes/sft_setup.py: `    return divisors if asked is None else [asked]` -> `    return divisors`"""  # noqa: E501
    whole, parts = sft(), sft("--micro-batch-size", "1")
    assert whole.buckets == [(1, 2, 64)] and parts.buckets == [(2, 1, 64)]
    assert "bucket 1 x 2 x 64: " in whole.stderr and "bucket 2 x 1 x 64: " in parts.stderr
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "selected"),
    [
        ("q_proj,down_proj", ["mlp.down_proj", "self_attn.q_proj"]),
        ("re:model\\.layers\\.1\\.mlp\\.(up|gate)_proj", ["mlp.gate_proj", "mlp.up_proj"]),
        ("mlp.up_proj", ["mlp.up_proj"]),
    ],
)
def test_targets_select_modules(value, selected, sft):
    run = sft("--lora.targets", value)
    layers = (1,) if value.startswith("re:") else (0, 1)
    expected = {
        f"base_model.model.model.layers.{i}.{m}.lora_{f}.weight" for i in layers for m in selected for f in "AB"
    }
    assert set(run.weights) == expected
    factors = sum(weight.size for weight in run.weights.values())
    assert f"trainable params: {factors:,} || all params: " in run.stderr


def test_targets_may_be_a_list_in_yaml(sft, tmp_path):
    for text in ("[q_proj, down_proj]", "\n    - q_proj\n    - down_proj", "q_proj,down_proj"):
        (tmp_path / "run.yaml").write_text(f"lora:\n  targets: {text}\n")
        run = sft("--config", str(tmp_path / "run.yaml"), "--max-skipped-steps", str(3 + len(text)))
        assert run.digest() == sft("--lora.targets", "q_proj,down_proj").digest()
    repeated = sft("--lora.targets", "q_proj", "--lora.targets", "down_proj")
    assert repeated.digest() == sft("--lora.targets", "q_proj,down_proj").digest()


def test_the_rank_and_scaling_are_written(sft):
    for flag, key, value, expected in (("rank", "r", "5", 5), ("alpha", "lora_alpha", "8", 8)):
        settings = json.loads((sft(f"--lora.{flag}", value).out / "adapter_config.json").read_text())
        assert settings[key] == expected
    settings = json.loads((sft("--lora.dropout", "0.5").out / "adapter_config.json").read_text())
    assert settings["lora_dropout"] == 0.5


def test_the_dropout_of_an_adapter_is_kept_unless_given(sft, places, models, tmp_path):
    """Mutation: jaxpost/recipes/sft_setup.py: `kept = loaded.spec.dropout if config.lora.dropout is None else config.lora.dropout` -> `kept = config.lora.dropout or 0.0`"""  # noqa: E501
    adapter = tiny.make_adapter(tmp_path / "adapter", models(), rank=4, alpha=8, lora_dropout=0.5)
    kept, same, none = (
        sft("--adapter", str(adapter), *more) for more in [(), ("--lora.dropout", "0.5"), ("--lora.dropout", "0")]
    )
    assert kept.column("loss") == same.column("loss") != none.column("loss")
    written = [json.loads((run.out / "adapter_config.json").read_text())["lora_dropout"] for run in (kept, none)]
    assert written == [0.5, 0.0]


def test_full_training_says_that_lora_options_are_not_used(sft):
    """Mutation: jaxpost/recipes/sft.py: `if config.full and config.lora != LoraConfig():` -> `if False:`"""
    plain, given = sft("--full"), sft("--full", "--lora.rank", "4")
    assert "lora options are not used" in given.stderr and "lora options" not in plain.stderr
    assert given.digest() == plain.digest()
