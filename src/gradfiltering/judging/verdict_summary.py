"""Summary of a judge's verdicts: pairwise winning scores, judge bias, and agreement."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.judging.base import Judge
from gradfiltering.judging.pair_judging import judge_pairs
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.ratings import RatingStore
from gradfiltering.judging.responses import Response
from gradfiltering.judging.verdicts import HUMAN, OUTCOME_VALUES, Verdict, order_signs, read_verdicts
from gradfiltering.seeding import derive_seed
from gradfiltering.statistics.agreement import measure_agreements
from gradfiltering.statistics.judge_bias import JudgeBias, Steadiness, measure_judge_bias, measure_steadiness
from gradfiltering.statistics.winning_score import ALL_SETS, PWS, pairwise_winning_score

PairKey = tuple[str, str, str]  # baseline, prompt set, prompt id
LabelsByRater = dict[str, dict[Any, str]]
# In a person's verdict the candidate's answer is the first.
OUTCOME_OF_LABEL = {"first": "win", "second": "loss", "tie": "tie"}


def summarize_verdicts(
    verdicts: Sequence[Verdict],
    prompts: Sequence[Prompt],
    responses: Mapping[str, Sequence[Response]],
    other_judges: Mapping[str, Judge],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Summarise verdicts as they stand in `summary.json`.

    Args:
        verdicts: verdicts of one candidate.
        prompts: prompts that were answered.
        responses: each model's responses, by model name.
        other_judges: judges that know judgements of the same answers, by name.
        resamples: bootstrap resamples.
        confidence: probability mass of all intervals.
        seed: seed of the bootstrap.

    Returns:
        `pws`, by baseline and prompt set, with intervals; and `judge`, by baseline: the judge's
        bias, its steadiness over repeats, and its agreement with other judges and of raters.
    """
    scores = tally_verdicts(verdicts, resamples, confidence, seed)
    candidate = verdicts[0].candidate if verdicts else ""
    other_verdicts = {
        judge_name: judge_pairs(judge, prompts, responses, candidate, repeats=1)
        for judge_name, judge in other_judges.items()
    }
    judge_summary = {}
    for baseline in scores:
        baseline_verdicts = [verdict for verdict in verdicts if verdict.against == baseline]
        first_verdicts = [verdict for verdict in baseline_verdicts if verdict.repeat == 0]
        bias = summarize_bias(
            first_verdicts,
            answer_lengths(first_verdicts, responses),
            resamples,
            confidence,
            derive_seed(seed, "length", baseline),
        )
        steadiness = summarize_steadiness(baseline_verdicts)
        judge_summary[baseline] = {
            **asdict(bias),
            "repeats": None if steadiness is None else asdict(steadiness),
            "agreement": summarize_agreement(
                first_verdicts,
                {
                    judge_name: [verdict for verdict in judged if verdict.against == baseline]
                    for judge_name, judged in other_verdicts.items()
                },
                resamples,
                confidence,
                seed,
            ),
        }
    pws_summary = {
        baseline: {set_name: asdict(score) for set_name, score in by_set.items()} for baseline, by_set in scores.items()
    }
    return {"pws": pws_summary, "judge": judge_summary}


def warn_of_unreadable_verdicts(pws_summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Warn of each baseline against which no reply of the judge could be read.

    Args:
        pws_summary: pairwise winning scores by baseline and prompt set, as they stand in `summary.json`.
    """
    return [
        f"no verdict against {baseline} could be read ({by_set['all']['unparsed']} of them): there is no score. "
        "Look at the replies in verdicts.jsonl, and choose another judge or prompts that it can judge"
        for baseline, by_set in pws_summary.items()
        if by_set["all"]["value"] is None
    ]


def tally_verdicts(
    verdicts: Iterable[Verdict], resamples: int, confidence: float, seed: int
) -> dict[str, dict[str, PWS]]:
    """Compute PWS per baseline and prompt set, and pooled over the sets under "all".

    Only each pair's first judging (`repeat` 0) counts: a repeat shows how steady the judge is, but
    it is not another prompt, and counting it as one would make the interval too narrow.

    Returns:
        `{against: {prompt set or "all": PWS}}`, baselines and sets in order of first appearance,
        "all" last.
    """
    outcomes: dict[str, dict[str, list[str]]] = {}
    for verdict in verdicts:
        if verdict.repeat == 0:
            outcomes_by_set = outcomes.setdefault(verdict.against, {})
            outcomes_by_set.setdefault(verdict.prompt_set, []).append(verdict.verdict)
    scores: dict[str, dict[str, PWS]] = {}
    for baseline, outcomes_by_set in outcomes.items():
        if ALL_SETS in outcomes_by_set:
            raise ValueError(f"a prompt set is called {ALL_SETS!r}, the name of the pool of all sets; rename it")
        pool = [outcome for set_outcomes in outcomes_by_set.values() for outcome in set_outcomes]
        scores[baseline] = {
            set_name: pairwise_winning_score(
                set_outcomes, resamples, confidence, derive_seed(seed, "pws", baseline, set_name)
            )
            for set_name, set_outcomes in {**outcomes_by_set, ALL_SETS: pool}.items()
        }
    return scores


def summarize_bias(
    verdicts: Sequence[Verdict],
    lengths: Sequence[tuple[int, int]] | None,
    resamples: int,
    confidence: float,
    seed: int,
) -> JudgeBias:
    """Measure the pull of order and length on verdicts.

    Args:
        verdicts: verdicts of one candidate against one baseline, each pair once.
        lengths: (candidate's, baseline's) answer length for each verdict; None where the answers
            are unknown.
        resamples: bootstrap resamples of the length-controlled score.
        confidence: probability mass of its interval.
        seed: seed of the bootstrap.
    """
    signs = [
        (np.nan, np.nan)
        if verdict.scores is None or verdict.scores_reverse is None
        else order_signs(verdict.scores, verdict.scores_reverse)
        for verdict in verdicts
    ]
    return measure_judge_bias(
        np.array(signs, dtype=float).reshape(-1, 2),
        None if lengths is None else np.array(lengths).reshape(-1, 2),
        np.array([verdict.prompt_set for verdict in verdicts], dtype=str),
        resamples,
        confidence,
        seed,
    )


def summarize_steadiness(verdicts: Sequence[Verdict]) -> Steadiness | None:
    """Measure a judge's agreement with itself; None without repeats or complete pairs.

    Args:
        verdicts: verdicts of one candidate against one baseline, all repeats.
    """
    outcomes_by_pair: dict[PairKey, dict[int, int]] = {}
    for verdict in verdicts:
        if verdict.verdict in OUTCOME_VALUES:
            outcomes = outcomes_by_pair.setdefault(_pair_key(verdict), {})
            outcomes[verdict.repeat] = OUTCOME_VALUES[verdict.verdict]
    repeats = range(1 + max((verdict.repeat for verdict in verdicts), default=0))
    complete_rows = [
        [outcomes[repeat] for repeat in repeats]
        for outcomes in outcomes_by_pair.values()
        if len(outcomes) == len(repeats)
    ]
    return measure_steadiness(np.array(complete_rows).reshape(-1, len(repeats)))


def summarize_agreement(
    verdicts: Sequence[Verdict],
    other_verdicts: Mapping[str, Sequence[Verdict]],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """Measure the agreement of raters with each other, and of a judge with other judges.

    Args:
        verdicts: verdicts of one judge on one baseline, each pair once.
        other_verdicts: verdicts on the same pairs, by the name of their judge.
        resamples: bootstrap resamples.
        confidence: probability mass of the intervals.
        seed: seed of the bootstrap.

    Returns:
        `raters`: agreements of people with each other, empty where there are not several;
        `judges`: agreements of the judge with the others (people by their majority); `not_found`:
        the others that know no judgement of these answers.
    """
    other_labels = {name: _label_verdicts(judged) for name, judged in other_verdicts.items()}
    known_labels = {name: labels for name, labels in other_labels.items() if labels}
    judge_labels = {verdicts[0].judge: _label_verdicts(verdicts)} if verdicts else {}
    rater_labels = _split_raters(verdicts)
    between_raters = measure_agreements(rater_labels, resamples, confidence, seed)
    between_judges = (
        measure_agreements({**judge_labels, **known_labels}, resamples, confidence, seed) if judge_labels else []
    )
    return {
        "raters": [asdict(agreement) for agreement in between_raters],
        "judges": [asdict(agreement) for agreement in between_judges],
        "not_found": [name for name in other_labels if name not in known_labels],
    }


def answer_lengths(verdicts: Sequence[Verdict], responses: Mapping[str, Sequence[Response]]) -> list[tuple[int, int]]:
    """Count characters of the candidate's and the baseline's answer for each verdict.

    Args:
        verdicts: verdicts whose answers are measured.
        responses: each model's responses, by model name, to every prompt of the verdicts.
    """
    characters = {
        (model, response.prompt_set, response.prompt_id): len(response.response)
        for model, model_responses in responses.items()
        for response in model_responses
    }
    return [
        (
            characters[verdict.candidate, verdict.prompt_set, verdict.prompt_id],
            characters[verdict.against, verdict.prompt_set, verdict.prompt_id],
        )
        for verdict in verdicts
    ]


def read_labels(files: Mapping[str, Path]) -> LabelsByRater:
    """Read labels by rater: a rater for each `verdicts.jsonl`, all raters of a `*.sqlite` file.

    Raises:
        UserError: a file cannot be read.
    """
    labels_by_rater: LabelsByRater = {}
    for name, labels_path in files.items():
        if labels_path.suffix != ".sqlite":
            labels_by_rater[name] = _label_verdicts(read_verdicts(labels_path))
            continue
        if not labels_path.is_file():
            raise UserError(f"{labels_path}: no such file")
        store = RatingStore(labels_path, seed=0)  # the seed decides the page's order; no page is shown
        for rater, labels in store.labels_by_rater(None).items():
            labels_by_rater[f"{name}/{rater}"] = dict(labels)
        store.close()
    return labels_by_rater


def read_outcomes(files: Mapping[str, Path], baseline: str) -> dict[str, dict[Any, int]]:
    """Read outcomes of several runs' candidates against one baseline, first judgings only.

    Args:
        files: `verdicts.jsonl` by the name its candidate shall have.
        baseline: name of the baseline.

    Returns:
        By candidate, 1, 0 or -1 by (prompt set, prompt id).

    Raises:
        UserError: a file has no verdict against this baseline.
    """
    outcomes: dict[str, dict[Any, int]] = {}
    for name, labels_path in files.items():
        verdicts = [verdict for verdict in read_verdicts(labels_path) if verdict.repeat == 0]
        outcomes[name] = {
            (verdict.prompt_set, verdict.prompt_id): OUTCOME_VALUES[verdict.verdict]
            for verdict in verdicts
            if verdict.against == baseline and verdict.verdict in OUTCOME_VALUES
        }
        if not outcomes[name]:
            baselines = ", ".join(sorted({verdict.against for verdict in verdicts})) or "none"
            raise UserError(
                f"{labels_path}: no judged verdict against {baseline!r} (baselines: {baselines}); name one of these"
            )
    return outcomes


def _split_raters(verdicts: Sequence[Verdict]) -> LabelsByRater:
    """Split people's verdicts by rater; empty where no person judged."""
    labels_by_rater: LabelsByRater = {}
    for verdict in verdicts:
        if verdict.judge == HUMAN:
            for rater, label in json.loads(verdict.reply).items():
                rater_labels = labels_by_rater.setdefault(rater, {})
                rater_labels[_pair_key(verdict)] = OUTCOME_OF_LABEL[label]
    return labels_by_rater


def _label_verdicts(verdicts: Sequence[Verdict]) -> dict[Any, str]:
    return {
        _pair_key(verdict): verdict.verdict
        for verdict in verdicts
        if verdict.repeat == 0 and verdict.verdict != "unparsed"
    }


def _pair_key(verdict: Verdict) -> PairKey:
    return verdict.against, verdict.prompt_set, verdict.prompt_id
