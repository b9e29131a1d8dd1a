"""Members that differ in the rows they learn from: bagging (Breiman, 1996) of LoRA adapters."""

from dataclasses import dataclass
from typing import Any, ClassVar

from gradfiltering.ensembles.lora_ensemble import EnsembleSettings


@dataclass(frozen=True)
class BootstrapEnsemble(EnsembleSettings):
    """M members, each trained on N rows drawn with replacement from the N rows there are, and measured on all N.

    Member m draws its rows once, from (seed, m), whatever M is, and goes through them in every epoch in a new order. It
    starts from the same adapter as member m of the LoRA ensemble and follows the same sequence of lengths: the two
    differ in the rows alone, so that what resampling adds to their disagreement can be told. (With one start for all
    members the variance would be of the rows alone, but not comparable with the LoRA ensemble's.) About 37 % of the
    rows a member never sees: its norm on those is that of a held-out row.
    """

    resampled: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self.refuse_online(
            "a member's training steps reach only about 63 % of the rows, and some of those several times"
        )

    def trained_by(self) -> dict[str, Any]:
        """The settings by which trained members are told apart in the store."""
        return {**super().trained_by(), "resampled": True}
