"""Stored judgements: the published review files, and verdicts of an earlier run with its responses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradfiltering.data.file_formats import parse_json, read_json
from gradfiltering.errors import UserError
from gradfiltering.judging.parse import parse_scores
from gradfiltering.judging.responses import read_responses
from gradfiltering.judging.verdicts import Scores, Verdict, decide, read_verdicts, scores_from_json

QUESTION_FIELDS = ("prompt", "text", "Instruction", "instruction", "conversations")
CANDIDATE, AGAINST = "answer1", "answer2"
# What the published code stores in place of scores that it could not read.
NOT_PARSED = (-1.0, -1.0)


@dataclass(frozen=True)
class Review:
    """One stored judgement.

    Attributes:
        verdict: as the rules of this project make it.
        question: the text that was asked; None when the file names it only by prompt set and id.
        answers: (candidate's, opponent's); None when the file does not hold them.
    """

    verdict: Verdict
    question: str | None
    answers: tuple[str, str] | None


def read_reviews(path: Path) -> list[Review]:
    """Read stored judgements.

    `*.jsonl` is a `verdicts.jsonl` of this project. Anything else is a review file as Cherry LLM and Superfiltering
    publish them: an object with `Meta_Info` and `data`, whose records hold question, Answer1, Answer2, review, scores,
    review_reverse and scores_reverse (the last in swapped order).

    Raises:
        UserError: the file is missing or broken, or a record's stored scores are not those of its review.
    """
    if path.suffix == ".jsonl":
        return [Review(verdict, None, None) for verdict in read_verdicts(path)]
    content = read_json(path, "Give a file of stored reviews, or verdicts under a name that ends in .jsonl")
    if not isinstance(content, dict) or not isinstance(content.get("data"), list) or not content["data"]:
        raise UserError(f"{path}: no list of reviews under 'data'; give a file of stored reviews")
    about = content.get("Meta_Info")
    prompt_set = about.get("dataset_name") if isinstance(about, dict) else None
    return [
        _review(f"{path}, record {index}", str(prompt_set or path.stem), index, record)
        for index, record in enumerate(content["data"])
    ]


def with_answers(path: Path) -> list[tuple[str, str, Review]]:
    """Stored judgements, each after the two answers that were judged: (candidate's, opponent's, judgement).

    For a `verdicts.jsonl` the answers are found in `responses/<model>.jsonl` beside it.

    Raises:
        UserError: as `read_reviews`, or the responses are not there.
    """
    reviews = read_reviews(path)
    answers: dict[str, dict[tuple[str, str], str]] = {}

    def answer(model: str, verdict: Verdict) -> str:
        source = path.parent / "responses" / f"{model}.jsonl"
        if model not in answers:
            answers[model] = {(row.prompt_set, row.prompt_id): row.response for row in read_responses(source)}
        try:
            return answers[model][verdict.prompt_set, verdict.prompt_id]
        except KeyError:
            raise UserError(
                f"{source}: no response to prompt {verdict.prompt_id!r} of {verdict.prompt_set}, "
                f"which {path} has a verdict on; keep both files of the same run together"
            ) from None

    found = []
    for review in reviews:
        verdict = review.verdict
        pair = review.answers or (answer(verdict.candidate, verdict), answer(verdict.against, verdict))
        found.append((*pair, review))
    return found


def _review(where: str, prompt_set: str, index: int, record: Any) -> Review:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}; expected an object")
    question = next((record[name] for name in QUESTION_FIELDS if name in record), None)
    if not isinstance(question, str):
        raise UserError(f"{where}: no question under any of {', '.join(QUESTION_FIELDS)}")
    answers = _text(where, record, "Answer1"), _text(where, record, "Answer2")
    reply, scores = _scored(where, record, "review", "scores")
    reply_reverse, scores_reverse = _scored(where, record, "review_reverse", "scores_reverse")
    verdict = Verdict(
        candidate=CANDIDATE,
        against=AGAINST,
        judge="replay",
        repeat=0,
        prompt_set=prompt_set,
        prompt_id=str(index),
        reply=reply,
        scores=scores,
        reply_reverse=reply_reverse,
        scores_reverse=scores_reverse,
        verdict=decide(scores, scores_reverse),
    )
    return Review(verdict, question, answers)


def _text(where: str, record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {value!r}; expected a text")
    return value


def _scored(where: str, record: Mapping[str, Any], review_field: str, scores_field: str) -> tuple[str, Scores | None]:
    """The review and its scores, checked against the stored ones."""
    review = _text(where, record, review_field)
    read = parse_scores(review)
    stored = _stored_scores(f"{where}: {scores_field}", record.get(scores_field))
    if stored is not None and stored != NOT_PARSED and stored != read:
        found = "no two scores" if read is None else f"{read[0]:g} {read[1]:g}"
        raise UserError(
            f"{where}: {scores_field} is {list(stored)}, but the first line of {review_field} holds {found} "
            f"({review.strip()[:40]!r}); correct the one that is wrong"
        )
    return review, read


def _stored_scores(where: str, value: object) -> Scores | None:
    # The published files hold the list as a text, "[9.0, 8.5]".
    if isinstance(value, str):
        value = parse_json(value, f"{where}, {value!r:.60},", "Expected two numbers in a list")
    return scores_from_json(value, where)
