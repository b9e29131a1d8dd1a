"""LightningDataModule of an ensemble: each member's training batches."""

from collections.abc import Sequence

import lightning as L
from torch.utils.data import DataLoader

from gradfiltering.data.batches import Batch, MemberBatches, RowStates, make_batch_loader
from gradfiltering.data.examples import Examples
from gradfiltering.data.length_buckets import LengthBuckets
from gradfiltering.distributed.row_measurements import share_of_this_rank
from gradfiltering.ensembles.proxy_ensemble import ProxyEnsemble
from gradfiltering.ensembles.snapshots import TrainingStretch


class EnsembleDataModule(L.LightningDataModule):
    """Feeds M members, each with its own order of rows.

    Args:
        examples: rows to train on.
        member_ids: members of the stack, in order.
        buckets: rows grouped by length, which decide each member's batches.
        pad_id: token id for padding.
        workers: processes that prepare batches.
        stretches: of the training, one for each epoch of the trainer.
        row_states: what the layers below the first adapter hand on of each row; None where it is not kept.
    """

    def __init__(
        self,
        examples: Examples,
        member_ids: Sequence[int],
        buckets: LengthBuckets,
        pad_id: int,
        workers: int,
        stretches: Sequence[TrainingStretch],
        row_states: RowStates | None = None,
    ):
        super().__init__()
        self.examples = examples
        self.member_ids = list(member_ids)
        self.buckets = buckets
        self.pad_id = pad_id
        self.workers = workers
        self.stretches = stretches
        self.row_states = row_states

    @property
    def stretch(self) -> TrainingStretch:
        """The stretch that the trainer is in, or about to begin."""
        assert self.trainer is not None
        return self.stretches[self.trainer.current_epoch]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's share of each training batch from the updates made so far to the end of the stretch.

        An interrupted run may have made some updates of the first stretch.
        """
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, ProxyEnsemble)
        batches = MemberBatches(
            self.examples,
            self.buckets,
            self.member_ids,
            module.steps_taken,
            self.stretch.last_update,
            self.pad_id,
            share_of_this_rank(),
            self.row_states,
        )
        return make_batch_loader(batches, self.workers)
