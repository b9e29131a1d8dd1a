"""Verdicts: what a judge said about one pair of answers in both orders, and `verdicts.jsonl`."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from gradfiltering.errors import UserError
from gradfiltering.judging.jsonl import read_jsonl, write_jsonl

Scores = tuple[float, float]
Outcome = Literal["win", "tie", "loss", "unparsed"]
HUMAN = "human"  # the judge whose replies hold what each rater said


def sign(number: float) -> int:
    """-1, 0 or 1."""
    return (number > 0) - (number < 0)


def order_signs(scores: Scores, scores_reverse: Scores) -> tuple[int, int]:
    """Who is ahead in each order: 1 = the candidate, -1 = its opponent, 0 = neither.

    Args:
        scores: (candidate, against), as given when the candidate's answer came first.
        scores_reverse: (against, candidate), as given when the opponent's answer came first.
    """
    return sign(scores[0] - scores[1]), sign(scores_reverse[1] - scores_reverse[0])


def decide(scores: Scores | None, scores_reverse: Scores | None) -> Outcome:
    """The verdict for the candidate: the sign of the sum of the two orders' signs.

    So win + tie = win, and win + loss = tie. A missing pair of scores makes the verdict `unparsed`, never a tie.
    """
    if scores is None or scores_reverse is None:
        return "unparsed"
    total = sum(order_signs(scores, scores_reverse))
    return "win" if total > 0 else "loss" if total < 0 else "tie"


@dataclass(frozen=True)
class Verdict:
    """One line of `verdicts.jsonl`: one prompt, judged in both orders.

    Attributes:
        candidate: name of the model whose verdict this is.
        against: name of its opponent.
        judge: name of the judge.
        repeat: 0 for the first time this judge saw this pair, 1 for the second, …
        prompt_set: which prompt set the prompt belongs to.
        prompt_id: the prompt's name within its set.
        reply: the judge's raw reply with the candidate's answer first.
        scores: (candidate, against) from `reply`; None when it held no two scores.
        reply_reverse: the raw reply with the opponent's answer first.
        scores_reverse: (against, candidate) from `reply_reverse`, so in the swapped order.
        verdict: what `decide` makes of the two pairs of scores.
    """

    candidate: str
    against: str
    judge: str
    repeat: int
    prompt_set: str
    prompt_id: str
    reply: str
    scores: Scores | None
    reply_reverse: str
    scores_reverse: Scores | None
    verdict: Outcome

    def __post_init__(self) -> None:
        for name in ("scores", "scores_reverse"):
            scores = getattr(self, name)
            if scores is not None and not all(math.isfinite(score) for score in scores):
                raise ValueError(f"{name} is {scores}: scores must be finite numbers")
        expected = decide(self.scores, self.scores_reverse)
        if self.verdict != expected:
            raise ValueError(
                f"verdict is {self.verdict!r}, but scores {self.scores} and scores_reverse {self.scores_reverse} "
                f"make it {expected!r}"
            )


def write_verdicts(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Write `verdicts.jsonl`; it appears under its name only when complete."""
    write_jsonl(path, (asdict(verdict) for verdict in verdicts))


def read_verdicts(path: Path) -> list[Verdict]:
    """Read `verdicts.jsonl`.

    Raises:
        UserError: a line lacks a field, has an unknown one, or contradicts itself; names file, line and field.
    """
    return [_verdict_from_row(path, number, row) for number, row in read_jsonl(path)]


def _verdict_from_row(path: Path, line: int, row: dict[str, Any]) -> Verdict:
    where = f"{path}, line {line}"
    names = [field.name for field in fields(Verdict)]
    if missing := [name for name in names if name not in row]:
        raise UserError(f"{where}: no field {missing[0]!r}; a verdict has the fields {', '.join(names)}")
    if unknown := [name for name in row if name not in names]:
        raise UserError(f"{where}: unknown field {unknown[0]!r}; a verdict has the fields {', '.join(names)}")
    values = dict(row)
    for name in ("candidate", "against", "judge", "prompt_set", "prompt_id", "reply", "reply_reverse", "verdict"):
        if not isinstance(values[name], str):
            raise UserError(f"{where}: {name} is {values[name]!r}; expected a text")
    if not isinstance(values["repeat"], int) or isinstance(values["repeat"], bool) or values["repeat"] < 0:
        raise UserError(f"{where}: repeat is {values['repeat']!r}; expected a whole number from 0")
    if values["verdict"] not in get_args(Outcome):
        raise UserError(f"{where}: verdict is {values['verdict']!r}; expected one of {', '.join(get_args(Outcome))}")
    for name in ("scores", "scores_reverse"):
        values[name] = scores_from_json(values[name], f"{where}: {name}")
    try:
        return Verdict(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}; correct the line, or judge the pair again") from None


def scores_from_json(value: object, where: str) -> Scores | None:
    """A pair of scores from parsed JSON: two numbers, or null.

    Raises:
        UserError: it is anything else; the message opens with `where`.
    """
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(score) in (int, float) for score in value):
        return float(value[0]), float(value[1])
    raise UserError(f"{where} is {value!r}; expected two numbers in a list, or null")
