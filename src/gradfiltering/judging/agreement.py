"""How far raters agree, beyond chance, with intervals over what they rated."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.judging.ratings import RatingStore
from gradfiltering.judging.verdicts import HUMAN, Verdict, read_verdicts
from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.intervals import percentile_interval

Labels = Mapping[Any, str]
OUTCOMES = {"first": "win", "second": "loss", "tie": "tie"}  # in a person's verdict the candidate's answer is the first


@dataclass(frozen=True)
class Agreement:
    """Two or more raters on the same items.

    Attributes:
        raters: their names.
        items: rated by all of them.
        share: of pairs of ratings of an item that are equal.
        share_low: lower end of its bootstrap interval over items.
        share_high: upper end.
        kappa: Cohen's for two raters, Fleiss' for more; None where all ratings are the same, which leaves nothing to
            agree on beyond chance.
        kappa_low: lower end of its interval.
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


def agreements(ratings: Mapping[str, Labels], resamples: int, confidence: float, seed: int) -> list[Agreement]:
    """Every two raters, and all of them together where there are more.

    Args:
        ratings: by rater, the label of each item rated.
        resamples: bootstrap resamples.
        confidence: probability mass of the intervals.
        seed: of the bootstrap.

    Returns:
        One entry for each group of raters that rated something in common.
    """
    groups: list[tuple[str, ...]] = list(combinations(ratings, 2))
    if len(ratings) > 2:
        groups.append(tuple(ratings))
    found = []
    for group in groups:
        items = [item for item in ratings[group[0]] if all(item in ratings[rater] for rater in group)]
        if items:
            rows = [[ratings[rater][item] for rater in group] for item in items]
            found.append(_agreement(group, rows, resamples, confidence, seed))
    return found


@dataclass(frozen=True)
class JudgeAgreement:
    """How far those who judged the same answers agree.

    Attributes:
        raters: people among each other, every two and all; empty where there are no several.
        judges: the judge with others whose judgements of the same answers are known (people by their majority).
        not_found: those of the others that know no judgement of these answers.
    """

    raters: list[Agreement] = field(default_factory=list)
    judges: list[Agreement] = field(default_factory=list)
    not_found: list[str] = field(default_factory=list)


def judge_agreement(
    verdicts: Sequence[Verdict], others: Mapping[str, Sequence[Verdict]], resamples: int, confidence: float, seed: int
) -> JudgeAgreement:
    """Agreement of raters, and of a judge with others.

    Args:
        verdicts: of one judge on one opponent, each pair once.
        others: verdicts on the same pairs by name of who gave them.
        resamples: bootstrap resamples.
        confidence: probability mass of the intervals.
        seed: of the bootstrap.
    """
    drawing = (resamples, confidence, seed)
    known = {name: labels for name, some in others.items() if (labels := _labels(some))}
    mine = {verdicts[0].judge: _labels(verdicts)} if verdicts else {}
    raters = raters_of(verdicts)
    return JudgeAgreement(
        raters=agreements(raters, *drawing) if len(raters) > 1 else [],
        judges=agreements({**mine, **known}, *drawing) if mine and known else [],
        not_found=[name for name in others if name not in known],
    )


def raters_of(verdicts: Sequence[Verdict]) -> dict[str, dict[Any, str]]:
    """What each person said of the candidate, by rater and pair; empty where no person judged."""
    table: dict[str, dict[Any, str]] = {}
    for verdict in verdicts:
        if verdict.judge == HUMAN:
            for rater, label in json.loads(verdict.reply).items():
                table.setdefault(rater, {})[_item(verdict)] = OUTCOMES[label]
    return table


def _labels(verdicts: Sequence[Verdict]) -> dict[Any, str]:
    return {
        _item(verdict): verdict.verdict for verdict in verdicts if verdict.repeat == 0 and verdict.verdict != "unparsed"
    }


def _item(verdict: Verdict) -> tuple[str, str, str]:
    return verdict.against, verdict.prompt_set, verdict.prompt_id


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Cohen's kappa (1960); None where chance alone would make both agree everywhere."""
    return _kappa(_encoded(list(zip(one, other, strict=True))), np.ones((1, len(one))))[0]


def fleiss_kappa(rows: Sequence[Sequence[str]]) -> float | None:
    """Fleiss' kappa (1971) of [items, raters] labels; None where all labels are the same."""
    return _kappa(_encoded(rows), np.ones((1, len(rows))), fleiss=True)[0]


def _agreement(
    group: tuple[str, ...], rows: Sequence[Sequence[str]], resamples: int, confidence: float, seed: int
) -> Agreement:
    labels, fleiss = _encoded(rows), len(group) > 2
    generator = numpy_rng(seed, "agreement", *group)
    whole = np.ones((1, len(rows)))
    drawn = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)  # [R, items]
    shares, share = _equal_share(labels, drawn), float(_equal_share(labels, whole)[0])
    kappa = _kappa(labels, whole, fleiss)[0]
    resampled = np.array([value for value in _kappa(labels, drawn, fleiss) if value is not None])
    low, high = percentile_interval(resampled, confidence) if kappa is not None else (None, None)
    return Agreement(group, len(rows), share, *percentile_interval(shares, confidence), kappa, low, high)


def _encoded(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """[items, raters, labels] of 0 and 1."""
    names = sorted({label for row in rows for label in row})
    return np.array([[[label == name for name in names] for label in row] for row in rows], dtype=float)


def _equal_share(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] share of equal pairs of ratings; `weights` [R, items] says how often each item counts."""
    raters = labels.shape[1]
    counts = labels.sum(1)  # [items, raters, labels] -> [items, labels]
    equal = (counts * (counts - 1)).sum(1) / (raters * (raters - 1))  # [items]
    return weights @ equal / weights.sum(1)


def _kappa(labels: np.ndarray, weights: np.ndarray, fleiss: bool = False) -> list[float | None]:
    """[R] kappas. Cohen's chance agreement takes each rater's own shares of labels, Fleiss' those of all ratings."""
    seen = _equal_share(labels, weights)
    shares = np.einsum("rn,nkl->rkl", weights, labels) / weights.sum(1)[:, None, None]  # [R, raters, labels]
    chance = (shares.mean(1) ** 2).sum(1) if fleiss else (shares[:, 0] * shares[:, 1]).sum(1)
    return [
        float((one - other) / (1 - other)) if other < 1 - 1e-12 else None
        for one, other in zip(seen, chance, strict=True)
    ]


def read_labels(files: Mapping[str, Path]) -> dict[str, dict[Any, str]]:
    """Labels by rater, of `verdicts.jsonl` files (a rater each) and rating files (`*.sqlite`, all raters in them).

    Raises:
        UserError: a file cannot be read.
    """
    table: dict[str, dict[Any, str]] = {}
    for name, file in files.items():
        if file.suffix != ".sqlite":
            table[name] = _labels(read_verdicts(file))
            continue
        if not file.is_file():
            raise UserError(f"{file}: no such file")
        store = RatingStore(file, seed=0)  # the seed decides what raters see, and nothing is shown here
        for rater, labels in store.by_rater(None).items():
            table[f"{name}/{rater}"] = dict(labels)
        store.close()
    return table
