"""Scores of stored judgements, per file and pooled."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.judging.stored_reviews import Review, read_reviews
from gradfiltering.judging.verdict_summary import summarize_bias
from gradfiltering.seeding import derive_seed
from gradfiltering.statistics.winning_score import pairwise_winning_score

POOLED = "pooled"
INTERVAL_FIELDS = ("low", "high", "bca_low", "bca_high", "sign_p", "detectable")


def rescore_files(
    paths: Sequence[Path],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Score stored judgements again from their raw scores.

    Args:
        paths: published review files, or `verdicts.jsonl` of runs.
        resamples: bootstrap resamples.
        confidence: probability mass of the interval.
        seed: seed of the bootstrap.

    Returns:
        By file (its stem, or the path as given where two stems are equal) and under "pooled": the
        counts wins, ties, losses, unparsed; pws with its percentile and BCa intervals, the sign
        test's p-value and the detectable difference; contradiction_rate, first_slot_share; and,
        None where the answers are not known, longer_wins_share, the mean answer lengths in
        characters and the length-controlled PWS. Several opponents are never mixed: a file with
        more than one has an entry `file/opponent` for each, and so has the pool.

    Raises:
        UserError: a file cannot be read, holds no verdict, or is named twice.
    """
    reviews_by_name: dict[str, list[Review]] = {}
    for name, path in zip(_name_files(paths), paths, strict=True):
        reviews = [review for review in read_reviews(path) if review.verdict.repeat == 0]
        if not reviews:
            raise UserError(f"{path}: holds no verdict; give a file with at least one")
        reviews_by_name[name] = reviews
    pool = [review for reviews in reviews_by_name.values() for review in reviews]
    return {
        label: _score_reviews(group, resamples, confidence, derive_seed(seed, "rescore", label))
        for name, reviews in {**reviews_by_name, POOLED: pool}.items()
        for label, group in _split_opponents(name, reviews).items()
    }


def _score_reviews(reviews: Sequence[Review], resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    verdicts = [review.verdict for review in reviews]
    outcomes = [verdict.verdict for verdict in verdicts]
    score = pairwise_winning_score(outcomes, resamples, confidence, seed)
    lengths = [(len(review.answers[0]), len(review.answers[1])) for review in reviews if review.answers]
    bias = summarize_bias(
        verdicts,
        lengths if len(lengths) == len(verdicts) else None,
        resamples,
        confidence,
        derive_seed(seed, "length"),
    )
    controlled = bias.length_controlled
    return {
        **{name: getattr(score, name) for name in ("wins", "ties", "losses", "unparsed")},
        "pws": score.value,
        **{name: getattr(score, name) for name in INTERVAL_FIELDS},
        **{name: getattr(bias, name) for name in ("contradiction_rate", "first_slot_share", "longer_wins_share")},
        "candidate_mean_characters": bias.candidate_mean_length,
        "against_mean_characters": bias.against_mean_length,
        "length_controlled": None if controlled is None else asdict(controlled),
    }


def _split_opponents(name: str, reviews: list[Review]) -> dict[str, list[Review]]:
    groups: dict[str, list[Review]] = {}
    for review in reviews:
        groups.setdefault(review.verdict.against, []).append(review)
    if len(groups) == 1:
        return {name: reviews}
    return {f"{name}/{opponent}": group for opponent, group in groups.items()}


def _name_files(paths: Sequence[Path]) -> list[str]:
    """Name the files, no two alike and none as the pool."""
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 and path.stem != POOLED else str(path) for path in paths]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{repeated}: named twice; its verdicts would be counted twice in the pool")
    return names
