"""Diagnostics of a run: numbers that show when a score cannot be trusted, and their limits."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Le

from gradfiltering.diagnostics.failures import FailedDiagnostic
from gradfiltering.options import Correlation, NonNegativeFloat, OpenShare, PositiveInt, Probability, options


@options
class DiagnosticLimits:
    """Limits beyond which a diagnostic becomes a warning.

    Attributes:
        positive_drop_share: least share of examples whose mean norm falls.
        median_relative_drop: least median of (G_s − G_t)/G_s.
        relative_variance: least median of V_t/G_t²; below it the members hardly disagree.
        update_ratio: most ‖ΔW‖/‖W‖; above it the first-order picture is doubtful.
        negative_selected_share: most share of negative scores among the selected rows, for scores
            whose sign has a meaning.
        length_correlation: most |Spearman| of score and response length.
        member_agreement: least mean Spearman between two members' own rankings.
        source_spread: least effective number of sources of the subset, as a share of the pool's.
        chance_loss_share: most loss of the proxy without adapters, as a share of what guessing among
            its tokens costs; above it the proxy knows little of the rows.
        unknown_token_share: most share of the rows' tokens that are unknown to the proxy.
        easiness: least ratio of the subset's loss under the base model to the pool's.
        bootstrap: resamples of the intervals where planted kinds are known.
        confidence: probability mass of those intervals.
    """

    positive_drop_share: Probability = 0.5
    median_relative_drop: Annotated[float, Le(1)] = 0.0
    relative_variance: NonNegativeFloat = 0.005
    update_ratio: NonNegativeFloat = 0.5
    negative_selected_share: Probability = 0.0
    length_correlation: Probability = 0.7
    member_agreement: Correlation = 0.1
    source_spread: Probability = 0.5
    chance_loss_share: NonNegativeFloat = 0.75
    unknown_token_share: Probability = 0.05
    easiness: NonNegativeFloat = 0.5
    bootstrap: PositiveInt = 1000
    confidence: OpenShare = 0.95


@dataclass(frozen=True)
class Diagnostics:
    """Values by name, and the diagnostics whose limit is crossed."""

    values: dict[str, Any] = field(default_factory=dict)
    failed: list[FailedDiagnostic] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """A sentence for each limit that is crossed."""
        return [diagnostic.warning for diagnostic in self.failed]
