"""Ensembles and snapshots that a run finds itself: `ensemble.m=auto`, `epochs=auto` and `epochs=loss_fall`."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Self

import numpy as np

from gradfiltering.ensembles.lora_ensemble import AUTO, LoraEnsemble
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.loss_fall import LossFallSnapshots, find_loss_fall
from gradfiltering.evidence.measurers import (
    BASE_MODEL_STAGE,
    ENSEMBLE_STAGE,
    RunStage,
    StageMeasurements,
    call_without_stage,
    measure_evidence,
    measure_stage,
    sort_requests,
)
from gradfiltering.options import NonNegativeInt, PositiveInt, Share, model_validator, options
from gradfiltering.requests import Evidence, GradientLog, GradientLogPair, Projections, Request, SnapshotUnit
from gradfiltering.runs.logs import announce
from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.stability import MIN_MEMBERS, expected_overlap, jaccard_overlap, score_correlation

# Scores all rows of the evidence: [N] float64, NaN for a row without a score.
ScoreRows = Callable[[Evidence], np.ndarray]


@options
class SettlingSnapshots:
    """A pair whose late epoch is the first that hardly changes the ranking of the epoch before it.

    Attributes:
        early: s, as in `SnapshotPair`.
        limit: the last epoch that is tried.
        overlap: least Jaccard index of the selected rows between two successive late epochs.
        correlation: least Spearman correlation between their scores.
    """

    early: NonNegativeInt = 1
    limit: PositiveInt = 6
    overlap: Share = 0.7
    correlation: Share = 0.9

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        if self.limit < self.early + 2:
            raise UserError(
                f"from the early epoch {self.early} to the limit {self.limit} no two late epochs can be compared; "
                f"raise the limit to {self.early + 2} or more",
                arguments=("early", "limit"),
            )
        return self

    @property
    def unit(self) -> SnapshotUnit:
        """Unit that the pair is counted in."""
        return "epoch"

    @property
    def first_pair(self) -> SnapshotPair:
        """The first pair that is tried."""
        return SnapshotPair(self.early, self.early + 1)


Snapshots = SnapshotPair | SettlingSnapshots | LossFallSnapshots


@options
class AdaptiveSize:
    """The search for the number of members.

    Attributes:
        start: members to begin with.
        step: members to add at a time.
        limit: the most members.
        stability: enough when the rows selected by an ensemble resampled from the members are expected to overlap this
            much (Jaccard) with those selected by all of them.
        resamples: ensembles drawn to estimate that.
    """

    start: PositiveInt = 3
    step: PositiveInt = 2
    limit: PositiveInt = 15
    stability: Share = 0.6
    resamples: PositiveInt = 200

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if not MIN_MEMBERS <= self.start <= self.limit:
            raise UserError(
                f"the search for the number of members must start at {MIN_MEMBERS} or more (resamples of fewer cannot "
                f"differ) and not beyond its limit, got a start of {self.start} and a limit of {self.limit}",
                arguments=("start", "limit"),
            )
        return self

    def fewest_members(
        self,
        ensemble_settings: LoraEnsemble,
        snapshots: Snapshots,
        score_requests: Iterable[Request[Any]],
    ) -> int:
        """Return the fewest members that a run can end up with.

        Args:
            ensemble_settings: of the ensemble.
            snapshots: a pair, or the search for it.
            score_requests: requests of the scorer.

        Raises:
            UserError: a size is searched for by scores that do not read the ensemble.
        """
        searches = ["the number of members"] if ensemble_settings.m == AUTO else []
        searches += ["the late epoch"] if isinstance(snapshots, SettlingSnapshots) else []
        searches += ["the snapshots"] if isinstance(snapshots, LossFallSnapshots) else []
        if searches and not any(request.reads_whole_ensemble for request in score_requests):
            raise UserError(
                f"{' and '.join(searches)} cannot be found automatically: the scores of this run do not depend on the "
                "ensemble; choose a scorer that reads gradients, such as gsnr, or give numbers",
                owner=type(ensemble_settings),
                arguments=("m",) if ensemble_settings.m == AUTO else (),
            )
        return self.start if ensemble_settings.m == AUTO else int(ensemble_settings.m)


def measure_settled_evidence(
    requests: Iterable[Request[Any]],
    context: MeasurementContext,
    snapshots: Snapshots,
    size: AdaptiveSize,
    score_rows: ScoreRows,
    selected_rows: int,
    run_stage: RunStage = call_without_stage,
) -> tuple[Evidence, MeasurementContext]:
    """Measure evidence with an ensemble whose number of members or late epoch may have to be found first.

    The late epoch is found with as many members as the search starts with. The cache holds what successive ensembles
    share, so each costs only what it adds.

    Args:
        requests, run_stage: see `measure_evidence`.
        context: its ensemble and snapshots are replaced by those that are found.
        snapshots: a pair, or the search for it.
        size: the search for the number of members, where that is `auto`.
        score_rows: scores all rows.
        selected_rows: number of rows that will be selected.

    Returns:
        The evidence, and the context with the ensemble and snapshots that it is of.
    """
    all_requests = [request for stage_requests in sort_requests(requests).values() for request in stage_requests]
    if isinstance(snapshots, SnapshotPair):
        context = replace(context, snapshots=snapshots).settle_snapshots()
        snapshots = context.snapshots
        if context.ensemble.m != AUTO:
            return measure_evidence(all_requests, context, run_stage=run_stage), context
    stages = sort_requests(all_requests)
    base_model_requests = stages.get(BASE_MODEL_STAGE, [])
    evidence = measure_evidence(base_model_requests, context, run_stage=run_stage)
    search = _SizeSearch(stages.get(ENSEMBLE_STAGE, []), context, evidence, size, score_rows, selected_rows)
    settled: StageMeasurements = run_stage(ENSEMBLE_STAGE, search.settle, snapshots)
    evidence = evidence.add_results(settled.results)
    return measure_evidence(all_requests, search.context, evidence, run_stage), search.context


class _SizeSearch:
    """Measures ensembles one after the other, until the selection hardly changes.

    Attributes:
        context: with the ensemble and snapshots that were measured last.
        measurements: of that ensemble.
    """

    def __init__(
        self,
        requests: list[Request[Any]],
        context: MeasurementContext,
        evidence: Evidence,
        size: AdaptiveSize,
        score_rows: ScoreRows,
        selected_rows: int,
    ):
        self.requests = requests
        self.context = context
        self.evidence = evidence
        self.size = size
        self.score_rows = score_rows
        self.selected_rows = selected_rows
        self.measurements = StageMeasurements()

    def settle(self, snapshots: Snapshots) -> StageMeasurements:
        """Find late epoch and number of members, as far as they are open."""
        findings: dict[str, Any] = {}
        is_open = self.context.ensemble.m == AUTO
        ensemble_settings = replace(self.context.ensemble, m=self.size.start) if is_open else self.context.ensemble
        if isinstance(snapshots, SettlingSnapshots):
            findings["epochs"] = self._settle_late_epoch(ensemble_settings, snapshots)
        elif isinstance(snapshots, LossFallSnapshots):
            search_context = replace(self.context, ensemble=ensemble_settings)
            pair, findings["epochs"] = find_loss_fall(snapshots, search_context)
            announce(
                f"snapshots after {pair.early} and {pair.late} updates, since {snapshots.early:.0%} and "
                f"{snapshots.late:.0%} of the fall in held-out loss have happened by then"
            )
            self._measure(ensemble_settings, pair)
        else:
            self._measure(ensemble_settings, snapshots)
        if is_open:
            findings["members"] = self._grow()
        self.context.reports.ensemble.adaptive = findings
        return self.measurements

    def _measure(self, ensemble_settings: LoraEnsemble, snapshots: SnapshotPair) -> None:
        self.context = replace(self.context, ensemble=ensemble_settings, snapshots=snapshots)
        self.measurements = measure_stage(ENSEMBLE_STAGE, self.requests, self.context)

    def _score_by_members(self, member_indices: np.ndarray) -> np.ndarray:
        """Score all rows by some of the last ensemble's members, one of them perhaps several times."""
        results = dict(self.measurements.results)
        logs: GradientLogPair = results[GradientLog()]
        results[GradientLog()] = GradientLogPair(
            logs.early.select_members(member_indices), logs.late.select_members(member_indices)
        )
        if Projections() in results:
            results[Projections()] = results[Projections()][member_indices]
        return self.score_rows(self.evidence.add_results(results))

    def _settle_late_epoch(self, ensemble_settings: LoraEnsemble, snapshots: SettlingSnapshots) -> dict[str, Any]:
        """Train until an epoch hardly changes the ranking, or to the last one that may be tried."""
        member_indices = np.arange(len(ensemble_settings.member_ids))
        comparisons: list[dict[str, Any]] = []
        earlier_scores: np.ndarray | None = None
        for late_epoch in range(snapshots.early + 1, snapshots.limit + 1):
            self._measure(ensemble_settings, SnapshotPair(snapshots.early, late_epoch))
            scores = self._score_by_members(member_indices)
            if earlier_scores is not None:
                selection_overlap = jaccard_overlap(earlier_scores, scores, self.selected_rows)
                correlation = score_correlation(earlier_scores, scores)
                comparisons.append({"late": late_epoch, "overlap": selection_overlap, "correlation": correlation})
                comparison = (
                    f"the selection at epoch {late_epoch} overlaps that at epoch {late_epoch - 1} by "
                    f"{selection_overlap:.2f}, Spearman {correlation:.2f}"
                )
                if selection_overlap >= snapshots.overlap and correlation >= snapshots.correlation:
                    reason = f"{comparison}: the ranking has settled"
                    return _announce_finding("late", "late epoch", late_epoch, reason, comparisons)
                announce(f"looking for the late epoch: {comparison}")
            earlier_scores = scores
        reason = "the limit was reached before the ranking settled"
        return _announce_finding("late", "late epoch", snapshots.limit, reason, comparisons)

    def _grow(self) -> dict[str, Any]:
        """Add members until the selection is stable or there are as many as may be."""
        members, size = self.size.start, self.size
        trials: list[dict[str, Any]] = []
        while True:
            rng = numpy_rng(self.context.seed, "adaptive size", members)
            stability = expected_overlap(self._score_by_members, members, self.selected_rows, size.resamples, rng)
            trials.append({"m": members, "stability": stability})
            trial = f"rows selected by ensembles resampled from {members} members overlap by {stability:.2f}"
            if stability >= size.stability:
                return _announce_finding("m", "members", members, f"{trial}: the selection is stable", trials)
            if members == size.limit:
                reason = f"{trial}: the limit was reached before the selection was stable"
                return _announce_finding("m", "members", members, reason, trials)
            announce(f"looking for the number of members: {trial}")
            members = min(members + size.step, size.limit)
            self._measure(replace(self.context.ensemble, m=members), self.context.snapshots)


def _announce_finding(key: str, name: str, value: int, reason: str, trials: list[dict[str, Any]]) -> dict[str, Any]:
    announce(f"{name}: {value}, since {reason}")
    return {key: value, "why": reason, "tried": trials}
