"""What a run should watch: numbers that show when a score cannot be trusted, each with a limit and a remedy."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import rankdata

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.examples import Examples
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.evidence.context import EnsembleReport
from gradfiltering.requests import EpochLog, GradientLogPair, LossMeasurement
from gradfiltering.scorers.base import Scores
from gradfiltering.seeding import numpy_rng

MOST_SOURCES = 100
# What a score below 0 says, by the statistics that its scorer leaves beside it. Where none of them fit, 0 parts nothing
# (a rank, a length, a distance to the middle) and the sign is not reported.
BELOW_ZERO = {
    ("g_early", "g_late"): "their norms rose. Lower selector.fraction or choose a later epoch pair",
    ("loss_early", "loss_late"): "the members' loss on them rose. Lower selector.fraction or choose a later epoch pair",
    ("ifd", "loss_alone"): "their IFD is not below scorer.keep_below. Lower selector.fraction",
}


@dataclass(frozen=True)
class Limits:
    """Limits beyond which a diagnostic becomes a warning.

    Attributes:
        positive_drop_share: least share of examples whose mean norm falls.
        median_relative_drop: least median of (G_s − G_t)/G_s.
        relative_variance: least median of V_t/G_t²; below it the members hardly disagree.
        update_ratio: most ‖ΔW‖/‖W‖; above it the first-order picture is doubtful.
        negative_selected_share: most share of negative scores among the chosen, where the sign says something.
        length_correlation: most |Spearman| of score and response length.
        member_agreement: least mean Spearman between two members' own rankings.
        source_spread: least effective number of sources among the chosen, as a share of the pool's.
        easiness: least ratio of the subset's loss under the bare proxy to the pool's.
        bootstrap: resamples of the intervals where planted kinds are known.
        confidence: of those intervals.
    """

    positive_drop_share: float
    median_relative_drop: float
    relative_variance: float
    update_ratio: float
    negative_selected_share: float
    length_correlation: float
    member_agreement: float
    source_spread: float
    easiness: float
    bootstrap: int
    confidence: float


@dataclass(frozen=True)
class Diagnostics:
    """Values by name, and a sentence for each limit that is crossed."""

    values: dict[str, Any]
    warnings: list[str]


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation; None where one side does not vary."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def diagnose_ensemble(
    logs: GradientLogPair, epochs: SnapshotPair, trained: EnsembleReport, bare: LossMeasurement, limits: Limits
) -> Diagnostics:
    """Is the ensemble in a state in which norms and their variance mean what the score takes them to mean?

    Args:
        logs: gradient log of the run at both snapshots.
        epochs: the compared snapshots.
        trained: growth of the adapters and held-out losses.
        bare: losses under the backbone without adapters.
        limits: when to warn.
    """
    early, late = logs.early, logs.late
    snapshot_logs = {str(epochs.early): early, str(epochs.late): late}
    g_early, g_late = (one.grad_norm.astype(np.float64).mean(0) for one in (early, late))
    relative_drop = (g_early - g_late) / np.maximum(g_early, np.finfo(float).tiny)
    values: dict[str, Any] = {
        "positive_drop_share": float((relative_drop > 0).mean()),
        "median_relative_drop": float(np.median(relative_drop)),
        "relative_variance": {epoch: _relative_variance(log) for epoch, log in snapshot_logs.items()},
        "update_ratio": {str(epoch): float(np.mean(ratios)) for epoch, ratios in trained.update_ratios.items()},
        "member_agreement": _member_agreement(early, late),
        "train_loss": {epoch: float(log.loss.mean(dtype=np.float64)) for epoch, log in snapshot_logs.items()},
        "heldout_loss": {
            "bare": bare.heldout_loss,
            **{str(epoch): loss for epoch, loss in trained.heldout_losses.items()},
        },
    }
    return Diagnostics(values, _ensemble_warnings(values, epochs, limits))


def diagnose_subset(
    chosen: Sequence[int],
    examples: Examples,
    records: InstructionDataset,
    scores: Scores | None,
    bare: LossMeasurement | None,
    seed: int,
    limits: Limits,
) -> Diagnostics:
    """All there is to say about a subset: what the score preferred, what is covered, and how much of it was planted.

    Args:
        chosen: example ids of the subset.
        examples: the N rows that can be scored.
        records: all rows, with what is known of them.
        scores: see `of_selection`.
        bare: see `of_selection`.
        seed: of bootstrap resamples.
        limits: when to warn.
    """
    parts = (
        diagnose_score_preference(examples, chosen, scores, bare, limits),
        diagnose_sources(records.sources, chosen, limits),
        compare_with_truth(records.kinds, chosen, scores, seed, limits),
    )
    values = {name: value for part in parts for name, value in part.values.items()}
    return Diagnostics(values, [warning for part in parts for warning in part.warnings])


def diagnose_score_preference(
    examples: Examples, chosen: Sequence[int], scores: Scores | None, bare: LossMeasurement | None, limits: Limits
) -> Diagnostics:
    """What kind of rows did the score prefer?

    Args:
        examples: the N rows that can be scored.
        chosen: example ids of the subset.
        scores: of these rows, or of most of them; None for a selector that needs none.
        bare: losses under the backbone without adapters, where they were measured.
        limits: when to warn.
    """
    response_tokens = examples.response_tokens.astype(np.float64)
    bare_loss = None if bare is None else bare.row_losses
    inside = np.isin(examples.example_ids, np.asarray(chosen))
    values: dict[str, Any] = {
        "response_tokens": {"pool": float(response_tokens.mean()), "selected": float(response_tokens[inside].mean())}
    }
    warnings = []
    if scores is not None:
        scored = np.isin(examples.example_ids, scores.example_ids)
        below_zero = describe_negative_scores(scores)
        if below_zero is not None:
            values["negative_selected_share"] = float((scores.score[inside[scored]] < 0).mean())
        loss = None if bare_loss is None else bare_loss[scored]
        against = {"response_tokens": response_tokens[scored], "bare_loss": loss, **scores.columns}
        values["score_spearman"] = {
            name: spearman(scores.score, column)
            for name, column in against.items()
            if column is not None and np.isfinite(column).all()
        }
        warnings += _score_warnings(values, below_zero, limits)
    if bare_loss is not None:
        values["easiness"] = float(bare_loss[inside].mean() / bare_loss.mean())
        if values["easiness"] < limits.easiness:
            warnings.append(
                f"the chosen rows are trivially easy: their loss under the bare proxy is {values['easiness']:.2f} of "
                f"the pool's (limit {limits.easiness}); raise selector.fraction, or compare with scorer=random"
            )
    return Diagnostics(values, warnings)


def describe_negative_scores(scores: Scores) -> str | None:
    """What a negative score says and what to do about it; None where the sign says nothing."""
    if any(name.startswith("influence_") for name in scores.columns):
        return "their updates point away from the validation rows of every task. Lower selector.fraction"
    return next((words for names, words in BELOW_ZERO.items() if set(names) <= scores.columns.keys()), None)


def diagnose_sources(sources: Sequence[str] | None, chosen: Sequence[int], limits: Limits) -> Diagnostics:
    """Does the subset still cover what the pool covers?

    Gives `sources.share` of each source in the pool and among the chosen, and `sources.effective`: exp of the entropy
    of the chosen shares, as a share of the pool's. 1 means that the subset is spread like the pool, 1/k that it is as
    narrow as one of k even sources.

    Args:
        sources: source of every row of the dataset, None where rows name none; with more than a hundred different ones
            nothing is reported.
        chosen: example ids of the subset.
        limits: when to warn.
    """
    if sources is None:
        return Diagnostics({}, [])
    names, found = np.unique(np.asarray(sources), return_inverse=True)
    if len(names) > MOST_SOURCES:  # document ids or addresses rather than sources
        return Diagnostics({}, [])
    pool = np.bincount(found, minlength=len(names)) / len(found)
    inside = np.bincount(found[np.asarray(chosen, dtype=np.int64)], minlength=len(names)) / len(chosen)
    share = {
        str(name): {"pool": float(pool[place]), "selected": float(inside[place])} for place, name in enumerate(names)
    }
    effective = _perplexity(inside) / _perplexity(pool)
    warnings = []
    if effective < limits.source_spread:
        warnings.append(
            f"the subset is narrow: its rows are spread over {effective:.0%} as many sources as the pool's (limit "
            f"{limits.source_spread:.0%}); raise selector.fraction, or compare with scorer=random"
        )
    return Diagnostics({"sources": {"share": share, "effective": effective}}, warnings)


def _perplexity(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def compare_with_truth(
    kinds: Sequence[str] | None, chosen: Sequence[int], scores: Scores | None, seed: int, limits: Limits
) -> Diagnostics:
    """How the choice compares with the planted truth, for this scorer and for random scores.

    Gives `truth.share` of each kind in the pool and among the chosen (with a bootstrap interval), and `truth.auc` of
    clean over planted rows: the chance that a clean row scores above a planted one.

    Args:
        kinds: planted kind of every row of the dataset, None where nothing is known.
        chosen: example ids of the subset.
        scores: of the rows that can be scored, or None.
        seed: of the bootstrap and of the random scores.
        limits: bootstrap resamples and confidence.
    """
    if kinds is None:
        return Diagnostics({}, [])
    names = np.asarray(kinds)
    rng = numpy_rng(seed, "truth bootstrap")
    inside = names[np.asarray(chosen, dtype=np.int64)]
    share = {}
    for kind in sorted(set(kinds)):
        hits = int((inside == kind).sum())
        draws = rng.binomial(len(inside), hits / len(inside), limits.bootstrap) / len(inside)
        low, high = _interval(draws, limits.confidence)
        share[kind] = {
            "pool": float((names == kind).mean()),
            "selected": hits / len(inside),
            "low": low,
            "high": high,
        }
    found: dict[str, Any] = {"share": share, "auc": {}}
    if scores is not None:
        clean = names[scores.example_ids] == "clean"
        if clean.any() and not clean.all():
            noise = numpy_rng(seed, "random baseline").random(len(scores.score))
            for name, score in (("scorer", scores.score), ("random", noise)):
                found["auc"][name] = auc_interval(score, clean, limits, numpy_rng(seed, "auc bootstrap"))
    return Diagnostics({"truth": found}, [])


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counted half."""
    ranks = rankdata(score)
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def auc_interval(score: np.ndarray, positive: np.ndarray, limits: Limits, rng: np.random.Generator) -> dict[str, float]:
    """AUC with a bootstrap interval over examples, resampled within each class."""
    above, below = score[positive], score[~positive]
    order = np.argsort(below)
    place = np.argsort(order)  # of each negative among them in order
    # A positive's place among the sorted negatives is the same in every resample; how often each is drawn is not.
    lower, upper = (np.searchsorted(below[order], above, side) for side in ("left", "right"))
    draws = np.empty(limits.bootstrap)
    for number in range(limits.bootstrap):
        positives = rng.integers(len(above), size=len(above))
        negatives = rng.integers(len(below), size=len(below))
        drawn = np.concatenate([[0], np.bincount(place[negatives], minlength=len(below)).cumsum()])  # [n_neg + 1]
        wins = (drawn[lower] + drawn[upper])[positives].sum() / 2
        draws[number] = wins / (len(above) * len(below))
    low, high = _interval(draws, limits.confidence)
    return {"value": auc(score, positive), "low": low, "high": high}


def _interval(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _relative_variance(epoch: EpochLog) -> float | None:
    norms = epoch.grad_norm.astype(np.float64)
    square = np.maximum(np.square(norms.mean(0)), np.finfo(float).tiny)
    return float(np.median(norms.var(0) / square)) if len(norms) > 1 else None


def _member_agreement(early: EpochLog, late: EpochLog) -> float | None:
    """Mean Spearman, over pairs of members, of each member's own relative drops."""
    before, after = (one.grad_norm.astype(np.float64) for one in (early, late))
    drops = (before - after) / np.maximum(before, np.finfo(float).tiny)
    pairs = [spearman(drops[a], drops[b]) for a, b in combinations(range(len(drops)), 2)]
    known = [value for value in pairs if value is not None]
    return float(np.mean(known)) if known else None


def _ensemble_warnings(values: dict[str, Any], epochs: SnapshotPair, limits: Limits) -> list[str]:
    warnings = []
    share, median = values["positive_drop_share"], values["median_relative_drop"]
    if share < limits.positive_drop_share or median < limits.median_relative_drop:
        warnings.append(
            f"gradient norms fell from epoch {epochs.early} to {epochs.late} for {share:.0%} of examples (limit "
            f"{limits.positive_drop_share:.0%}), median relative drop {median:+.3f}: with negative drops, dividing by "
            "a small variance turns the order over. Train longer (a later pair such as epochs=e2_e4), raise "
            "ensemble.lr, set ensemble.lora.init_b_std above 0, or use scorer=inverse_variance"
        )
    disagreement = values["relative_variance"][str(epochs.late)]
    if disagreement is not None and disagreement < limits.relative_variance:
        warnings.append(
            f"the members hardly disagree: V/G² is {disagreement:.4f} at epoch {epochs.late} (limit "
            f"{limits.relative_variance}). Raise ensemble.lr, or ensemble.m, or set ensemble.lora.init_b_std above 0"
        )
    largest = max(values["update_ratio"].values(), default=0.0)
    if largest > limits.update_ratio:
        warnings.append(
            f"the adapters have grown to {largest:.2f} of the frozen weights (limit {limits.update_ratio}); "
            "lower ensemble.lr or set ensemble.weight_decay"
        )
    agreement = values["member_agreement"]
    if agreement is not None and agreement < limits.member_agreement:
        warnings.append(
            f"the members' rankings agree at Spearman {agreement:.2f} only (limit {limits.member_agreement}); "
            "raise ensemble.m or train longer"
        )
    losses = values["heldout_loss"]
    late = losses.get(str(epochs.late))
    if losses["bare"] is not None and late is not None and not late < losses["bare"]:
        warnings.append(
            f"the proxy's held-out loss did not fall ({losses['bare']:.3f} bare, {late:.3f} at epoch {epochs.late}); "
            "raise ensemble.lr if it hardly moved, lower it if it rose"
        )
    return warnings


def _score_warnings(values: dict[str, Any], below_zero: str | None, limits: Limits) -> list[str]:
    warnings = []
    negative = values.get("negative_selected_share", 0.0)
    if negative > limits.negative_selected_share:
        warnings.append(
            f"{negative:.0%} of the chosen rows have a negative score (limit {limits.negative_selected_share:.0%}): "
            f"{below_zero}"
        )
    length = values["score_spearman"]["response_tokens"]
    if length is not None and abs(length) > limits.length_correlation:
        warnings.append(
            f"the score follows response length (Spearman {length:+.2f}, limit ±{limits.length_correlation}); "
            "compare with another scorer before trusting the subset"
        )
    return warnings
