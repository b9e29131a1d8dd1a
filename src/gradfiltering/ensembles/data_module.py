"""LightningDataModule of the ensemble: training batches per member, and passes over all rows."""

from collections.abc import Sequence
from dataclasses import replace

import lightning as L
from torch.utils.data import DataLoader

from gradfiltering.data.batches import (
    ALL_WORK,
    LengthBatches,
    LengthBuckets,
    MemberBatches,
    WorkShare,
    make_batch_loader,
)
from gradfiltering.data.examples import Examples


class EnsembleData(L.LightningDataModule):
    """Feeds M members, each with its own order of rows.

    Args:
        examples: rows to train on and to score.
        members: the members' numbers.
        batch_size: examples of one update.
        bucket_batches: batches in a length bucket.
        tokens: padded tokens of a batch in a pass over all rows.
        pad_id: token id for padding.
        seed: the run's seed.
        workers: processes that prepare batches.

    Attributes:
        share: what this process takes of each training batch and of the batches of a pass.
        epochs_done, steps_done: epochs that were trained before, and steps of the one after them.
        resampled: each member trains on a bootstrap sample of the rows.
    """

    def __init__(
        self,
        examples: Examples,
        members: Sequence[int],
        batch_size: int,
        bucket_batches: int,
        tokens: int,
        pad_id: int,
        seed: int,
        workers: int,
    ):
        super().__init__()
        self.examples = examples
        self.members = list(members)
        self.buckets = LengthBuckets.of(examples.lengths, batch_size, bucket_batches, seed)
        self.tokens = tokens
        self.pad_id = pad_id
        self.workers = workers
        self.share: WorkShare = ALL_WORK
        self.epochs_done = self.steps_done = 0
        self.resampled = False

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return len(self.buckets.slots(1))

    def train_dataloader(self) -> DataLoader:
        """Step batches of the epoch the trainer is about to run (1-based in the order's seed)."""
        assert self.trainer is not None
        done = self.steps_done if self.trainer.current_epoch == 0 else 0
        buckets = replace(self.buckets, resampled=self.resampled)
        batches = MemberBatches(self.examples, buckets, self.members, self.epoch, self.pad_id, self.share, done)
        return make_batch_loader(batches, self.workers)

    @property
    def epoch(self) -> int:
        """The epoch being trained, 1 for the first, whatever part of training this run does."""
        assert self.trainer is not None
        return self.epochs_done + self.trainer.current_epoch + 1

    def pass_over(self, examples: Examples) -> DataLoader:
        """Batches of one pass over `examples`, by length."""
        return make_batch_loader(LengthBatches(examples, self.tokens, self.pad_id, share=self.share), self.workers)
