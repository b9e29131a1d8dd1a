"""Batches of like length: which rows each member trains on at each step, and how a pass over all rows is cut."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradfiltering.data.examples import Examples
from gradfiltering.distributed.row_measurements import ALL_WORK, WorkShare
from gradfiltering.runs.mapped_arrays import map_large_array
from gradfiltering.seeding import numpy_rng

IGNORED = -100


@dataclass
class Batch:
    """Right-padded examples, with one leading axis more where each member has its own rows.

    Attributes:
        input_ids: [B, T] or [M, B, T] int64.
        labels: the same shape; the token id at response positions, `IGNORED` elsewhere.
        example_id: [B] or [M, B] int64.
        prefix_states: [..., T, D] hidden states that the layers without adapters end in, None where they are not known.
        lengths: [B] or [M, B] int64, tokens of each example's longest sequence; None where they are not known.
    """

    input_ids: Tensor
    labels: Tensor
    example_id: Tensor
    prefix_states: Tensor | None = field(default=None, kw_only=True)
    lengths: Tensor | None = field(default=None, kw_only=True)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Name -> each tensor that is there."""
        values = {tensor_field.name: getattr(self, tensor_field.name) for tensor_field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`; ids and lengths stay where they are."""
        moved_tensors = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in self.tensors.items()
            if name not in ("example_id", "lengths")
        }
        return replace(self, **moved_tensors)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply a function, such as a slice along the examples, to each tensor of the batch."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors.items()})


@dataclass
class PreferenceBatch(Batch):
    """Preference rows: [..., 2, T] tokens and labels of each example, the chosen answer first.

    Attributes:
        reference_nll: [B, 2] or [M, B, 2] float64, negative log-likelihood of both answers under the base model without
            adapters, in nats.
    """

    reference_nll: Tensor


class RowStates(Protocol):
    """Hidden states of each row, kept somewhere."""

    def read(self, row_positions: np.ndarray, padded_length: int) -> Tensor:
        """Return [rows, padded_length, D] states; those of padding are any finite numbers."""
        ...


def collate(rows: dict[str, list[Any]], pad_id: int, shape: tuple[int, ...]) -> Batch:
    """Pads encoded rows of one sequence each on the right to the longest.

    Args:
        rows: columns `example_id`, `input_ids`, `supervised` of as many rows as `shape` holds, which may be none.
        pad_id: token id for padding; it is never a label and, behind causal attention, never seen by a response.
        shape: leading shape of the batch, (B,) or (M, B).
    """
    lengths = [len(token_ids) for token_ids in rows["input_ids"]]
    padded_length = max(lengths, default=1)
    input_ids, labels = _pad_rows(rows["input_ids"], rows["supervised"], padded_length, pad_id)
    return Batch(
        input_ids=input_ids.view(*shape, padded_length),
        labels=labels.view(*shape, padded_length),
        example_id=torch.tensor(rows["example_id"], dtype=torch.int64).view(*shape),
        lengths=torch.tensor(lengths, dtype=torch.int64).view(*shape),
    )


def collate_pairs(
    rows: dict[str, list[Any]], reference_nll: np.ndarray, pad_id: int, shape: tuple[int, ...]
) -> PreferenceBatch:
    """Pads encoded preference rows on the right, both sequences of all rows to the longest.

    Args:
        rows: see `collate`, and `rejected_ids`, `rejected_supervised`.
        reference_nll: [rows, 2] float64, see `PreferenceBatch`.
        pad_id: token id for padding.
        shape: leading shape of the batch, (B,) or (M, B).
    """
    sides = [(rows["input_ids"], rows["supervised"]), (rows["rejected_ids"], rows["rejected_supervised"])]
    lengths = [max(map(len, pair)) for pair in zip(rows["input_ids"], rows["rejected_ids"], strict=True)]
    padded_length = max(lengths, default=1)
    padded_sides = [_pad_rows(*side, padded_length, pad_id) for side in sides]
    input_ids, labels = (torch.stack(tensors, 1) for tensors in zip(*padded_sides, strict=True))  # [rows, 2, T]
    return PreferenceBatch(
        input_ids=input_ids.view(*shape, 2, padded_length),
        labels=labels.view(*shape, 2, padded_length),
        example_id=torch.tensor(rows["example_id"], dtype=torch.int64).view(*shape),
        reference_nll=torch.from_numpy(np.ascontiguousarray(reference_nll)).view(*shape, 2),
        lengths=torch.tensor(lengths, dtype=torch.int64).view(*shape),
    )


def _pad_rows(
    token_rows: list[list[int]], span_rows: list[list[int]], padded_length: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return [rows, padded_length] tokens and labels."""
    input_ids = np.full((len(token_rows), padded_length), pad_id, dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED)
    for row_index, (token_ids, spans) in enumerate(zip(token_rows, span_rows, strict=True)):
        input_ids[row_index, : len(token_ids)] = token_ids
        for first_position, end_position in zip(spans[::2], spans[1::2], strict=True):
            labels[row_index, first_position:end_position] = token_ids[first_position:end_position]
    return torch.from_numpy(input_ids), torch.from_numpy(labels)


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
        resampled: each member trains on N rows drawn with replacement, its own in every epoch, instead of all N.
    """

    buckets: list[np.ndarray]
    batch_size: int
    seed: int
    resampled: bool = False

    @classmethod
    def of(cls, lengths: np.ndarray, batch_size: int, bucket_batches: int, seed: int) -> "LengthBuckets":
        """Cuts rows, ordered by length and then position, into buckets of `bucket_batches` batches."""
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
        """Row positions of each of member's batches in this epoch; every row of its own occurs exactly once."""
        return self.updates(member, (epoch - 1) * self.steps_per_epoch, epoch * self.steps_per_epoch)

    def updates(self, member: int, first_update: int, last_update: int) -> "MemberUpdates":
        """Row positions of member's batches in the updates after `first_update` others up to `last_update`.

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
        """A bootstrap sample of the rows, in order of length, cut into buckets of the same sizes.

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


class MemberBatches(Dataset[Batch]):
    """Training batches of some updates for stacked members: item k holds the [M, B, T] batch of the k-th of them.

    Args:
        examples: the rows.
        buckets: which rows fall into which batch.
        members: the members' numbers.
        first_update: updates before the first of these.
        last_update: updates with the last of these.
        pad_id: token id for padding.
        share: the rows of each member's batch that this process takes; B is 0 where none is left for it.
        row_states: the rows' `prefix_states`; None for none.
    """

    def __init__(
        self,
        examples: Examples,
        buckets: LengthBuckets,
        members: Sequence[int],
        first_update: int,
        last_update: int,
        pad_id: int,
        share: WorkShare = ALL_WORK,
        row_states: RowStates | None = None,
    ):
        self.examples = examples
        self.member_updates = [buckets.updates(member, first_update, last_update) for member in members]
        self.update_count = last_update - first_update
        self.pad_id = pad_id
        self.share = share
        self.row_states = row_states

    def __len__(self) -> int:
        return self.update_count

    def __getitem__(self, step: int) -> Batch:
        rows = [self.share(updates[step]) for updates in self.member_updates]
        return make_batch(self.examples, np.concatenate(rows), self.pad_id, (len(rows), len(rows[0])), self.row_states)


class LengthBatches(Dataset[Batch]):
    """Rows in order of length, cut by a budget of padded tokens: item k holds a [B, T] batch.

    Args:
        examples: the rows.
        tokens: padded tokens in a batch at most (at least one row is taken).
        pad_id: token id for padding.
        rows: positions of the rows to go through, None for all.
        share: the batches that this process takes.
        row_states: the rows' `prefix_states`; None for none.
        batch_overhead: padded tokens that take as long as one more batch does; with it, rows are cut where padding and
            overhead come to least. None fills each batch, which is as good where the rows fill many.
    """

    def __init__(
        self,
        examples: Examples,
        tokens: int,
        pad_id: int,
        rows: np.ndarray | None = None,
        share: WorkShare = ALL_WORK,
        row_states: RowStates | None = None,
        batch_overhead: int | None = None,
    ):
        self.examples = examples
        self.pad_id = pad_id
        self.row_states = row_states
        rows = np.arange(len(examples)) if rows is None else rows
        row_order = rows[np.argsort(examples.widths[rows], kind="stable")]
        sorted_lengths = examples.sequence_count * examples.widths[row_order]
        if batch_overhead is None:
            ends = _fill_batches(sorted_lengths, tokens)
        else:
            ends = cut_cheapest(sorted_lengths, tokens, batch_overhead)
        self.cuts: list[np.ndarray] = share(np.split(row_order, ends[:-1]) if ends else [])

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, slot_index: int) -> Batch:
        rows = self.cuts[slot_index]
        return make_batch(self.examples, rows, self.pad_id, (len(rows),), self.row_states)


def make_batch(
    examples: Examples,
    rows: np.ndarray,
    pad_id: int,
    shape: tuple[int, ...],
    row_states: RowStates | None = None,
) -> Batch:
    """Return some rows as a batch.

    Args:
        examples: all rows; preference rows with `reference_nll`.
        rows: positions of those in the batch.
        pad_id: token id for padding.
        shape: leading shape of the batch, (B,) or (M, B).
        row_states: what the layers below the first adapter hand on of each sequence; None for none.
    """
    if examples.is_paired:
        assert examples.reference_nll is not None, "measure the base model's log-probabilities first"
        batch: Batch = collate_pairs(examples.table[rows], examples.reference_nll[rows], pad_id, shape)
    else:
        batch = collate(examples.table[rows], pad_id, shape)
    if row_states is None:
        return batch
    sequences = examples.sequence_positions(rows)
    prefix_states = row_states.read(sequences, batch.input_ids.shape[-1])  # [sequences, T, D]
    return replace(batch, prefix_states=prefix_states.view(*batch.input_ids.shape, prefix_states.shape[2]))


def batch_rows(batch: Batch) -> int:
    """Number of rows of a [B, T] batch."""
    return len(batch.example_id)


def _fill_batches(lengths: np.ndarray, tokens: int) -> list[int]:
    """Return where each batch ends, filled one after the other; lengths rise."""
    ends, first_position = [], 0
    for end_position in range(1, len(lengths) + 1):
        is_last = end_position == len(lengths)
        if is_last or (end_position + 1 - first_position) * int(lengths[end_position]) > tokens:
            ends.append(end_position)
            first_position = end_position
    return ends


def cut_cheapest(lengths: np.ndarray, tokens: int, batch_overhead: int) -> list[int]:
    """Return where each batch ends, such that padded tokens and overheads are fewest.

    The cheapest way to cut the first n rows is the cheapest over all last batches, each after the cheapest way to cut
    the rows before it.

    Args:
        lengths: [N] tokens of each row, rising.
        tokens: padded tokens in a batch at most (at least one row is taken).
        batch_overhead: padded tokens that take as long as one more batch does.
    """
    row_count = len(lengths)
    least_cost = np.zeros(row_count + 1, dtype=np.int64)
    last_batch_start = np.zeros(row_count + 1, dtype=np.int64)
    for end_position in range(1, row_count + 1):
        width = int(lengths[end_position - 1])
        first_start = max(0, end_position - max(1, tokens // max(1, width)))
        starts = np.arange(first_start, end_position)
        costs = least_cost[starts] + (end_position - starts) * width + batch_overhead
        cheapest = int(np.argmin(costs))
        least_cost[end_position], last_batch_start[end_position] = costs[cheapest], starts[cheapest]
    ends = []
    end_position = row_count
    while end_position > 0:
        ends.append(end_position)
        end_position = int(last_batch_start[end_position])
    return ends[::-1]


def make_batch_loader(batches: Dataset[Batch], workers: int) -> DataLoader[Batch]:
    """A loader over ready-made batches, in their order."""
    return DataLoader(
        batches, batch_size=None, shuffle=False, num_workers=workers, pin_memory=torch.cuda.is_available()
    )
