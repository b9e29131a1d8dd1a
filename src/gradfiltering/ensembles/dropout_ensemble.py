"""One trained member, measured M times with dropout: Monte-Carlo dropout (Gal and Ghahramani, ICML 2016)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradfiltering.ensembles.lora_ensemble import EnsembleSettings, Reading
from gradfiltering.errors import UserError
from gradfiltering.gradients.dropout import Dropout


@dataclass(frozen=True)
class DropoutEnsemble(EnsembleSettings):
    """M passes over one trained member, each with other inputs of its adapter dropped; see `proxy/dropout.py`.

    Only LoRA's own dropout, on what the adapters read, is used: the frozen backbone is the same in every pass, as it is
    for every member of the LoRA ensemble. The masks depend on seed, pass, epoch and example, on nothing else. Before
    training (epoch 0) a pass drops inputs as well.

    Attributes:
        dropout: probability of an input to be dropped when norms are measured. At 0 all passes are the same.
        train_dropout: the same in training. At 0 the trained member is member 0 of the LoRA ensemble, and shared with
            it; the theory behind the method asks for as much as in measuring.
    """

    dropout: float
    train_dropout: float

    def __post_init__(self):
        super().__post_init__()
        for name in ("dropout", "train_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"ensemble.{name}={getattr(self, name)}: give a probability from 0 to below 1")
        self.refuse_online("a training step measures each row once, and the passes are several")

    @property
    def trained_members(self) -> range:
        """One member, whatever the number of passes."""
        return range(1)

    def reading(self, member: int, epoch: int, steps: int) -> Reading:
        """The trained member, in a pass of its own."""
        return Reading(0, dropout=(self.dropout, member) if self.dropout else None)

    def trained_by(self) -> dict[str, Any]:
        """The settings by which trained members are told apart: dropout in measuring changes no training."""
        found = super().trained_by()
        without = ("dropout",) if self.train_dropout else ("dropout", "train_dropout")
        return {name: value for name, value in found.items() if name not in without}

    def training_dropout(self, members: Sequence[int], epoch: int, seed: int) -> Dropout | None:
        """Masks of the training steps, independent of those of any pass."""
        streams = tuple(f"training {member}" for member in members)
        return Dropout(self.train_dropout, seed, streams, epoch) if self.train_dropout else None
