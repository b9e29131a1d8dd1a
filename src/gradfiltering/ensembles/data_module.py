"""LightningDataModule of an ensemble: each member's training batches."""

from collections.abc import Sequence

import lightning as L
from torch.utils.data import DataLoader

from gradfiltering.data.batches import Batch, MemberBatches, RowStates, make_batch_loader
from gradfiltering.data.examples import Examples
from gradfiltering.data.length_buckets import LengthBuckets
from gradfiltering.distributed.row_measurements import share_of_this_rank
from gradfiltering.ensembles.snapshots import Timeline


class EnsembleDataModule(L.LightningDataModule):
    """Feeds M members, each with its own order of rows.

    Args:
        examples: rows to train on.
        member_ids: members of the stack, in order.
        buckets: rows grouped by length, which decide each member's batches.
        pad_id: token id for padding.
        workers: processes that prepare batches.
        start_moment: that training goes on from.
        row_states: what the layers below the first adapter hand on of each row; None where it is not kept.
        timeline: moments at which members are stored; None for the ends of epochs.

    Attributes:
        earlier_steps: steps from `start_moment` on that a run took which was interrupted.
    """

    def __init__(
        self,
        examples: Examples,
        member_ids: Sequence[int],
        buckets: LengthBuckets,
        pad_id: int,
        workers: int,
        start_moment: int = 0,
        row_states: RowStates | None = None,
        timeline: Timeline | None = None,
    ):
        super().__init__()
        self.examples = examples
        self.member_ids = list(member_ids)
        self.buckets = buckets
        self.pad_id = pad_id
        self.workers = workers
        self.timeline = Timeline(buckets.steps_per_epoch) if timeline is None else timeline
        self.start_moment = start_moment
        self.row_states = row_states
        self.earlier_steps = 0

    @property
    def moment(self) -> int:
        """The moment that is trained to, the end of an epoch or a number of updates."""
        assert self.trainer is not None
        return self._find_moment(self.trainer.current_epoch)

    @property
    def first_update(self) -> int:
        """Updates made by the moment before."""
        assert self.trainer is not None
        if self.trainer.current_epoch == 0:
            return self.timeline.count_updates(self.start_moment)
        return self.timeline.count_updates(self._find_moment(self.trainer.current_epoch - 1))

    @property
    def step_count(self) -> int:
        """Optimiser steps from the moment before to that which is trained to."""
        return self.timeline.count_updates(self.moment) - self.first_update

    @property
    def skipped_steps(self) -> int:
        """Those of these steps that an earlier run took."""
        assert self.trainer is not None
        return self.earlier_steps if self.trainer.current_epoch == 0 else 0

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's share of each training batch from here to the next moment."""
        batches = MemberBatches(
            self.examples,
            self.buckets,
            self.member_ids,
            self.first_update + self.skipped_steps,
            self.timeline.count_updates(self.moment),
            self.pad_id,
            share_of_this_rank(),
            self.row_states,
        )
        return make_batch_loader(batches, self.workers)

    def _find_moment(self, stretch_index: int) -> int:
        if self.timeline.unit == "epoch":
            return self.start_moment + stretch_index + 1
        return self.timeline.list_moments(self.start_moment, self.timeline.stored_updates[-1])[stretch_index]
