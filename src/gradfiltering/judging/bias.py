"""What a judge's verdicts say about the judge: the pull of order and length, and how steady it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradfiltering.judging.responses import Response
from gradfiltering.judging.verdicts import Verdict, order_signs
from gradfiltering.statistics.length_control import LengthControlled, length_controlled

OUTCOMES = {"win": 1, "tie": 0, "loss": -1}


@dataclass(frozen=True)
class JudgeBias:
    """How far order and length, rather than content, may have moved the verdicts.

    Attributes:
        judged: verdicts with scores in both orders.
        contradiction_rate: share of the judged whose two orders name different winners. None when none was judged.
        first_slot_share: share of single orders with a winner in which that was the answer shown first; 0.5 = no
            preference. None when there is none.
        decided: judged verdicts that are a win or a loss.
        longer_wins_share: share of the decided that the longer answer won (answers of equal length count as not
            won by the longer). None without lengths or when none was decided.
        candidate_mean_length: mean length of the candidate's answers, in the unit of the lengths given.
        against_mean_length: the same of the opponent's answers.
        length_controlled: PWS had the answers been of like length. None without lengths or when none was judged.
    """

    judged: int
    contradiction_rate: float | None
    first_slot_share: float | None
    decided: int
    longer_wins_share: float | None
    candidate_mean_length: float | None
    against_mean_length: float | None
    length_controlled: LengthControlled | None


def judge_bias(
    verdicts: Sequence[Verdict],
    lengths: Sequence[tuple[int, int]] | None,
    resamples: int,
    confidence: float,
    seed: int,
) -> JudgeBias:
    """Contradictions between the two orders, preference for a slot, and the pull of length.

    Args:
        verdicts: of one candidate against one opponent, each pair once.
        lengths: (candidate's, opponent's) answer length for each verdict, or None where the answers are not known.
        resamples: bootstrap resamples of the length-controlled score.
        confidence: probability mass of its interval.
        seed: of the bootstrap.
    """
    judged = [
        (order_signs(verdict.scores, verdict.scores_reverse), verdict.verdict, place)
        for place, verdict in enumerate(verdicts)
        if verdict.scores is not None and verdict.scores_reverse is not None
    ]
    decided = [(outcome, place) for _, outcome, place in judged if outcome != "tie"]
    # In the second order the opponent's answer stands first.
    slots = [slot for (first, second), _, _ in judged for slot in (first, -second) if slot]
    longer, controlled = None, None
    if lengths is not None and judged:
        longer = [
            (lengths[place][0] > lengths[place][1]) if outcome == "win" else (lengths[place][1] > lengths[place][0])
            for outcome, place in decided
        ]
        outcomes = np.array([OUTCOMES[outcome] for _, outcome, _ in judged])
        differences = np.array([lengths[place][0] - lengths[place][1] for _, _, place in judged])
        controlled = length_controlled(outcomes, differences, resamples, confidence, seed)
    return JudgeBias(
        judged=len(judged),
        contradiction_rate=_mean([first * second < 0 for (first, second), _, _ in judged]),
        first_slot_share=_mean([slot > 0 for slot in slots]),
        decided=len(decided),
        longer_wins_share=_mean(longer or []),
        candidate_mean_length=_mean([pair[0] for pair in lengths or []]),
        against_mean_length=_mean([pair[1] for pair in lengths or []]),
        length_controlled=controlled,
    )


@dataclass(frozen=True)
class Steadiness:
    """What judging the same pairs again and again says about the judge.

    Attributes:
        repeats: how often each pair was judged.
        prompts: pairs with a verdict each time.
        same_verdict_share: share of them with the same verdict each time.
        pws: PWS over these pairs, by repeat.
        pws_deviation: standard deviation of PWS between the repeats.
        judge_variance: variance of a pair's outcome (1, 0, -1) between repeats, averaged over pairs.
        pair_variance: variance of a pair's outcome in one judging, over all pairs and repeats. The judge's share of the
            uncertainty of one judging is judge_variance / pair_variance.
    """

    repeats: int
    prompts: int
    same_verdict_share: float
    pws: list[float]
    pws_deviation: float
    judge_variance: float
    pair_variance: float


def steadiness(verdicts: Sequence[Verdict]) -> Steadiness | None:
    """How far a judge agrees with itself; None without repeats or when no pair has a verdict each time.

    Args:
        verdicts: of one candidate against one opponent, all repeats.
    """
    by_pair: dict[tuple[str, str], dict[int, str]] = {}
    for verdict in verdicts:
        by_pair.setdefault((verdict.prompt_set, verdict.prompt_id), {})[verdict.repeat] = verdict.verdict
    repeats = 1 + max((verdict.repeat for verdict in verdicts), default=0)
    rows = [
        [OUTCOMES[said[repeat]] for repeat in range(repeats)]
        for said in by_pair.values()
        if all(said.get(repeat) in OUTCOMES for repeat in range(repeats))
    ]
    if repeats < 2 or not rows:
        return None
    outcomes = np.array(rows)  # [pairs, repeats]
    scores = outcomes.mean(axis=0) + 1  # [pairs, repeats] -> [repeats]
    return Steadiness(
        repeats=repeats,
        prompts=len(rows),
        same_verdict_share=float((outcomes == outcomes[:, :1]).all(axis=1).mean()),
        pws=scores.tolist(),
        pws_deviation=float(scores.std(ddof=1)),
        judge_variance=float(outcomes.var(axis=1, ddof=1).mean()),
        pair_variance=float(outcomes.var()),
    )


def answer_lengths(verdicts: Sequence[Verdict], responses: Mapping[str, Sequence[Response]]) -> list[tuple[int, int]]:
    """(candidate's, opponent's) answer length in characters for each verdict.

    Args:
        verdicts: whose answers to measure.
        responses: each model's responses, by model name; they must hold every prompt of the verdicts.
    """
    characters = {
        (model, response.prompt_set, response.prompt_id): len(response.response)
        for model, answers in responses.items()
        for response in answers
    }
    return [
        (
            characters[verdict.candidate, verdict.prompt_set, verdict.prompt_id],
            characters[verdict.against, verdict.prompt_set, verdict.prompt_id],
        )
        for verdict in verdicts
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
