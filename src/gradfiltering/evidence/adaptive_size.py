"""Ensembles and epoch pairs that say themselves when they suffice: `ensemble.m=auto` and `epochs=auto`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from gradfiltering import requests
from gradfiltering.distributed.process_group import rank
from gradfiltering.ensembles.lora_ensemble import AUTO, EnsembleSettings
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.evidence.gradient_log import LOG, ProxyResult
from gradfiltering.requests import GradientLogPair, Request
from gradfiltering.runs.cache import Workspace
from gradfiltering.runs.gradient_log import GradientLog
from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.stability import FEWEST, expected_overlap, overlap, rank_correlation


@dataclass(frozen=True)
class SettlingEpochs:
    """A pair whose late epoch is the first one that hardly changes the ranking of the epoch before it.

    Attributes:
        early: s, as in `EpochPair`.
        limit: the last epoch that is tried.
        overlap: least Jaccard index of the chosen rows between two successive late epochs.
        correlation: least Spearman correlation between their scores.
    """

    early: int
    limit: int
    overlap: float
    correlation: float

    def __post_init__(self):
        if not 0 <= self.early < self.limit - 1:
            raise UserError(
                f"epochs.early={self.early}, epochs.limit={self.limit}: give 0 <= early and a limit of early + 2 or "
                "more, so that two late epochs can be compared"
            )
        for name in ("overlap", "correlation"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"epochs.{name}={getattr(self, name)}: give a share in (0, 1]")


@dataclass(frozen=True)
class AdaptiveSize:
    """How `ensemble.m=auto` finds the number of members.

    Attributes:
        start: members to begin with.
        step: members to add at a time.
        limit: the most members.
        stability: enough when the rows chosen by an ensemble resampled from the members are expected to overlap this
            much (Jaccard) with those chosen by all of them.
        resamples: ensembles drawn to find that out.
    """

    start: int
    step: int
    limit: int
    stability: float
    resamples: int

    def __post_init__(self):
        if not FEWEST <= self.start <= self.limit:
            raise UserError(
                f"adaptive.start={self.start}, adaptive.limit={self.limit}: give {FEWEST} <= start <= limit (of fewer "
                "members no resample can differ)"
            )
        for name in ("step", "resamples"):
            if getattr(self, name) < 1:
                raise UserError(f"adaptive.{name}={getattr(self, name)}: give a positive number")
        if not 0 < self.stability <= 1:
            raise UserError(f"adaptive.stability={self.stability}: give a share in (0, 1]")

    def fewest(
        self, settings: EnsembleSettings, epochs: SnapshotPair | SettlingEpochs, score_requests: frozenset[Request[Any]]
    ) -> int:
        """The fewest members that a run can end up with.

        Args:
            settings: of the ensemble.
            epochs: the pair.
            score_requests: of the scorer.

        Raises:
            UserError: something is to be found out by scores that do not look at the ensemble.
        """
        asked = [f"ensemble.m={AUTO}"] * (settings.m == AUTO) + ["epochs=auto"] * isinstance(epochs, SettlingEpochs)
        if asked and not any(request.reads_ensemble for request in score_requests):
            raise UserError(
                f"{' and '.join(asked)}: the scores of this run do not depend on the ensemble, so they cannot say when "
                "it suffices; choose a scorer that looks at gradients, such as scorer=gsnr, or give numbers"
            )
        return self.start if settings.m == AUTO else int(settings.m)


class Score(Protocol):
    """Scores all rows by results that an ensemble measured."""

    def __call__(self, results: Mapping[Request[Any], Any]) -> np.ndarray:
        """[N] float64, NaN for a row without a score."""
        ...


@dataclass
class _Rounds:
    """Ensembles made one after the other; the store holds what they share, so each costs only what it adds."""

    make: Callable[..., ProxyResult]
    score: Score
    run_dir: Path
    made: list[ProxyResult] = field(default_factory=list)

    def run(self, settings: EnsembleSettings, pair: SnapshotPair) -> None:
        self.made.append(self.make(settings=settings, epochs=pair))

    def scores(self, pair: SnapshotPair) -> Callable[[np.ndarray], np.ndarray]:
        """Scores by some of the last ensemble's members, by their positions."""
        log = GradientLog(self.run_dir / LOG)
        early, late = log.epoch(pair.early), log.epoch(pair.late)
        projections = self.made[-1].projections

        def by(positions: np.ndarray) -> np.ndarray:
            logs = GradientLogPair(early.select_members(positions), late.select_members(positions))
            results: dict[Request[Any], Any] = {requests.GradientLog(): logs}
            if projections is not None:
                results[requests.Projections()] = projections[positions]
            return self.score(results)

        return by


def settle(
    make: Callable[..., ProxyResult],
    settings: EnsembleSettings,
    epochs: SnapshotPair | SettlingEpochs,
    size: AdaptiveSize,
    score: Score,
    wanted: int,
    workspace: Workspace,
) -> ProxyResult:
    """Makes the ensemble a run asks for; where it asks for `auto`, epoch after epoch, then member after member.

    The late epoch is found with as many members as there are to begin with.

    Args:
        make: trains and logs an ensemble, given `settings` and `epochs`.
        settings: of the ensemble.
        epochs: the pair.
        size: how the number of members is found.
        score: scores all rows.
        wanted: how many rows will be chosen.
        workspace: run folder, where `make` leaves the log, and seed.
    """
    rounds = _Rounds(make, score, workspace.run_dir)
    first = replace(settings, m=size.start) if settings.m == AUTO else settings
    found: dict[str, Any] = {}
    if isinstance(epochs, SettlingEpochs):
        found["epochs"] = _settle_epochs(rounds, first, epochs, wanted)
        epochs = SnapshotPair(epochs.early, found["epochs"]["late"])
    else:
        rounds.run(first, epochs)
    if settings.m == AUTO:
        found["members"] = _grow(rounds, settings, epochs, size, wanted, workspace.seed)
    return replace(total(rounds.made), adaptive=found)


def _settle_epochs(rounds: _Rounds, settings: EnsembleSettings, epochs: SettlingEpochs, wanted: int) -> dict[str, Any]:
    """Trains until an epoch hardly changes the ranking, or to the last one that is to be tried."""
    members, tried, before = np.arange(settings.m), [], None
    for late in range(epochs.early + 1, epochs.limit + 1):
        pair = SnapshotPair(epochs.early, late)
        rounds.run(settings, pair)
        now = rounds.scores(pair)(members)
        if before is not None:
            same, like = overlap(before, now, wanted), rank_correlation(before, now)
            tried.append({"late": late, "overlap": same, "correlation": like})
            said = f"the choice at epoch {late} overlaps that at epoch {late - 1} by {same:.2f}, Spearman {like:.2f}"
            if same >= epochs.overlap and like >= epochs.correlation:
                return _found("epochs", "late", late, f"{said}: the ranking has settled", tried)
            _say(f"epochs=auto: {said}")
        before = now
    return _found("epochs", "late", epochs.limit, "epochs.limit was reached before the ranking settled", tried)


def _grow(
    rounds: _Rounds, settings: EnsembleSettings, pair: SnapshotPair, size: AdaptiveSize, wanted: int, seed: int
) -> dict[str, Any]:
    """Adds members until the choice is stable or there are as many as may be."""
    members, tried = size.start, []
    while True:
        rng = numpy_rng(seed, "adaptive size", members)
        stability = expected_overlap(rounds.scores(pair), members, wanted, size.resamples, rng)
        tried.append({"m": members, "stability": stability})
        said = f"rows chosen by ensembles resampled from {members} members overlap by {stability:.2f}"
        if stability >= size.stability:
            return _found("ensemble", "m", members, f"{said}: the choice is stable", tried)
        if members == size.limit:
            return _found("ensemble", "m", members, f"{said}: adaptive.limit was reached before it was stable", tried)
        _say(f"ensemble.m=auto: {said}")
        members = min(members + size.step, size.limit)
        rounds.run(replace(settings, m=members), pair)


def total(rounds: list[ProxyResult]) -> ProxyResult:
    """The last round, with the cost of all of them; what one of them trained is not reused by the next."""
    last = rounds[-1]
    earlier = sum(one.made_seconds for one in rounds[:-1])
    return replace(
        last,
        seconds=sum(one.seconds for one in rounds),
        tokens=sum(one.tokens for one in rounds),
        batch_tokens=next((one.batch_tokens for one in reversed(rounds) if one.batch_tokens), None),
        trained=sum(one.trained for one in rounds),
        logged=sum(one.logged for one in rounds),
        made_seconds=sum(one.made_seconds for one in rounds),
        reused_seconds=last.reused_seconds - earlier,
        flops=sum(one.flops for one in rounds),
    )


def _found(group: str, name: str, value: int, why: str, tried: list[dict[str, Any]]) -> dict[str, Any]:
    _say(f"{group}.{name}={value}: {why}")
    return {name: value, "why": why, "tried": tried}


def _say(text: str) -> None:
    Console(quiet=rank() > 0).print(text)
