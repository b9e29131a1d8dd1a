"""Diagnostics that failed, and whether a subset may be used in spite of that."""

from dataclasses import dataclass

# Name -> why a subset whose run fails it is not to be used, whatever its results look like.
FORBIDDING_DIAGNOSTICS = {
    "proxy_knowledge": "a proxy that guesses has gradients which say nothing of the rows",
    "heldout_loss_fell": "the ensemble learned nothing that holds beyond its rows, so that its gradients say nothing",
    "norms_fell": "a drop of norms that hardly ever happened puts the rows into no meaningful order",
    "scores_differ": "rows of equal score are selected by their number",
}
# Name -> why it makes a result doubtful, without forbidding the use of the subset.
DOUBTING_DIAGNOSTICS = {
    "norm_drop": "norms rose for many rows, where dividing by a small variance turns the order over",
    "member_disagreement": "members that hardly disagree give a variance that says little",
    "adapter_growth": "the first-order picture holds for small adapters",
    "member_agreement": "members that rank the rows differently give a chance order",
    "heldout_loss_stays_down": "members that learn their rows by heart rank them by that",
    "negative_scores": "rows were selected that the score speaks against",
    "length_correlation": "the score may be one of length",
    "easiness": "the selected rows may be trivial",
    "source_spread": "the selected rows leave out much of the pool",
    "judged_on_validation": "the rows were selected for the very prompts that they are tested on",
}


@dataclass(frozen=True)
class FailedDiagnostic:
    """A diagnostic beyond its limit.

    Attributes:
        name: one of `FORBIDDING_DIAGNOSTICS` or `DOUBTING_DIAGNOSTICS`.
        warning: problem and remedy in words.

    Raises:
        ValueError: the name is in neither of them.
    """

    name: str
    warning: str

    def __post_init__(self) -> None:
        if self.name not in FORBIDDING_DIAGNOSTICS.keys() | DOUBTING_DIAGNOSTICS.keys():
            raise ValueError(f"{self.name} is no known diagnostic")

    @property
    def forbids_use(self) -> bool:
        """True where the subset is not to be used, whatever its results look like."""
        return self.name in FORBIDDING_DIAGNOSTICS
