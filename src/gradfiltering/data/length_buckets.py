"""Buckets of rows of like length: which rows each member trains on at each step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gradfiltering.runs.mapped_arrays import map_large_array
from gradfiltering.seeding import numpy_rng


@dataclass(frozen=True)
class LengthBuckets:
    """Rows grouped by length, so that a batch drawn inside a bucket needs little padding.

    The sequence of batches of an epoch, taken as slots in buckets, comes from the seed and is shared by all members;
    which of the bucket's rows fall into which batch is drawn per member. So member m's batches depend on (seed, m) and
    the data alone, and members stacked together still have batches of like length.

    Attributes:
        buckets: positions of the rows of each bucket.
        batch_size: examples of one update.
        seed: the run's seed.
        resampled: each member trains on its own N rows, drawn once with replacement, the same in every epoch; else on
            all N.
    """

    buckets: list[np.ndarray]
    batch_size: int
    seed: int
    resampled: bool = False

    @classmethod
    def of(cls, lengths: np.ndarray, batch_size: int, bucket_batches: int, seed: int) -> "LengthBuckets":
        """Cut rows, ordered by length and then position, into buckets of `bucket_batches` batches."""
        rows_by_length = np.argsort(lengths, kind="stable")
        if len(lengths) <= np.iinfo(np.int32).max:
            rows_by_length = rows_by_length.astype(np.int32)
        rows_by_length = map_large_array(rows_by_length)
        bucket_rows = batch_size * bucket_batches
        bucket_starts = range(0, len(rows_by_length), bucket_rows)
        buckets = [rows_by_length[start : start + bucket_rows] for start in bucket_starts]
        return cls(buckets, batch_size, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return sum(-(-len(bucket_rows) // self.batch_size) for bucket_rows in self.buckets)

    def slots(self, epoch: int) -> np.ndarray:
        """The epoch's sequence of batches, shared by all members.

        Returns:
            [steps_per_epoch, 2] int64, first and end position of each batch among the rows of all buckets.
        """
        ends = np.cumsum([0, *map(len, self.buckets)])
        starts = [np.arange(start, end, self.batch_size) for start, end in pairwise(ends)]
        batch_ends = [np.append(bucket_starts[1:], end) for bucket_starts, end in zip(starts, ends[1:], strict=True)]
        all_slots = np.stack([np.concatenate(starts), np.concatenate(batch_ends)], axis=1)
        slot_order = numpy_rng(self.seed, "slots", epoch).permutation(len(all_slots))
        shuffled_slots: np.ndarray = all_slots[slot_order]
        return shuffled_slots

    def epoch(self, member: int, epoch: int) -> "MemberUpdates":
        """Return the row positions of each of a member's batches in this epoch, which goes once through its rows."""
        return self.updates(member, (epoch - 1) * self.steps_per_epoch, epoch * self.steps_per_epoch)

    def updates(self, member: int, first_update: int, last_update: int) -> "MemberUpdates":
        """Return the row positions of a member's batches, of the updates after `first_update` up to `last_update`.

        They run through the epochs one after the other, wherever a stretch of updates begins or ends.
        """
        steps_per_epoch = self.steps_per_epoch
        first_epoch = first_update // steps_per_epoch + 1
        epochs = range(first_epoch, -(-last_update // steps_per_epoch) + 1)
        return MemberUpdates(
            [self._shuffle_rows(member, epoch) for epoch in epochs],
            [self.slots(epoch) for epoch in epochs],
            first_update - (first_epoch - 1) * steps_per_epoch,
            last_update - first_update,
        )

    def _shuffle_rows(self, member: int, epoch: int) -> np.ndarray:
        """Return the rows of all buckets, those of each bucket in the member's order of this epoch."""
        generator = numpy_rng(self.seed, "rows", member, epoch)
        member_buckets = self.resample(member) if self.resampled else self.buckets
        row_order = np.concatenate(member_buckets)
        for start, end in pairwise(np.cumsum([0, *map(len, member_buckets)])):
            generator.shuffle(row_order[start:end])
        return map_large_array(row_order)

    def resample(self, member: int) -> list[np.ndarray]:
        """Return a bootstrap sample of the rows, in order of length, cut into buckets of the same sizes.

        The draw is over all rows, not within buckets; ordered, the k-th rows of two samples are of like length.
        """
        row_order = np.concatenate(self.buckets)
        drawn_rows = np.sort(numpy_rng(self.seed, "bootstrap", member).integers(len(row_order), size=len(row_order)))
        return np.split(row_order[drawn_rows], np.cumsum([len(rows) for rows in self.buckets])[:-1])


class MemberUpdates:
    """Row positions of a member's batches in some updates; a batch is cut out of its epoch's order when it is read.

    Args:
        row_orders: rows of each epoch, in the order in which it goes through them.
        slots: of each epoch, see `LengthBuckets.slots`.
        first_step: steps of the first epoch before these updates.
        update_count: number of updates.
    """

    def __init__(
        self, row_orders: Sequence[np.ndarray], slots: Sequence[np.ndarray], first_step: int, update_count: int
    ):
        self.row_orders = row_orders
        self.slots = slots
        self.first_step = first_step
        self.update_count = update_count

    def __len__(self) -> int:
        return self.update_count

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[update] for update in range(len(self)))

    def __getitem__(self, update: int) -> np.ndarray:
        """Return the [B] row positions of the batch of an update, counted from the first of these."""
        if not 0 <= update < self.update_count:
            raise IndexError(f"update {update} of {self.update_count}")
        epoch_index, step = divmod(self.first_step + update, len(self.slots[0]))
        first_position, end_position = self.slots[epoch_index][step]
        return self.row_orders[epoch_index][first_position:end_position]
