"""Agreement of raters beyond chance, with intervals over the rated items."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.intervals import percentile_interval, share_interval


@dataclass(frozen=True)
class Agreement:
    """Two or more raters on the same items.

    Attributes:
        raters: their names.
        items: number of items rated by all of them.
        share: share of pairs of ratings of an item that are equal.
        share_low: lower end of its interval over items, Wilson's.
        share_high: upper end.
        kappa: Cohen's for two raters, Fleiss' for more; None where all ratings are the same, which
            leaves nothing to agree on beyond chance.
        kappa_low: lower end of its bootstrap interval over items; where the raters agree on every
            item alike, so that a bootstrap would show no doubt, the kappa of the lower end of the
            share, at the observed agreement by chance.
        kappa_high: upper end.
    """

    raters: tuple[str, ...]
    items: int
    share: float
    share_low: float
    share_high: float
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None


def measure_agreements(
    labels_by_rater: Mapping[str, Mapping[Hashable, str]], resamples: int, confidence: float, seed: int
) -> list[Agreement]:
    """Measure the agreement of every two raters, and of all together where there are more.

    Args:
        labels_by_rater: by rater, the label of each item rated.
        resamples: bootstrap resamples.
        confidence: probability mass of the intervals.
        seed: seed of the bootstrap.

    Returns:
        One entry for each group of raters that rated something in common.
    """
    groups: list[tuple[str, ...]] = list(combinations(labels_by_rater, 2))
    if len(labels_by_rater) > 2:
        groups.append(tuple(labels_by_rater))
    agreements = []
    for raters in groups:
        rated = [labels_by_rater[rater] for rater in raters]
        label_rows = [
            [labels[item] for labels in rated] for item in rated[0] if all(item in labels for labels in rated)
        ]
        if label_rows:
            agreements.append(_measure_group(raters, label_rows, resamples, confidence, seed))
    return agreements


def cohen_kappa(first_labels: Sequence[str], second_labels: Sequence[str]) -> float | None:
    """Compute Cohen's kappa (1960); None where all labels are the same."""
    return _kappa(_encode_labels(list(zip(first_labels, second_labels, strict=True))))


def fleiss_kappa(label_rows: Sequence[Sequence[str]]) -> float | None:
    """Compute Fleiss' kappa (1971) of [items, raters] labels; None where all are the same."""
    return _kappa(_encode_labels(label_rows), fleiss=True)


def _measure_group(
    raters: tuple[str, ...], label_rows: Sequence[Sequence[str]], resamples: int, confidence: float, seed: int
) -> Agreement:
    labels, item_count = _encode_labels(label_rows), len(label_rows)
    uses_fleiss = len(raters) > 2
    equal_shares = _equal_shares(labels)
    random = numpy_rng(seed, "agreement", *raters)
    weights = random.multinomial(item_count, np.full(item_count, 1 / item_count), size=resamples)
    share = float(equal_shares.mean())
    share_low, share_high = share_interval(share, item_count, confidence)
    kappa, kappa_low, kappa_high = _kappa(labels, fleiss=uses_fleiss), None, None
    if kappa is not None:
        drawn_kappas = [_kappa(np.repeat(labels, item_weights, axis=0), fleiss=uses_fleiss) for item_weights in weights]
        known_kappas = np.array([value for value in drawn_kappas if value is not None])
        if np.ptp(equal_shares) == 0 or not len(known_kappas):
            by_chance = _disagreement_by_chance(labels, uses_fleiss)
            kappa_low, kappa_high = (max(-1.0, 1 - (1 - end) / by_chance) for end in (share_low, share_high))
        else:
            kappa_low, kappa_high = percentile_interval(known_kappas, confidence)
    return Agreement(
        raters=raters,
        items=item_count,
        share=share,
        share_low=share_low,
        share_high=share_high,
        kappa=kappa,
        kappa_low=kappa_low,
        kappa_high=kappa_high,
    )


def _encode_labels(label_rows: Sequence[Sequence[str]]) -> np.ndarray:
    """Encode labels as [items, raters, labels] of 0 and 1."""
    label_names = sorted({label for row in label_rows for label in row})
    return np.array([[[label == name for name in label_names] for label in row] for row in label_rows], dtype=float)


def _equal_shares(labels: np.ndarray) -> np.ndarray:
    """Compute the share of equal pairs of ratings, [items, raters, labels] -> [items]."""
    rater_count = labels.shape[1]
    counts = labels.sum(1)  # [items, raters, labels] -> [items, labels]
    equal_shares: np.ndarray = (counts * (counts - 1)).sum(1) / (rater_count * (rater_count - 1))
    return equal_shares


def _disagreement_by_chance(labels: np.ndarray, fleiss: bool) -> float:
    """Compute the share of unequal pairs expected of raters who label by chance, [items, raters, labels] 0 and 1."""
    rater_shares = labels.mean(0)  # [raters, labels] how often each rater gives each label
    if fleiss:  # raters are taken to be alike
        return float(1 - np.square(rater_shares.mean(0)).sum())
    return float(1 - rater_shares[0] @ rater_shares[1])


def _kappa(labels: np.ndarray, fleiss: bool = False) -> float | None:
    """Compute a kappa of [items, raters, labels]; None where all ratings are the same."""
    from statsmodels.stats import inter_rater

    if (labels == labels[0, 0]).all():
        return None
    if fleiss:
        return float(inter_rater.fleiss_kappa(labels.sum(1)))
    table = labels[:, 0].T @ labels[:, 1]  # [labels, labels] counts of pairs of ratings
    return float(inter_rater.cohens_kappa(table, return_results=False))
