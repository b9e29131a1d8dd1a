"""Verdicts of a judge on pairs of answers, judged in both orders, and `verdicts.jsonl`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from gradfiltering.errors import UserError
from gradfiltering.judging.json_lines import read_rows, write_rows
from gradfiltering.options import NonNegativeInt, model_validator, options

Scores = tuple[float, float]
Outcome = Literal["win", "tie", "loss", "unparsed"]
OUTCOME_VALUES = {"win": 1, "tie": 0, "loss": -1}
HUMAN = "human"  # the judge whose replies hold each rater's label


def order_signs(scores: Scores, scores_reverse: Scores) -> tuple[int, int]:
    """Tell who is ahead in each order: 1 = the candidate, -1 = its baseline, 0 = neither.

    Args:
        scores: (candidate, against), as given when the candidate's answer came first.
        scores_reverse: (against, candidate), as given when the baseline's answer came first.
    """
    return _sign(scores[0] - scores[1]), _sign(scores_reverse[1] - scores_reverse[0])


def decide_verdict(scores: Scores | None, scores_reverse: Scores | None) -> Outcome:
    """Decide for or against the candidate by the sign of the sum of the two orders' signs.

    So win + tie = win, and win + loss = tie. A missing pair of scores makes the verdict
    `unparsed`, never a tie.
    """
    if scores is None or scores_reverse is None:
        return "unparsed"
    sign_sum = sum(order_signs(scores, scores_reverse))
    return "win" if sign_sum > 0 else "loss" if sign_sum < 0 else "tie"


@options
class Verdict:
    """One line of `verdicts.jsonl`: one prompt, judged in both orders.

    Attributes:
        candidate: name of the model that is compared.
        against: name of its baseline.
        judge: name of the judge.
        repeat: 0 for the first time this judge saw this pair, 1 for the second, …
        prompt_set: name of the set the prompt belongs to.
        prompt_id: the prompt's name within the set.
        reply: the judge's raw reply with the candidate's answer first.
        scores: (candidate, against) from `reply`; None when it held no two scores.
        reply_reverse: the raw reply with the baseline's answer first.
        scores_reverse: (against, candidate) from `reply_reverse`, so in the swapped order.
        verdict: the decision for the candidate, by `decide_verdict`.
    """

    candidate: str
    against: str
    judge: str
    repeat: NonNegativeInt
    prompt_set: str
    prompt_id: str
    reply: str
    scores: Scores | None
    reply_reverse: str
    scores_reverse: Scores | None
    verdict: Outcome

    @model_validator(mode="after")
    def _check_verdict(self) -> Self:
        expected_verdict = decide_verdict(self.scores, self.scores_reverse)
        if self.verdict != expected_verdict:
            raise ValueError(
                f"verdict is {self.verdict!r}, but scores {self.scores} and scores_reverse {self.scores_reverse} "
                f"make it {expected_verdict!r}; correct it, or judge the pair again"
            )
        return self


def write_verdicts(verdicts_path: Path, verdicts: Iterable[Verdict]) -> None:
    """Write `verdicts.jsonl`; it appears under its name only when complete."""
    write_rows(verdicts_path, verdicts)


def read_verdicts(verdicts_path: Path) -> list[Verdict]:
    """Read `verdicts.jsonl`; an error names file, line and field."""
    return read_rows(verdicts_path, Verdict)


def read_scores(json_value: object, value_location: str) -> Scores | None:
    """Read a pair of scores from parsed JSON: two numbers, or null.

    Raises:
        UserError: it is anything else; the message opens with `value_location`.
    """
    if json_value is None:
        return None
    if (
        isinstance(json_value, list)
        and len(json_value) == 2
        and all(type(score) in (int, float) for score in json_value)
    ):
        return float(json_value[0]), float(json_value[1])
    raise UserError(f"{value_location} is {json_value!r}; expected two numbers in a list, or null")


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
