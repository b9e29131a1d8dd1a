"""Score and select: a subset is selected before any target is trained, by default from scores."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gradfiltering.finetuning.fine_tune import FineTuningContext, TrainedModel, fine_tune_all
from gradfiltering.finetuning.training_sets import CANDIDATE, TrainingSet
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores
from gradfiltering.selectors.base import Selection, Selector


@dataclass(frozen=True)
class ScoreAndSelect:
    """Scores rows under the proxy and selects a subset.

    Attributes:
        row_scorer: scores rows where the selector reads scores.
        selector: selects rows.
        selects: False for a run that only scores rows; then the selector requests nothing.
    """

    row_scorer: Scorer
    selector: Selector
    selects: bool = True
    scoring_model: ClassVar[Literal["proxy", "target"]] = "proxy"
    selects_while_training: ClassVar[bool] = False

    @property
    def scorer(self) -> Scorer | None:
        """Scorer of the rows; None where the selector reads no scores."""
        return self.row_scorer if self.selector.uses_scores or not self.selects else None

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """Measurements that scorer and selector read."""
        score_requests = self.scorer.requests if self.scorer is not None else frozenset()
        return score_requests | (self.selector.requests if self.selects else frozenset())

    def budget_rows(self, total_rows: int) -> int:
        """Return how many of `total_rows` rows to select."""
        return self.selector.budget_rows(total_rows)

    def select_rows(self, evidence: Evidence, total_rows: int, scores: Scores | None) -> Selection:
        """Select the subset."""
        return self.selector.select(evidence, total_rows, scores)

    def train_candidate(
        self,
        selection: Selection | None,
        evidence: Evidence,
        total_rows: int,
        scores: Scores | None,
        context: FineTuningContext,
    ) -> tuple[Selection, TrainedModel]:
        """Fine-tune the candidate on the selected rows, or take it from the cache."""
        assert selection is not None, "rows are selected before the target is trained"
        return selection, fine_tune_all({CANDIDATE: TrainingSet(selection.example_ids)}, context)[CANDIDATE]
