"""`jaxpost doctor` plans the run on the rows that a mixture takes, as training does, and looks at all of them."""

import json

import pytest
from doctor_runs import BROKEN, chat, clean, run_doctor

from jaxpost.recipes import doctor as recipe
from jaxpost.recipes import sft_setup

MIXED = {"good.jsonl=0.5": [BROKEN, *clean(60)], "small.jsonl=0.5": [BROKEN, *clean(20, seed=1), BROKEN]}


@pytest.fixture
def planned(monkeypatch):
    """The rows of each plan that the doctor makes, by number, and the data that it was made of."""
    plans = []

    def batch_plan(config, examples):
        plans.append(([example.source for example in examples], config))
        return sft_setup.batch_plan(config, examples)

    monkeypatch.setattr(recipe, "batch_plan", batch_plan)
    return plans


def trained_rows(config):
    """The rows that `jaxpost sft` would train on."""
    return [example.source for example in sft_setup._encode(config, recipe.described(config), config.data).examples]


@pytest.mark.parametrize("seed", ["0", "3"])
def test_the_plan_is_made_of_the_rows_that_training_takes(tmp_path, capsys, planned, seed):
    """Of 60 rows and 20, half and half, 20 each; the numbers are of these, broken rows shift none of them.

    Mutation: jaxpost/data/checks/inspection.py: `source.rows(before + 1, keep_bad=True)` -> `source.rows(kept + 1, keep_bad=True)`
    Mutation: jaxpost/data/checks/inspection.py: `every if chosen is None else [every[index] for index in chosen.tolist()]` -> `every`
    Mutation: jaxpost/recipes/doctor.py: `skip_bad=skip, seed=config.seed)` -> `skip_bad=skip)`
    """  # noqa: E501
    flags = ("--skip-bad-rows", "--epochs", "2", "--packing", "off", "--seed", seed)
    status, found = run_doctor(tmp_path, {"data": MIXED}, *flags)
    assert (status, [finding["check"] for finding in found]) == (0, ["rows.skipped"])
    ((rows, config),) = planned
    assert rows == trained_rows(config)
    numbers = json.loads((tmp_path / "report.json").read_text())["numbers"]
    assert [numbers[name] for name in ("rows", "kept", "steps_per_epoch", "steps")] == [83, 40, 20, 40]
    assert "3 skipped as broken, 40 beyond their share of the mixture" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"good.jsonl=0.999": clean(60), "one.jsonl=0.001": [chat("who is it?", "I")]}, "none of item 2"),
        ({"good.jsonl=0.5": clean(60), "none.jsonl=0.5": []}, "got 0 rows, none of them left, in "),
    ],
    ids=["too small for its weight", "empty"],
)
def test_a_mixture_that_training_refuses_is_an_error(tmp_path, capsys, data, told):
    """Mutation: jaxpost/data/checks/inspection.py: `[finding("data.mixture", detail=str(error))] if looker.examples else []` -> `[]`"""  # noqa: E501
    status, found = run_doctor(tmp_path, {"data": data})
    assert (status, [finding["check"] for finding in found]) == (2, ["data.mixture"])
    assert found[0]["text"].startswith("the mixture of `--data` cannot be had: each weighted item of `data` must ")
    assert told in found[0]["text"] and "Rows as the model sees them" in capsys.readouterr().out


def test_rows_that_the_mixture_leaves_out_are_looked_at(tmp_path):
    """All sixty rows of the first item are trained rows for a leak, though one of them is in an epoch."""
    data = {"good.jsonl=0.5": clean(60), "small.jsonl=0.5": [chat("who is it?", "I")]}
    _, found = run_doctor(tmp_path, {"data": data, "held": clean(60)}, "--steps", "20")
    (leak,) = [finding for finding in found if finding["check"] == "eval.leak"]
    assert leak["count"] == 60
