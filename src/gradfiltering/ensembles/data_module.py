"""LightningDataModule of an ensemble: each member's training batches."""

from collections.abc import Sequence

import lightning as L
from torch.utils.data import DataLoader

from gradfiltering.data.batches import LengthBuckets, MemberBatches, RowStates, make_batch_loader
from gradfiltering.data.examples import Examples
from gradfiltering.distributed.row_measurements import share_of_this_rank


class EnsembleDataModule(L.LightningDataModule):
    """Feeds M members, each with its own order of rows.

    Args:
        examples: rows to train on.
        member_ids: members of the stack, in order.
        buckets: rows grouped by length, which decide each member's batches.
        pad_id: token id for padding.
        workers: processes that prepare batches.
        earlier_epochs: epochs that were trained before.
        row_states: what the layers below the first adapter hand on of each row; None where it is not kept.

    Attributes:
        earlier_steps: steps of the first epoch that were taken by a run that was interrupted.
    """

    def __init__(
        self,
        examples: Examples,
        member_ids: Sequence[int],
        buckets: LengthBuckets,
        pad_id: int,
        workers: int,
        earlier_epochs: int = 0,
        row_states: RowStates | None = None,
    ):
        super().__init__()
        self.examples = examples
        self.member_ids = list(member_ids)
        self.buckets = buckets
        self.pad_id = pad_id
        self.workers = workers
        self.earlier_epochs = earlier_epochs
        self.row_states = row_states
        self.earlier_steps = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return len(self.buckets.slots(1))

    @property
    def epoch(self) -> int:
        """The epoch being trained, 1 for the first, earlier runs included."""
        assert self.trainer is not None
        return self.earlier_epochs + self.trainer.current_epoch + 1

    @property
    def skipped_steps(self) -> int:
        """Steps of the present epoch that an earlier run took."""
        assert self.trainer is not None
        return self.earlier_steps if self.trainer.current_epoch == 0 else 0

    def train_dataloader(self) -> DataLoader:
        """Return this rank's share of each training batch of the epoch that the trainer is about to run."""
        batches = MemberBatches(
            self.examples,
            self.buckets,
            self.member_ids,
            self.epoch,
            self.pad_id,
            share_of_this_rank(),
            self.skipped_steps,
            self.row_states,
        )
        return make_batch_loader(batches, self.workers)
