"""Measures of a judge: the pull of answer order and answer length, and steadiness over repeats."""

from dataclasses import dataclass

import numpy as np

from gradfiltering.statistics.length_control import LENGTH_FORMS, LengthControlled, length_controlled


@dataclass(frozen=True)
class JudgeBias:
    """Influence of order and length, rather than content, on a judge's verdicts.

    Attributes:
        judged: verdicts with scores in both orders.
        contradiction_rate: share of the judged whose two orders name different winners. None when
            nothing was judged.
        first_slot_share: share of single orders with a winner in which that was the answer shown
            first; 0.5 = no preference. None when there is none.
        decided: judged verdicts that are a win or a loss.
        longer_wins_share: share of the decided that the longer answer won (answers of equal length
            count as not won by the longer). None without lengths or when none was decided.
        candidate_mean_length: mean length of the candidate's answers over all verdicts, with scores
            or without, in the unit given.
        against_mean_length: mean length of the baseline's answers over all verdicts.
        length_controlled: PWS had the answers been of like length, with a regressor that saturates
            (tanh). None without lengths or when nothing was judged.
        length_controlled_log_ratio: the same with the logarithm of the ratio of lengths. The two
            may differ a good deal; that is what is not known.
    """

    judged: int
    contradiction_rate: float | None
    first_slot_share: float | None
    decided: int
    longer_wins_share: float | None
    candidate_mean_length: float | None
    against_mean_length: float | None
    length_controlled: LengthControlled | None
    length_controlled_log_ratio: LengthControlled | None


def measure_judge_bias(
    order_signs: np.ndarray,
    lengths: np.ndarray | None,
    prompt_sets: np.ndarray,
    resamples: int,
    confidence: float,
    seed: int,
) -> JudgeBias:
    """Measure contradictions between orders, preference for a slot, and the pull of length.

    Args:
        order_signs: [N, 2] float, of each verdict: 1, 0 or -1 as the candidate is ahead, level or
            behind, with its answer shown first and shown second; NaN without scores.
        lengths: [N, 2] lengths of the candidate's and the baseline's answers; None where the
            answers are unknown.
        prompt_sets: [N] set of each verdict's prompt.
        resamples: bootstrap resamples of the length-controlled score.
        confidence: probability mass of its interval.
        seed: seed of the bootstrap.
    """
    is_judged = np.isfinite(order_signs).all(1)
    order_signs = order_signs[is_judged]  # [N, 2] -> [judged, 2]
    outcomes = np.sign(order_signs.sum(1))  # [judged, 2] -> [judged]
    decided = outcomes != 0
    # In the second order the baseline's answer is shown first.
    slot_signs = order_signs * np.array([1, -1])
    longer_wins, controlled, by_ratio = None, None, None
    if lengths is not None and len(outcomes):
        differences = (lengths[:, 0] - lengths[:, 1])[is_judged]
        longer_wins = (np.sign(differences) == outcomes)[decided]
        controlled, by_ratio = (
            length_controlled(outcomes, lengths[is_judged], prompt_sets[is_judged], form, resamples, confidence, seed)
            for form in LENGTH_FORMS
        )
    return JudgeBias(
        judged=len(outcomes),
        contradiction_rate=_mean(order_signs.prod(1) < 0),
        first_slot_share=_mean(slot_signs[slot_signs != 0] > 0),
        decided=int(decided.sum()),
        longer_wins_share=_mean(longer_wins),
        candidate_mean_length=_mean(None if lengths is None else lengths[:, 0]),
        against_mean_length=_mean(None if lengths is None else lengths[:, 1]),
        length_controlled=controlled,
        length_controlled_log_ratio=by_ratio,
    )


@dataclass(frozen=True)
class Steadiness:
    """Agreement of a judge with itself over repeated judgements of the same pairs.

    Attributes:
        repeats: times each pair was judged.
        prompts: pairs with a verdict each time.
        same_verdict_share: share of them with the same verdict each time.
        pws: PWS over these pairs, by repeat.
        pws_deviation: standard deviation of PWS between the repeats.
        judge_variance: variance of a pair's outcome (1, 0, -1) between repeats, averaged over pairs.
        pair_variance: variance of a pair's outcome in one judging, over all pairs and repeats. The
            judge's share of the uncertainty of one judging is judge_variance / pair_variance.
    """

    repeats: int
    prompts: int
    same_verdict_share: float
    pws: list[float]
    pws_deviation: float
    judge_variance: float
    pair_variance: float


def measure_steadiness(outcomes: np.ndarray) -> Steadiness | None:
    """Measure a judge's agreement with itself; None without repeats or without pairs.

    Args:
        outcomes: [pairs, repeats] of 1, 0 or -1, of the pairs that have a verdict each time.
    """
    pair_count, repeat_count = outcomes.shape
    if repeat_count < 2 or not pair_count:
        return None
    scores = outcomes.mean(axis=0) + 1  # [pairs, repeats] -> [repeats]
    return Steadiness(
        repeats=repeat_count,
        prompts=pair_count,
        same_verdict_share=float((outcomes == outcomes[:, :1]).all(axis=1).mean()),
        pws=scores.tolist(),
        pws_deviation=float(scores.std(ddof=1)),
        judge_variance=float(outcomes.var(axis=1, ddof=1).mean()),
        pair_variance=float(outcomes.var()),
    )


def _mean(values: np.ndarray | None) -> float | None:
    return float(values.mean()) if values is not None and len(values) else None
