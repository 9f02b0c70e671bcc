"""What `jaxpost sft` trains on: files and data sets of the hub, mixtures, broken rows, a cache."""

import json
import re

import datasets
import pytest
from sft_runs import SMALL, run_command, write_rows

from jaxpost.core.config import load_config
from jaxpost.data import dataset
from jaxpost.recipes import sft_setup as recipe
from jaxpost.recipes.sft_config import SftConfig

EPOCH = ("--epochs", "1", "--batch-size", "2", "--max-length", "64", "--dtype", "float32", "--packing", "off")


@pytest.fixture
def other(tmp_path):
    """Thirty short rows."""
    return write_rows(tmp_path / "other.jsonl", [{"text": f"other {n}"} for n in range(30)])


@pytest.fixture
def sft_of(tmp_path, models):
    """`sft_of(*flags)`: a run on the small model, into a new folder."""

    def run(*flags, base=EPOCH):
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        return run_command(out, ("sft", "--model", str(models()), *base, *flags))

    return run


def kept(run):
    return tuple(int(number) for number in re.match(r"(\d+) rows: (\d+) kept", run.stderr).groups())


def test_D12_weights_on_the_command_line_and_in_yaml_make_a_mixture(rows, other, sft_of, tmp_path):
    """Ten rows and thirty: half and half is ten of each; without weights all forty. Both spellings are one run, which
    run.yaml repeats.

    Mutation: jaxpost/recipes/sft_setup.py: `prepare_data(model.tokenizer, data, options, seed=config.seed)` -> `prepare_data(model.tokenizer, [d.partition("=")[0] for d in data], options, seed=config.seed)`
    """  # noqa: E501
    whole = sft_of("--data", str(rows), "--data", str(other))
    mixed = sft_of("--data", f"{rows}=0.5", "--data", f"{other}=0.5")
    assert (whole.status, kept(whole), mixed.status, kept(mixed)) == (0, (40, 40), 0, (40, 20)), mixed.stderr
    assert (len(whole.records), len(mixed.records)) == (20, 10)
    assert "20 beyond their share of the mixture" in mixed.stderr.splitlines()[0]
    (tmp_path / "run.yaml").write_text(f"data:\n  - {rows}=0.5\n  - {other}=0.5\n")
    written = sft_of("--config", str(tmp_path / "run.yaml"))
    assert written.digest() == mixed.digest() != whole.digest()
    assert load_config(SftConfig, [], mixed.out / "run.yaml").data == (f"{rows}=0.5", f"{other}=0.5")


def test_D12_the_seed_draws_the_part_of_a_mixture(rows, other, sft_of, monkeypatch):
    """Mutation: jaxpost/recipes/sft_setup.py: `prepare_data(model.tokenizer, data, options, seed=config.seed)` -> `prepare_data(model.tokenizer, data, options)`"""  # noqa: E501
    taken = []

    def spy(*arguments, **options):
        encoded = recipe_prepare(*arguments, **options)
        taken.append([example.source for example in encoded.examples])
        return encoded

    recipe_prepare = recipe.prepare_data
    monkeypatch.setattr(recipe, "prepare_data", spy)
    for seed in ("0", "1"):
        data = ("--data", f"{rows}=0.5", "--data", f"{other}=0.5")
        assert sft_of(*data, "--seed", seed, base=(*SMALL, "--steps", "1")).status == 0
    assert taken[0] != taken[1] and len(taken[0]) == len(taken[1])


def test_skip_bad_rows_counts_names_and_goes_on(rows, sft_of, tmp_path):
    """Without the flag: one line with file and line, exit 2, no folder. With it: the run of the good rows.

    Mutation: jaxpost/recipes/sft_setup.py: `skip_bad_rows=config.skip_bad_rows,` -> ``
    """
    lines = rows.read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([*lines[:3], '{"text": ', *lines[3:], '{"texts": "a"}']) + "\n")
    refused = sft_of("--data", str(broken))
    assert refused.status == 2 and not refused.out.exists()
    assert f"{broken} line 4" in refused.stderr and refused.stderr.count("\n") == 1
    skipped = sft_of("--data", str(broken), "--skip-bad-rows")
    assert skipped.status == 0 and kept(skipped) == (12, 10)
    assert "2 skipped as broken" in skipped.stderr
    assert skipped.digest() == sft_of("--data", str(rows)).digest()
    broken.write_text('{"text": \n')
    refused = sft_of("--data", str(broken), "--skip-bad-rows")
    assert refused.status == 2 and "1 skipped as broken" in refused.stderr and refused.stderr.count("\n") == 1


def test_a_data_set_of_the_hub_trains_as_the_file_does(rows, sft_of, monkeypatch):
    """Split and revision reach `datasets`; one that is not there is one line, and no folder."""
    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        return datasets.Dataset.from_list([{**dict.fromkeys(names), **row} for row in held])

    held = [json.loads(line) for line in rows.read_text().splitlines()]
    names = {name for row in held for name in row}
    load, _ = datasets.load_dataset, monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    run = sft_of("--data", "org/name/main@v1:test")
    assert run.status == 0 and asked == [("org/name", "main", {"split": "test", "revision": "v1"})]
    assert run.digest() == sft_of("--data", str(rows)).digest()
    monkeypatch.setattr(datasets, "load_dataset", load)
    refused = sft_of("--data", "org/of-no-cache")
    assert refused.status == 2 and not refused.out.exists()
    assert "org/of-no-cache" in refused.stderr and refused.stderr.count("\n") == 1


def test_a_second_run_reads_the_copy_of_the_first(rows, sft_of, tokenised, monkeypatch):
    """The same counts, the same adapter, no tokenising.

    Mutation: jaxpost/data/cache.py: `    found = None if key is None else _read(folder, key)` -> `    found = None`
    """

    first = sft_of("--data", str(rows))
    assert list(tokenised.glob("data/*.arrow"))
    monkeypatch.setattr(dataset, "encode_stream", None)
    second = sft_of("--data", str(rows))
    assert second.status == 0 and second.digest() == first.digest()
    assert second.stderr.splitlines()[0] == first.stderr.splitlines()[0]
