"""One trained member, measured M times with dropout: Monte-Carlo dropout (Gal and Ghahramani, ICML 2016)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from gradfiltering.ensembles.lora_ensemble import DropoutPass, LoraEnsemble, SnapshotMeasurement
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.options import ShareBelowOne, options


@options
class DropoutEnsemble(LoraEnsemble):
    """M passes over one trained member, each with other inputs of its adapter dropped (`gradients.dropout`).

    Only LoRA's own dropout, on the inputs of the adapters, is used: the frozen base model is the same in every pass, as
    it is for every member of the LoRA ensemble. The masks depend on seed, pass, epoch and example, on nothing else.
    Before training (epoch 0) a pass drops inputs as well.

    Attributes:
        dropout: probability of an input to be dropped when norms are measured. At 0 all passes are the same.
        train_dropout: the same in training. At 0 the trained member is member 0 of the LoRA ensemble, and shared with
            it; the theory behind the method asks for as much as in measuring.
    """

    dropout: ShareBelowOne
    train_dropout: ShareBelowOne

    @property
    def online_obstacle(self) -> str:
        """Why the norms of the training steps are not those of the passes."""
        return "a training step measures each row once, and the passes are several"

    def single_member(self) -> Self:
        """Return the settings of one member that is trained alike and measured without dropout."""
        return replace(super().single_member(), dropout=0.0)

    @property
    def trained_member_ids(self) -> range:
        """One member, whatever the number of passes."""
        return range(1)

    def describe_measurement(self, member_id: int, moment: int, steps_per_epoch: int) -> SnapshotMeasurement:
        """Describe the pass of a member: the trained member with dropout of its own."""
        return SnapshotMeasurement(0, dropout=DropoutPass(self.dropout, member_id) if self.dropout else None)

    def training_key(self) -> dict[str, Any]:
        """Return the settings that tell trained members apart: dropout in measuring changes no training."""
        irrelevant_names = ("dropout",) if self.train_dropout else ("dropout", "train_dropout")
        return {name: value for name, value in super().training_key().items() if name not in irrelevant_names}

    def training_dropout(self, member_ids: Sequence[int], epoch: int, seed: int) -> Dropout | None:
        """Return masks of the training steps, independent of those of any pass."""
        mask_streams = tuple(f"training {member_id}" for member_id in member_ids)
        return Dropout(self.train_dropout, seed, mask_streams, epoch) if self.train_dropout else None
