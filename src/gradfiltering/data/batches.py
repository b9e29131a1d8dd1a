"""Batches of like length: which rows each member trains on at each step, and how a pass over all rows is cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradfiltering.data.examples import Examples
from gradfiltering.seeding import numpy_rng

IGNORED = -100


@dataclass
class Batch:
    """Right-padded examples, with one leading axis more where each member has its own rows.

    Attributes:
        input_ids: [B, T] or [M, B, T] int64.
        labels: the same shape; the token id at response positions, `IGNORED` elsewhere.
        example_id: [B] or [M, B] int64.
    """

    input_ids: Tensor
    labels: Tensor
    example_id: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`; the ids stay where they are."""
        return Batch(
            self.input_ids.to(device, non_blocking=True), self.labels.to(device, non_blocking=True), self.example_id
        )


def collate(rows: dict[str, list], pad_id: int, shape: tuple[int, ...]) -> Batch:
    """Pads encoded rows on the right to the longest.

    Args:
        rows: columns `example_id`, `input_ids`, `supervised` of as many rows as `shape` holds, which may be none.
        pad_id: token id for padding; it is never a label and, behind causal attention, never seen by a response.
        shape: leading shape of the batch, (B,) or (M, B).
    """
    width = max((len(ids) for ids in rows["input_ids"]), default=1)
    input_ids = np.full((len(rows["input_ids"]), width), pad_id, dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED)
    for row, (ids, spans) in enumerate(zip(rows["input_ids"], rows["supervised"], strict=True)):
        input_ids[row, : len(ids)] = ids
        for start, stop in zip(spans[::2], spans[1::2], strict=True):
            labels[row, start:stop] = ids[start:stop]
    return Batch(
        input_ids=torch.from_numpy(input_ids).view(*shape, width),
        labels=torch.from_numpy(labels).view(*shape, width),
        example_id=torch.tensor(rows["example_id"], dtype=torch.int64).view(*shape),
    )


@dataclass(frozen=True)
class LengthBuckets:
    """Rows grouped by length, so that a batch drawn inside a bucket needs little padding.

    The sequence of (bucket, batch) slots of an epoch comes from the seed and is shared by all members; which of the
    bucket's rows fall into which batch is drawn per member. So member m's batches depend on (seed, m) and the data
    alone, and members stacked together still have batches of like length.

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
        order = np.argsort(lengths, kind="stable")
        width = batch_size * bucket_batches
        return cls([order[start : start + width] for start in range(0, len(order), width)], batch_size, seed)

    def slots(self, epoch: int) -> list[tuple[int, int]]:
        """The epoch's sequence of (bucket, first position of the batch inside the bucket), shared by all members."""
        every = [(b, start) for b, rows in enumerate(self.buckets) for start in range(0, len(rows), self.batch_size)]
        order = numpy_rng(self.seed, "slots", epoch).permutation(len(every))
        return [every[index] for index in order]

    def epoch(self, member: int, epoch: int) -> list[np.ndarray]:
        """Row positions of each of member's batches in this epoch; every row of its own occurs exactly once."""
        rng = numpy_rng(self.seed, "rows", member, epoch)
        drawn = [rng.permutation(rows) for rows in (self.resample(member) if self.resampled else self.buckets)]
        return [drawn[bucket][start : start + self.batch_size] for bucket, start in self.slots(epoch)]

    def resample(self, member: int) -> list[np.ndarray]:
        """A bootstrap sample of the rows, in order of length, cut into buckets of the same sizes.

        The draw is over all rows, not within buckets; ordered, the k-th rows of two samples are of like length.
        """
        order = np.concatenate(self.buckets)
        drawn = np.sort(numpy_rng(self.seed, "bootstrap", member).integers(len(order), size=len(order)))
        return np.split(order[drawn], np.cumsum([len(rows) for rows in self.buckets])[:-1])


@dataclass(frozen=True)
class Share:
    """Which part of the work a process does: every `of`-th piece from `number` on.

    Attributes:
        number: the process, from 0.
        of: how many processes there are.
    """

    number: int
    of: int

    def __call__(self, work: Any) -> Any:
        """This process's part of a list or array, which may be empty."""
        return work[self.number :: self.of]


WHOLE = Share(0, 1)


class MemberBatches(Dataset):
    """One epoch of training batches for stacked members: item k holds step k's [M, B, T] batch.

    Args:
        examples: the rows.
        buckets: which rows fall into which batch.
        members: the members' numbers.
        epoch: 1 for the first.
        pad_id: token id for padding.
        share: the rows of each member's batch that this process takes; B is 0 where none is left for it.
        done: steps of the epoch that were taken before, by a run that was interrupted.
    """

    def __init__(
        self,
        examples: Examples,
        buckets: LengthBuckets,
        members: Sequence[int],
        epoch: int,
        pad_id: int,
        share: Share = WHOLE,
        done: int = 0,
    ):
        self.examples = examples
        self.steps = list(zip(*(buckets.epoch(member, epoch) for member in members), strict=True))[done:]
        self.pad_id = pad_id
        self.share = share

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> Batch:
        rows = [self.share(own) for own in self.steps[step]]
        return collate(self.examples.table[np.concatenate(rows)], self.pad_id, (len(rows), len(rows[0])))


class LengthBatches(Dataset):
    """Rows in order of length, cut by a budget of padded tokens: item k holds a [B, T] batch.

    Args:
        examples: the rows.
        tokens: padded tokens in a batch at most (at least one row is taken).
        pad_id: token id for padding.
        rows: positions of the rows to go through, None for all.
        share: the batches that this process takes.
    """

    def __init__(
        self, examples: Examples, tokens: int, pad_id: int, rows: np.ndarray | None = None, share: Share = WHOLE
    ):
        self.examples = examples
        self.pad_id = pad_id
        self.cuts: list[np.ndarray] = []
        rows = np.arange(len(examples)) if rows is None else rows
        order = rows[np.argsort(examples.lengths[rows], kind="stable")]
        start = 0
        for stop in range(1, len(order) + 1):
            full = stop == len(order) or (stop + 1 - start) * int(examples.lengths[order[stop]]) > tokens
            if full:
                self.cuts.append(order[start:stop])
                start = stop
        self.cuts = share(self.cuts)

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, index: int) -> Batch:
        rows = self.cuts[index]
        return collate(self.examples.table[rows], self.pad_id, (len(rows),))


def loader(batches: Dataset, workers: int) -> DataLoader:
    """A loader over ready-made batches, in their order."""
    return DataLoader(
        batches, batch_size=None, shuffle=False, num_workers=workers, pin_memory=torch.cuda.is_available()
    )
