"""PWS of stored judgements, per file and pooled."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.judging.bias import judge_bias
from gradfiltering.judging.reviews import Review, read_reviews
from gradfiltering.seeding import derive_seed
from gradfiltering.statistics.winning_score import pairwise_winning_score

POOLED = "pooled"


def rescore(files: Sequence[Path], resamples: int, confidence: float, seed: int) -> dict[str, dict[str, Any]]:
    """Score stored judgements again from their raw scores.

    Args:
        files: published review files, or `verdicts.jsonl` of runs.
        resamples: bootstrap resamples.
        confidence: probability mass of the interval.
        seed: of the bootstrap.

    Returns:
        By file (its stem, or the path as given where two stems are equal) and under "pooled": the counts wins, ties,
        losses, unparsed; pws with its percentile and BCa intervals, the sign test's p-value and the detectable
        difference; contradiction_rate, first_slot_share; and, None where the answers are not known,
        longer_wins_share, the mean answer lengths in characters and the length-controlled PWS.
        Several opponents are never mixed: a file with more than one
        has an entry `file/opponent` for each, and so has the pool.
    """
    by_file = {
        name: [review for review in read_reviews(file) if review.verdict.repeat == 0]
        for name, file in zip(_names(files), files, strict=True)
    }
    for name, file in zip(by_file, files, strict=True):
        if not by_file[name]:
            raise UserError(f"{file}: holds no verdict; give a file with at least one")
    groups = {**by_file, POOLED: [review for reviews in by_file.values() for review in reviews]}
    return {
        label: _entry(reviews, resamples, confidence, derive_seed(seed, "rescore", label))
        for name, group in groups.items()
        for label, reviews in _by_opponent(name, group).items()
    }


def _entry(reviews: Sequence[Review], resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    verdicts = [review.verdict for review in reviews]
    score = pairwise_winning_score([verdict.verdict for verdict in verdicts], resamples, confidence, seed)
    lengths = [(len(review.answers[0]), len(review.answers[1])) for review in reviews if review.answers is not None]
    known = lengths if len(lengths) == len(verdicts) else None
    bias = judge_bias(verdicts, known, resamples, confidence, derive_seed(seed, "length"))
    controlled = bias.length_controlled
    return {
        "wins": score.wins,
        "ties": score.ties,
        "losses": score.losses,
        "unparsed": score.unparsed,
        "pws": score.value,
        "low": score.low,
        "high": score.high,
        "bca_low": score.bca_low,
        "bca_high": score.bca_high,
        "sign_p": score.sign_p,
        "detectable": score.detectable,
        "contradiction_rate": bias.contradiction_rate,
        "first_slot_share": bias.first_slot_share,
        "longer_wins_share": bias.longer_wins_share,
        "candidate_mean_characters": bias.candidate_mean_length,
        "against_mean_characters": bias.against_mean_length,
        "length_controlled": None if controlled is None else asdict(controlled),
    }


def _by_opponent(name: str, reviews: list[Review]) -> dict[str, list[Review]]:
    groups: dict[str, list[Review]] = {}
    for review in reviews:
        groups.setdefault(review.verdict.against, []).append(review)
    if len(groups) == 1:
        return {name: reviews}
    return {f"{name}/{against}": group for against, group in groups.items()}


def _names(files: Sequence[Path]) -> list[str]:
    """A name for each file, no two alike and none of them the pool's."""
    stems = [file.stem for file in files]
    names = [
        stem if stems.count(stem) == 1 and stem != POOLED else str(file)
        for stem, file in zip(stems, files, strict=True)
    ]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice}: named twice; its verdicts would be counted twice in the pool")
    return names
