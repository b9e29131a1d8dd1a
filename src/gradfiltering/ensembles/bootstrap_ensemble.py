"""Members that differ in the rows they learn from: bagging (Breiman, 1996) of LoRA adapters."""

from typing import Any, ClassVar

from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.options import options


@options
class BootstrapEnsemble(LoraEnsemble):
    """M members, each trained on N rows drawn with replacement from the N rows, and measured on all N.

    Member m draws its rows once, from (seed, m), whatever M is, and goes through them in every epoch in a new order. It
    starts from the same adapter as member m of the LoRA ensemble and follows the same sequence of lengths: the two
    differ in the rows alone, which isolates the disagreement that resampling adds. (With one start for all members the
    variance would come from the rows alone, but could not be compared with the LoRA ensemble's.) A member never sees
    about 37 % of the rows: its norm on those is that of a held-out row.
    """

    resamples_rows: ClassVar[bool] = True

    @property
    def online_obstacle(self) -> str:
        """Why the norms of the training steps are not those of all rows."""
        return "a member trains on about 63 % of the rows, and on some of those several times"

    def training_key(self) -> dict[str, Any]:
        """Return the settings that tell trained members apart in the cache."""
        return {**super().training_key(), "resampled": True}
