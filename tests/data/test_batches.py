"""The order is a function of the step; shapes are few; masks and totals say what is predicted."""

import itertools

import numpy as np
import pytest

from jaxpost.core.errors import InputError
from jaxpost.data import batches as module
from jaxpost.data.batches import BatchPlan
from jaxpost.data.examples import Example


def example(length, source=1, seed=0, share=0.5):
    rng = np.random.default_rng([seed, source])
    trained = rng.random(length) < share
    trained[-1] = True
    return Example(ids=rng.integers(1, 99, length).astype(np.int32), trained=trained, source=source)


def examples_of(lengths, seed=0, share=0.5):
    return [example(int(length), source, seed, share) for source, length in enumerate(lengths, start=1)]


def plan(examples, **changes):
    sizes = dict(batch_size=4, micro_batch_size=2, max_length=200, packing=True, seed=0)
    return BatchPlan(examples=examples, **{**sizes, **changes})


def random_plan(seed, **changes):
    rng = np.random.default_rng(seed)
    micro = int(rng.integers(1, 4))
    lengths = rng.integers(2, 200, rng.integers(1, 60))
    sizes = dict(batch_size=micro * int(rng.integers(1, 4)), micro_batch_size=micro, packing=bool(seed % 2), seed=seed)
    return plan(examples_of(lengths, seed), **{**sizes, **changes})


def documents(rows):
    """(ids, predicted) of every document of a batch."""
    flat = {name: leaf.reshape(-1, leaf.shape[-1]) for name, leaf in rows.items()}
    for row in range(len(flat["tokens"])):
        segments = flat["segment_ids"][row]
        for segment in range(1, segments.max() + 1):
            (at,) = np.nonzero(segments == segment)
            assert (np.diff(at) == 1).all()
            assert flat["positions"][row, at].tolist() == list(range(len(at)))
            yield tuple(flat["tokens"][row, at].tolist()), tuple(flat["loss_mask"][row, at].tolist())


@pytest.mark.parametrize("seed", range(12))
def test_every_epoch_holds_every_document_once(seed):
    """Mutation: jaxpost/data/batches.py: `order[index * self.batch_size :` -> `order[index :`"""
    batches = random_plan(seed)
    expected = sorted(tuple(e.ids.tolist()) for e in batches.examples)
    steps = batches.steps_per_epoch
    for epoch in range(2):
        made = [batches.batch(step) for step in range(epoch * steps, (epoch + 1) * steps)]
        assert sorted(ids for rows, _, _ in made for ids, _ in documents(rows)) == expected
        sources = [source for _, _, info in made for row in info.sources for source in row]
        assert sorted(sources) == [e.source for e in batches.examples]
        assert made[-1][2].epoch == epoch + 1


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_is_a_pure_function_of_seed_and_step(seed):
    """Mutation: jaxpost/data/batches.py: `default_rng([seed, epoch])` -> `default_rng()`"""
    one, other = random_plan(seed), random_plan(seed)
    steps = list(range(2 * one.steps_per_epoch + 1))
    forwards = {step: one.batch(step) for step in steps}
    module._order.cache_clear()
    for step in reversed(steps):
        rows, totals, info = other.batch(step)
        assert totals == forwards[step][1] and info == forwards[step][2]
        assert all((rows[name] == forwards[step][0][name]).all() for name in rows)


def test_epochs_and_seeds_have_their_own_order():
    examples = examples_of([150] * 40)
    orders = set()
    for seed, epoch in itertools.product(range(3), range(3)):
        batches = plan(examples, packing=False, seed=seed)
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        orders.add(tuple(batches.batch(step)[2].sources for step in steps))
    assert len(orders) == 9


@pytest.mark.parametrize("seed", range(12))
def test_S6_a_token_is_predicted_once_and_a_first_token_never(seed):
    """The mask is aligned with the labels: 1 at a trained token, 0 at padding and at each document's first token.

    Mutation: jaxpost/data/batches.py: `start + 1 : end] = example.trained[1:]` -> `start:end] = example.trained`
    """
    batches = random_plan(seed)
    trained = {tuple(e.ids.tolist()): [False, *e.trained[1:].tolist()] for e in batches.examples}
    for step in range(batches.steps_per_epoch):
        rows, totals, info = batches.batch(step)
        for ids, mask in documents(rows):
            assert list(mask) == trained[ids]
        assert not rows["loss_mask"][rows["segment_ids"] == 0].any()
        assert not rows["loss_mask"][rows["positions"] == 0].any()
        assert totals["tokens"] == rows["loss_mask"].sum() == info.trained_tokens
        assert info.num_tokens == (rows["segment_ids"] > 0).sum()
        dtypes = {name: leaf.dtype.name for name, leaf in rows.items()}
        assert dtypes == dict(tokens="int32", segment_ids="int32", positions="int32", loss_mask="float32")
        assert totals["tokens"].dtype == np.float32


@pytest.mark.parametrize("seed", range(12))
def test_buckets_are_the_shapes_that_the_run_uses(seed):
    """Mutation: jaxpost/data/batches.py: `longest[: steps - epoch * self.steps_per_epoch]` -> `longest`"""
    for packing in (False, True):
        batches = random_plan(seed, packing=packing)
        for steps in (1, batches.steps_per_epoch, 2 * batches.steps_per_epoch + 1):
            shapes = {batches.batch(step)[0]["tokens"].shape for step in range(steps)}
            assert batches.buckets(steps) == sorted(shapes)


def test_buckets_without_packing_are_powers_of_two_up_to_max_length():
    for length, bucket in ((1, 64), (64, 64), (65, 128), (129, 200), (200, 200)):
        batches = plan(examples_of([length]), packing=False)
        assert batches.buckets(1) == [(1, 2, bucket)]


def test_the_bucket_with_packing_is_the_multiple_of_64_that_holds_the_fullest_row():
    for lengths, bucket in (([30], 64), ([65], 128), ([100, 50], 192), ([150, 50], 200), ([150, 51], 192)):
        assert plan(examples_of(lengths)).buckets(5) == [(1, 2, bucket)]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_D11_batch_size_padding_and_order_leave_the_labels_unchanged(packing, batch_size):
    """However documents are batched, packed or padded, the same tokens are predicted from the same tokens.

    Mutation: jaxpost/data/batches.py: `np.arange(end - start)` -> `np.arange(start, end)`
    """
    examples = examples_of(np.random.default_rng(3).integers(2, 120, 23))
    expected = sorted((tuple(e.ids.tolist()), (0.0, *e.trained[1:].astype(float).tolist())) for e in examples)
    batches = plan(examples, packing=packing, batch_size=batch_size, micro_batch_size=1, seed=batch_size)
    made = [batches.batch(step) for step in range(batches.steps_per_epoch)]
    assert sorted(pair for rows, _, _ in made for pair in documents(rows)) == expected
    assert sum(totals["tokens"] for _, totals, _ in made) == sum(e.trained[1:].sum() for e in examples)


def test_D11_fewer_rows_than_the_batch_train_as_a_part_batch():
    """Case D11: three rows and batch 8 are one step of three rows, not none.

    Mutation: jaxpost/data/batches.py: `-(-len(self.rows) // self.batch_size)` -> `len(self.rows) // self.batch_size`
    """
    batches = plan(examples_of([5, 6, 7]), packing=False, batch_size=8, micro_batch_size=2)
    assert batches.steps_per_epoch == 1 and batches.accumulate == 2
    rows, _, info = batches.batch(0)
    assert rows["tokens"].shape == (2, 2, 64) and info.num_tokens == 18
    assert sorted(info.sources) == [(1,), (2,), (3,)]
    assert not rows["segment_ids"][1, 1].any()


def test_S2_a_part_batch_at_the_end_counts_its_own_tokens():
    """Ten rows in batches of four: the third holds two, at the same shape, with their own total.

    Mutation: jaxpost/data/batches.py: `np.float32(trained)` -> `np.float32(4 * trained / len(chosen))`
    """
    batches = plan(examples_of([60] * 10, share=1.0), packing=False)
    made = [batches.batch(step) for step in range(3)]
    assert [totals["tokens"] for _, totals, _ in made] == [4 * 59, 4 * 59, 2 * 59]
    assert {rows["tokens"].shape for rows, _, _ in made} == {(2, 2, 64)}
    assert [info.epoch for _, _, info in made] == [1 / 3, 2 / 3, 1.0]


def test_D19_no_examples_are_an_error():
    """Mutation: jaxpost/data/batches.py: `if not self.examples:` -> `if self.examples is None:`"""
    with pytest.raises(InputError, match="`examples`"):
        plan([])


def test_sizes_that_do_not_fit_are_refused():
    for sizes in (dict(micro_batch_size=3), dict(micro_batch_size=8), dict(micro_batch_size=0), dict(batch_size=0)):
        with pytest.raises(InputError, match="`micro_batch_size`"):
            plan(examples_of([5]), **sizes)
    with pytest.raises(InputError, match="201"):
        plan(examples_of([5, 201]))
