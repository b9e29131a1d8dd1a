"""The pairwise winning score, its bootstrap interval, and what a judge's verdicts say about the judge."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradfiltering.judge.responses import Response
from gradfiltering.judge.verdicts import Verdict, order_signs
from gradfiltering.seeding import derive_seed

ALL_SETS = "all"


@dataclass(frozen=True)
class PWS:
    """A pairwise winning score with the counts it is made of.

    Attributes:
        value: (wins - losses) / judged + 1, from 0 to 2; 1 = as good as the opponent. None when nothing was judged.
        low: lower end of the bootstrap interval; None when nothing was judged.
        high: upper end of the interval; None when nothing was judged.
        wins: prompts the candidate won.
        ties: prompts that were level.
        losses: prompts the opponent won.
        unparsed: prompts without a verdict. They count neither as judged nor as ties.
    """

    value: float | None
    low: float | None
    high: float | None
    wins: int
    ties: int
    losses: int
    unparsed: int


def pairwise_winning_score(verdicts: Sequence[str], resamples: int, confidence: float, seed: int) -> PWS:
    """PWS of a list of verdicts, with a percentile bootstrap interval over prompts.

    A bootstrap resample draws `judged` prompts with replacement. The score depends only on how many wins, ties and
    losses are drawn, and those counts are multinomial with the observed shares; so drawing the counts is exactly that
    bootstrap, without touching the prompts one by one.

    Args:
        verdicts: one of "win", "tie", "loss", "unparsed" per prompt.
        resamples: bootstrap resamples.
        confidence: probability mass of the interval, between 0 and 1.
        seed: of the bootstrap.

    Raises:
        ValueError: an unknown verdict, or an option out of range.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, both excluded")
    counts = Counter(verdicts)
    wins, ties, losses, unparsed = (counts.pop(name, 0) for name in ("win", "tie", "loss", "unparsed"))
    if counts:
        raise ValueError(f"unknown verdict {next(iter(counts))!r}; expected win, tie, loss or unparsed")
    judged = wins + ties + losses
    if judged == 0:
        return PWS(None, None, None, wins, ties, losses, unparsed)
    shares = np.array([wins, ties, losses]) / judged
    drawn = np.random.default_rng(seed).multinomial(judged, shares, size=resamples)  # [resamples, 3]
    scores = (drawn[:, 0] - drawn[:, 2]) / judged + 1  # [resamples, 3] -> [resamples]
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return PWS((wins - losses) / judged + 1, float(low), float(high), wins, ties, losses, unparsed)


def tally(verdicts: Iterable[Verdict], resamples: int, confidence: float, seed: int) -> dict[str, dict[str, PWS]]:
    """PWS per opponent and prompt set, and pooled over the sets under "all".

    Only each pair's first judging (`repeat` 0) counts: a repeat shows how steady the judge is, but it is not another
    prompt, and counting it as one would make the interval too narrow.

    Returns:
        `{against: {prompt set or "all": PWS}}`, opponents and sets in order of first appearance, "all" last.
    """
    outcomes: dict[str, dict[str, list[str]]] = {}
    for verdict in verdicts:
        if verdict.repeat == 0:
            outcomes.setdefault(verdict.against, {}).setdefault(verdict.prompt_set, []).append(verdict.verdict)
    table: dict[str, dict[str, PWS]] = {}
    for against, by_set in outcomes.items():
        if ALL_SETS in by_set:
            raise ValueError(f"a prompt set is called {ALL_SETS!r}, the name of the pool of all sets; rename it")
        pool = [outcome for values in by_set.values() for outcome in values]
        table[against] = {
            name: pairwise_winning_score(values, resamples, confidence, derive_seed(seed, "pws", against, name))
            for name, values in {**by_set, ALL_SETS: pool}.items()
        }
    return table


@dataclass(frozen=True)
class JudgeBias:
    """How far order and length, rather than content, may have moved the verdicts.

    Attributes:
        judged: verdicts with scores in both orders.
        contradiction_rate: share of the judged whose two orders name different winners. None when none was judged.
        decided: judged verdicts that are a win or a loss.
        longer_wins_share: share of the decided that the longer answer won (answers of equal length count as not
            won by the longer). None without lengths or when none was decided.
        candidate_mean_length: mean length of the candidate's answers, in the unit of the lengths given.
        against_mean_length: the same of the opponent's answers.
    """

    judged: int
    contradiction_rate: float | None
    decided: int
    longer_wins_share: float | None
    candidate_mean_length: float | None
    against_mean_length: float | None


def judge_bias(verdicts: Sequence[Verdict], lengths: Sequence[tuple[int, int]] | None) -> JudgeBias:
    """Contradictions between the two orders, and the pull of length.

    Args:
        verdicts: of one candidate against one opponent.
        lengths: (candidate's, opponent's) answer length for each verdict, or None where the answers are not known.
    """
    judged = contradictions = decided = longer_wins = 0
    for position, verdict in enumerate(verdicts):
        if verdict.scores is None or verdict.scores_reverse is None:
            continue
        judged += 1
        first, second = order_signs(verdict.scores, verdict.scores_reverse)
        contradictions += first * second < 0
        if verdict.verdict == "tie":
            continue
        decided += 1
        if lengths is not None:
            candidate, against = lengths[position]
            longer_wins += candidate > against if verdict.verdict == "win" else against > candidate
    return JudgeBias(
        judged=judged,
        contradiction_rate=contradictions / judged if judged else None,
        decided=decided,
        longer_wins_share=longer_wins / decided if decided and lengths is not None else None,
        candidate_mean_length=_mean([pair[0] for pair in lengths]) if lengths else None,
        against_mean_length=_mean([pair[1] for pair in lengths]) if lengths else None,
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


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)
