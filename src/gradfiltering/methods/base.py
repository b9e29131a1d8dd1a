"""The protocol of methods: ways to arrive at a subset, and at a target that was trained on it."""

from typing import Any, Literal, Protocol

from gradfiltering.finetuning.fine_tune import FineTuningContext, TrainedModel
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores
from gradfiltering.selectors.base import Selection


class Method(Protocol):
    """Selects rows before the target is trained, or while it trains."""

    @property
    def scoring_model(self) -> Literal["proxy", "target"]:
        """The base model that rows are measured with."""
        ...

    @property
    def selects_while_training(self) -> bool:
        """True where rows are selected while the target trains, False where the subset comes first."""
        ...

    @property
    def scorer(self) -> Scorer | None:
        """Scorer of the rows; None where nothing reads scores."""
        ...

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Measurements of the rows that the method reads, those of its scorer included."""
        ...

    def budget_rows(self, total_rows: int) -> int:
        """Return how many of `total_rows` rows to select.

        Raises:
            UserError: no row at all, or more rows than there are.
        """
        ...

    def select_rows(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection | None:
        """Select rows before any target is trained; None for a method that selects while the target trains.

        Args:
            evidence: about the N rows that can be scored.
            total_rows: all rows of the dataset, unscored ones included; budgets count these.
            scores: by the method's scorer, None where it has none.
        """
        ...

    def train_candidate(
        self,
        selection: Selection | None,
        evidence: Evidence,
        total_rows: int,
        scores: Scores | None,
        context: FineTuningContext,
    ) -> tuple[Selection, TrainedModel]:
        """Train the candidate, or take it from the cache; return it with the rows it was trained on.

        Args:
            selection: returned by `select_rows`.
            evidence, total_rows, scores: see `select_rows`.
            context: base model and settings of the training.
        """
        ...
