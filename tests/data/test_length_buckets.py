import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfiltering.data.length_buckets import LengthBuckets

LENGTHS = np.random.default_rng(0).integers(5, 120, size=203)


def buckets_of(batch_size=8, bucket_batches=3, seed=0, lengths=LENGTHS):
    return LengthBuckets.of(lengths, batch_size, bucket_batches, seed)


def as_lists(batches):
    return [batch.tolist() for batch in batches]


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    bucket_batches=st.integers(1, 5),
    member=st.integers(0, 9),
    epoch=st.integers(1, 4),
)
def test_every_row_occurs_exactly_once_an_epoch(lengths, batch_size, bucket_batches, member, epoch):
    batches = buckets_of(batch_size, bucket_batches, 3, np.asarray(lengths)).epoch(member, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    sizes = sorted(len(batch) for batch in batches)
    assert all(size == batch_size for size in sizes[1:]) and 1 <= sizes[0] <= batch_size


def test_batches_of_a_seed_stay_what_they_were():
    batches = as_lists(buckets_of(4, 2, seed=3, lengths=LENGTHS[:18]).updates(1, 3, 8))
    assert batches == [[7, 5, 6, 2], [16, 15, 0, 1], [0, 9, 17, 15], [1, 10, 13, 16], [11, 14]]


def test_batches_behind_the_last_update_are_refused():
    updates = buckets_of().updates(0, 2, 5)
    assert len(updates) == 3 and len(list(updates)) == 3
    for update in (-1, 3):
        with pytest.raises(IndexError, match=f"update {update} of 3"):
            updates[update]


def test_members_share_slots_and_so_the_lengths_of_their_batches():
    buckets = buckets_of()
    where = {row: number for number, rows in enumerate(buckets.buckets) for row in rows.tolist()}
    for epoch in (1, 2):
        sequences = []
        for member in range(4):
            batches = buckets.epoch(member, epoch)
            assert all(len({where[row] for row in batch.tolist()}) == 1 for batch in batches), "a batch mixes buckets"
            sequences.append([(where[int(batch[0])], len(batch)) for batch in batches])
        assert all(sequence == sequences[0] for sequence in sequences), "stacked members would not fit one tensor"


def test_buckets_hold_rows_of_like_length():
    longest = [LENGTHS[rows].max() for rows in buckets_of().buckets]
    shortest = [LENGTHS[rows].min() for rows in buckets_of().buckets]
    assert all(before <= after for before, after in zip(longest, shortest[1:], strict=False))


def test_rows_differ_between_members_epochs_and_seeds():
    base = as_lists(buckets_of().epoch(0, 1))
    assert as_lists(buckets_of().epoch(1, 1)) != base, "two members see the same batches"
    assert as_lists(buckets_of().epoch(0, 2)) != base, "two epochs see the same batches"
    assert as_lists(buckets_of(seed=1).epoch(0, 1)) != base
    assert as_lists(buckets_of().epoch(0, 1)) == base, "the same stream must give the same batches again"
    assert not np.array_equal(buckets_of().slots(1), buckets_of().slots(2)), (
        "the order of buckets should change with the epoch"
    )
