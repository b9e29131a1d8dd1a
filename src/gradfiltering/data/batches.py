"""Batches of padded examples: those that members train on, and those of a pass over rows of like length."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradfiltering.data.examples import Examples
from gradfiltering.data.length_buckets import LengthBuckets
from gradfiltering.distributed.row_measurements import ALL_WORK, WorkShare

IGNORED = -100
STAYS_WITH_PROCESS = ("example_id", "lengths", "learned_tokens")  # never sent to a GPU


@dataclass
class Batch:
    """Right-padded examples, with one leading axis more where each member has its own rows.

    Attributes:
        input_ids: [B, T] or [M, B, T] int64.
        labels: the same shape; the token id at response positions, `IGNORED` elsewhere.
        example_id: [B] or [M, B] int64.
        prefix_states: [..., T, D] hidden states that the layers without adapters end in, None where they are not known.
        lengths: [B] or [M, B] int64, tokens of each example's longest sequence; None where they are not known.
        learned_tokens: [B] or [M, B] int64 on the CPU, labels behind the first position of each sequence; None where
            they were not counted before the batch was moved to a device.
    """

    input_ids: Tensor
    labels: Tensor
    example_id: Tensor
    prefix_states: Tensor | None = field(default=None, kw_only=True)
    lengths: Tensor | None = field(default=None, kw_only=True)
    learned_tokens: Tensor | None = field(default=None, kw_only=True)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Name -> each tensor that is there."""
        values = {tensor_field.name: getattr(self, tensor_field.name) for tensor_field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`; ids, lengths and counts stay where they are."""
        moved_tensors = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in self.tensors.items()
            if name not in STAYS_WITH_PROCESS
        }
        if device.type != "cpu" and self.labels.device.type == "cpu":
            is_learned = (self.labels[..., 1:] != IGNORED).flatten(self.example_id.dim())
            moved_tensors["learned_tokens"] = is_learned.sum(-1)
        return replace(self, **moved_tensors)

    def pin_memory(self) -> "Batch":
        """The batch with the tensors that go to a GPU in pinned memory, from where they go without making it wait.

        `DataLoader` calls it.
        """
        pinned_tensors = {
            name: tensor.pin_memory()
            for name, tensor in self.tensors.items()
            if name not in STAYS_WITH_PROCESS and tensor.device.type == "cpu"  # states may be on the GPU already
        }
        return replace(self, **pinned_tensors)

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
        """Return [rows, padded_length, D] states, on any device; those of padding are any finite numbers."""
        ...


def collate(rows: Mapping[str, Sequence[Any]], pad_id: int, shape: tuple[int, ...]) -> Batch:
    """Pad encoded rows of one sequence each on the right to the longest.

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
        example_id=torch.from_numpy(np.array(rows["example_id"], dtype=np.int64)).view(*shape),
        lengths=torch.tensor(lengths, dtype=torch.int64).view(*shape),
    )


def collate_pairs(
    rows: Mapping[str, Sequence[Any]], reference_nll: np.ndarray, pad_id: int, shape: tuple[int, ...]
) -> PreferenceBatch:
    """Pad encoded preference rows on the right, both sequences of all rows to the longest.

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
        example_id=torch.from_numpy(np.array(rows["example_id"], dtype=np.int64)).view(*shape),
        reference_nll=torch.from_numpy(np.ascontiguousarray(reference_nll)).view(*shape, 2),
        lengths=torch.tensor(lengths, dtype=torch.int64).view(*shape),
    )


def _pad_rows(
    token_rows: Sequence[Sequence[int]], span_rows: Sequence[Sequence[int]], padded_length: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return [rows, padded_length] tokens and labels."""
    input_ids = np.full((len(token_rows), padded_length), pad_id, dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED)
    if len(token_rows):
        row_lengths = np.asarray([len(token_ids) for token_ids in token_rows])
        tokens = np.concatenate(token_rows, dtype=np.int64, casting="unsafe")  # of all rows, one after the other
        is_supervised = _mark_spans(span_rows, row_lengths)
        is_token = np.arange(padded_length) < row_lengths[:, None]
        input_ids[is_token] = tokens
        labels[is_token] = np.where(is_supervised, tokens, IGNORED)
    return torch.from_numpy(input_ids), torch.from_numpy(labels)


def _mark_spans(span_rows: Sequence[Sequence[int]], row_lengths: np.ndarray) -> np.ndarray:
    """Return for each token of all rows, one row after the other, whether it lies in a span of its row."""
    row_starts = np.cumsum(row_lengths) - row_lengths
    span_bounds = np.concatenate(span_rows, dtype=np.int64, casting="unsafe")  # start, stop, start, stop, …
    span_bounds += np.repeat(row_starts, [len(spans) for spans in span_rows])
    spans_begun = np.zeros(row_lengths.sum() + 1, dtype=np.int64)
    np.add.at(spans_begun, span_bounds[::2], 1)
    np.add.at(spans_begun, span_bounds[1::2], -1)
    is_marked: np.ndarray = np.cumsum(spans_begun)[:-1] > 0
    return is_marked


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
        batch: Batch = collate_pairs(examples.read_rows(rows), examples.reference_nll[rows], pad_id, shape)
    else:
        batch = collate(examples.read_rows(rows), pad_id, shape)
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
