"""`--data` to examples: items put together, mixtures, and an order that no worker or device changes."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import toy_tokenizer as toys
from refusals import refused

from jaxpost.data import encode, store
from jaxpost.data.batches import BatchPlan
from jaxpost.data.dataset import prepare_data
from jaxpost.data.encode import EncodeOptions, encode_rows
from jaxpost.data.examples import lengths_of
from jaxpost.data.sources import read_rows

OPTIONS = EncodeOptions(max_length=96, overlong="truncate", vocab_size=10_000)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / "cache"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def new_rows(number):
    return [{"messages": toys.messages(f"question {n}", "new " * (1 + n % 7))} for n in range(number)]


def replay_rows(number):
    return [{"text": f"old {n} " * (1 + n % 5)} for n in range(number)]


@pytest.fixture
def files(tmp_path):
    """Ten rows of chats and forty of plain text."""
    return write(tmp_path / "new.jsonl", new_rows(10)), write(tmp_path / "old.jsonl", replay_rows(40))


def prepare(data, **changes):
    seed = changes.pop("seed", 0)
    return prepare_data(toys.toy(toys.CHATML), data, dataclasses.replace(OPTIONS, **changes), seed=seed)


def contents(examples):
    return [(e.ids.tolist(), e.trained.tolist(), e.source) for e in examples]


def plan(encoded, **changes):
    sizes = dict(batch_size=4, micro_batch_size=2, max_length=96, packing=False, seed=0)
    return BatchPlan(examples=encoded.examples, **{**sizes, **changes})


def epoch_of(plan):
    return [source for step in range(plan.steps_per_epoch) for row in plan.batch(step)[2].sources for source in row]


def test_without_weights_all_rows_follow_one_another(files):
    """As one reading of the files gives them, rows numbered on.

    Mutation: jaxpost/data/examples.py: `source=example.source + self._first[part])` -> `source=example.source)`
    """
    both = prepare([*files])
    rows = encode_rows(toys.toy(toys.CHATML), read_rows([*files]), **vars(OPTIONS))
    assert contents(both.examples) == contents(rows.examples) and both.counts == rows.counts
    assert lengths_of(both.examples).tolist() == [len(e.ids) for e in rows.examples]
    assert [e.source for e in both.examples] == list(range(1, 51))
    assert [e.source for e in both.examples[8:12]] == [9, 10, 11, 12] and both.examples[-1].source == 50


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (3, 1), (0.25, 0.75), (0.9, 0.1)])
def test_D12_an_epoch_holds_the_fractions_and_replay_rows_keep_their_mask(files, weights, packing):
    """Batches of an epoch, packed or not: fractions of rows within one row, none twice, each with the tokens and the
    mask that it has alone; the same rows in every epoch.

    Mutation: jaxpost/data/dataset.py: `    joined = Joined(examples, rows, chosen)` -> `    joined = Joined(examples, rows)`
    Mutation: jaxpost/data/mixing.py: `return choose(sizes, mixture_sizes(sizes, weights), seed)` -> `return choose(sizes, sizes, seed)`
    """  # noqa: E501
    mixture = prepare([f"{file}={weight}" for file, weight in zip(files, weights, strict=True)])
    alone = {e.source: e for e in prepare([*files]).examples}
    batches = plan(mixture, packing=packing)
    sources = epoch_of(batches)
    total, new = len(sources), sum(source <= 10 for source in sources)
    assert len(set(sources)) == total == mixture.counts.examples
    assert abs(new - total * weights[0] / sum(weights)) < 1 and total >= 10
    for example in mixture.examples:
        assert contents([example]) == contents([alone[example.source]])
    tokens = sum(batches.batch(step)[2].trained_tokens for step in range(batches.steps_per_epoch))
    assert tokens == mixture.counts.trained_tokens == sum(int(alone[source].trained.sum()) for source in sources)
    steps = batches.steps_per_epoch
    later = [s for n in range(steps, 2 * steps) for row in batches.batch(n)[2].sources for s in row]
    assert sorted(later) == sorted(sources) and later != sources


def test_D12_counts_tell_what_an_epoch_holds(files):
    """All rows read, those of the epoch kept, the others named as beyond their share.

    Mutation: jaxpost/data/dataset.py: `tally.counts["unused"] = tally.counts["examples"] - len(chosen)` -> `pass`
    """
    mixture = prepare([f"{files[0]}=0.5", f"{files[1]}=0.5"])
    assert (mixture.counts.rows, mixture.counts.examples, mixture.counts.unused) == (50, 20, 30)
    assert "30 beyond their share of the mixture" in str(mixture.counts)
    assert mixture.counts.tokens == sum(len(example.ids) for example in mixture.examples)


def test_D12_the_seed_draws_the_part_and_changes_no_fraction(files):
    """Mutation: jaxpost/data/dataset.py: `[len(part) for part in examples], seed)` -> `[len(part) for part in examples], 0)`"""  # noqa: E501
    data = [f"{files[0]}=0.5", f"{files[1]}=0.5"]
    drawn = [[e.source for e in prepare(data, seed=seed).examples] for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and len({tuple(each) for each in drawn}) == 3
    assert all(sum(source <= 10 for source in each) == 10 and len(each) == 20 for each in drawn)
    first = {prepare(data, seed=seed).fingerprint for seed in (0, 1)}
    assert len(first) == 1, "the seed is beside the fingerprint, not in it"


def test_an_item_that_gives_nothing_to_a_mixture_is_refused(files, tmp_path):
    """Mutation: jaxpost/data/mixing.py: `    if 0 in sizes:` -> `    if False:`"""
    empty = write(tmp_path / "empty.jsonl", [{"text": ""}])
    refused(lambda: prepare([f"{files[0]}=0.5", f"{empty}=0.5"]), str(empty), "1 rows")
    assert len(prepare([files[0], empty]).examples) == 10
    refused(lambda: prepare([empty]), "1 rows", "empty")


def test_a_data_set_of_the_hub_mixes_with_a_file(files, monkeypatch):
    """Its rows are numbered on, and tokenised once."""
    hub = datasets.Dataset.from_list(replay_rows(40))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub)
    both = prepare([files[0], "org/name"])
    assert contents(both.examples) == contents(prepare([*files]).examples)
    mixture = prepare([f"{files[0]}=0.5", "org/name:train=0.5"])
    assert [e.source for e in mixture.examples] == [e.source for e in prepare([f"{f}=0.5" for f in files]).examples]


def test_R9_the_order_does_not_depend_on_workers_or_devices(files):
    """Batches made by threads or in turn, all or from the middle on, in micro-batches of any size for any number of
    devices: each step holds the same rows in the same order.

    Mutation: jaxpost/data/batches.py: `order[index * self.batch_size : (index + 1) * self.batch_size]` -> `order[index * self.batch_size : (index + 1) * self.batch_size][:: self.micro_batch_size]`
    """  # noqa: E501
    encoded = prepare([f"{files[0]}=0.3", f"{files[1]}=0.7"])
    for packing in (False, True):
        steps = range(2 * plan(encoded, packing=packing).steps_per_epoch + 1)
        want = [plan(encoded, packing=packing).batch(step) for step in steps]
        for workers in (1, 2, 5):
            batches = plan(encoded, packing=packing)
            with ThreadPoolExecutor(workers) as pool:
                for (rows, _, info), found in zip(want, pool.map(batches.batch, steps), strict=True):
                    assert info == found[2]
                    assert all(np.array_equal(leaf, found[0][name]) for name, leaf in rows.items())
        for micro in (1, 4):  # as one device takes them, or four
            other = plan(encoded, packing=packing, micro_batch_size=micro)
            for step in reversed(steps):
                rows, _, info = other.batch(step)
                assert info == want[step][2]
                flat = rows["tokens"].reshape(-1, rows["tokens"].shape[-1])
                assert np.array_equal(flat, want[step][0]["tokens"].reshape(flat.shape))


def test_R9_chunks_of_any_size_give_the_same_examples(files, tmp_path, monkeypatch):
    """Rows tokenised and written few or many at a time: one fingerprint.

    Mutation: jaxpost/data/examples.py: `        for digest, column in zip(self._columns, columns, strict=True):` -> `        for digest, column in zip([self._columns[0]] * 4, columns, strict=True):`
    """  # noqa: E501
    want = prepare([*files])
    for size in (1, 7):
        monkeypatch.setenv("JAXPOST_CACHE", str(tmp_path / f"cache{size}"))
        monkeypatch.setattr(encode, "CHUNK_ROWS", size)
        monkeypatch.setattr(store, "ROWS_AT_ONCE", 2 * size)
        again = prepare([*files])
        assert contents(again.examples) == contents(want.examples) and again.fingerprint == want.fingerprint
