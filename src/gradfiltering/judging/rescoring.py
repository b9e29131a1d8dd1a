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
    file_paths: Sequence[Path], resamples: int, confidence: float, seed: int
) -> dict[str, dict[str, Any]]:
    """Score stored judgements again from their raw scores.

    Args:
        file_paths: published review files, or `verdicts.jsonl` of runs.
        resamples: bootstrap resamples.
        confidence: probability mass of the interval.
        seed: seed of the bootstrap.

    Returns:
        By file (its stem, or the path as given where two stems are equal) and under "pooled": the
        counts wins, ties, losses, unparsed; pws with its percentile and BCa intervals, the sign
        test's p-value and the detectable difference; contradiction_rate, first_slot_share; and,
        None where the answers are not known, longer_wins_share, the mean answer lengths in
        characters and the length-controlled PWS, by both forms of the regressor. Several
        baselines are never mixed: a file with more than one has an entry `file/baseline` for each,
        and so has the pool.

    Raises:
        UserError: a file cannot be read, holds no verdict, or is named twice.
    """
    reviews_by_name: dict[str, list[Review]] = {}
    for file_name, file_path in zip(_name_files(file_paths), file_paths, strict=True):
        file_reviews = [review for review in read_reviews(file_path) if review.verdict.repeat == 0]
        if not file_reviews:
            raise UserError(f"{file_path}: holds no verdict; give a file with at least one")
        reviews_by_name[file_name] = file_reviews
    pooled_reviews = [review for file_reviews in reviews_by_name.values() for review in file_reviews]
    return {
        entry_label: _score_reviews(group_reviews, resamples, confidence, derive_seed(seed, "rescore", entry_label))
        for file_name, file_reviews in {**reviews_by_name, POOLED: pooled_reviews}.items()
        for entry_label, group_reviews in _split_baselines(file_name, file_reviews).items()
    }


def _score_reviews(reviews: Sequence[Review], resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    verdicts = [review.verdict for review in reviews]
    outcomes = [verdict.verdict for verdict in verdicts]
    winning_score = pairwise_winning_score(outcomes, resamples, confidence, seed)
    answer_lengths = [(len(review.answers[0]), len(review.answers[1])) for review in reviews if review.answers]
    judge_bias = summarize_bias(
        verdicts,
        answer_lengths if len(answer_lengths) == len(verdicts) else None,
        resamples,
        confidence,
        derive_seed(seed, "length"),
    )
    bias_record = asdict(judge_bias)
    return {
        **{field_name: getattr(winning_score, field_name) for field_name in ("wins", "ties", "losses", "unparsed")},
        "pws": winning_score.value,
        **{field_name: getattr(winning_score, field_name) for field_name in INTERVAL_FIELDS},
        **{
            field_name: getattr(judge_bias, field_name)
            for field_name in ("contradiction_rate", "first_slot_share", "longer_wins_share")
        },
        "candidate_mean_characters": judge_bias.candidate_mean_length,
        "against_mean_characters": judge_bias.against_mean_length,
        **{name: bias_record[name] for name in ("length_controlled", "length_controlled_log_ratio")},
    }


def _split_baselines(file_name: str, file_reviews: list[Review]) -> dict[str, list[Review]]:
    reviews_by_baseline: dict[str, list[Review]] = {}
    for review in file_reviews:
        reviews_by_baseline.setdefault(review.verdict.against, []).append(review)
    if len(reviews_by_baseline) == 1:
        return {file_name: file_reviews}
    return {f"{file_name}/{baseline}": group_reviews for baseline, group_reviews in reviews_by_baseline.items()}


def _name_files(file_paths: Sequence[Path]) -> list[str]:
    """Name the files, no two alike and none as the pool."""
    file_stems = [file_path.stem for file_path in file_paths]
    file_names = [
        file_path.stem if file_stems.count(file_path.stem) == 1 and file_path.stem != POOLED else str(file_path)
        for file_path in file_paths
    ]
    if len(set(file_names)) < len(file_names):
        repeated = next(file_name for file_name in file_names if file_names.count(file_name) > 1)
        raise UserError(f"{repeated}: named twice; its verdicts would be counted twice in the pool")
    return file_names
