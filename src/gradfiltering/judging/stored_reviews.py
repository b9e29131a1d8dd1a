"""Stored judgements: published review files, and verdicts of an earlier run with its responses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradfiltering.data.text_files import parse_json, read_json
from gradfiltering.errors import UserError
from gradfiltering.judging.reply_parser import parse_scores
from gradfiltering.judging.responses import read_responses
from gradfiltering.judging.verdicts import Scores, Verdict, decide_verdict, read_scores, read_verdicts

QUESTION_FIELDS = ("prompt", "text", "Instruction", "instruction", "conversations")
CANDIDATE, BASELINE = "answer1", "answer2"
# The published code stores these in place of scores that it could not read.
UNREADABLE_SCORES = (-1.0, -1.0)


@dataclass(frozen=True)
class Review:
    """One stored judgement.

    Attributes:
        verdict: the verdict by the rules of this project.
        question: text of the question; None when the file names it only by prompt set and id.
        answers: (candidate's, baseline's); None when the file does not hold them.
    """

    verdict: Verdict
    question: str | None
    answers: tuple[str, str] | None


def read_reviews(reviews_path: Path) -> list[Review]:
    """Read stored judgements.

    `*.jsonl` is a `verdicts.jsonl` of this project. Anything else is a review file as Cherry LLM
    and Superfiltering publish them: an object with `Meta_Info` and `data`, whose records hold
    question, Answer1, Answer2, review, scores, review_reverse and scores_reverse (the last in
    swapped order).

    Raises:
        UserError: the file is missing or broken, or a record's stored scores are not those of its
            review.
    """
    if reviews_path.suffix == ".jsonl":
        return [Review(verdict, None, None) for verdict in read_verdicts(reviews_path)]
    file_content = read_json(
        reviews_path, "Give a file of stored reviews, or verdicts under a name that ends in .jsonl"
    )
    review_records = file_content.get("data") if isinstance(file_content, dict) else None
    if not isinstance(review_records, list) or not review_records:
        raise UserError(f"{reviews_path}: no list of reviews under 'data'; give a file of stored reviews")
    meta_info = file_content.get("Meta_Info")
    dataset_name = meta_info.get("dataset_name") if isinstance(meta_info, dict) else None
    return [
        _read_record(
            f"{reviews_path}, record {record_index}",
            str(dataset_name or reviews_path.stem),
            record_index,
            review_record,
        )
        for record_index, review_record in enumerate(review_records)
    ]


def read_reviews_with_answers(reviews_path: Path) -> list[tuple[str, str, Review]]:
    """Read stored judgements as (candidate's answer, baseline's answer, judgement).

    For a `verdicts.jsonl` the answers are read from `responses/<model>.jsonl` beside it.

    Raises:
        UserError: as `read_reviews`, or the responses are not there.
    """
    reviews = read_reviews(reviews_path)
    answers_by_model: dict[str, dict[tuple[str, str], str]] = {}

    def read_answer(model: str, verdict: Verdict) -> str:
        responses_path = reviews_path.parent / "responses" / f"{model}.jsonl"
        if model not in answers_by_model:
            answers_by_model[model] = {
                (response.prompt_set, response.prompt_id): response.response
                for response in read_responses(responses_path)
            }
        try:
            return answers_by_model[model][verdict.prompt_set, verdict.prompt_id]
        except KeyError:
            raise UserError(
                f"{responses_path}: no response to prompt {verdict.prompt_id!r} of "
                f"{verdict.prompt_set}, which {reviews_path} has a verdict on; keep both files of the same "
                "run together"
            ) from None

    judgements = []
    for review in reviews:
        first_answer, second_answer = review.answers or (
            read_answer(review.verdict.candidate, review.verdict),
            read_answer(review.verdict.against, review.verdict),
        )
        judgements.append((first_answer, second_answer, review))
    return judgements


def _read_record(record_location: str, prompt_set: str, record_index: int, review_record: Any) -> Review:
    if not isinstance(review_record, dict):
        raise UserError(f"{record_location}: a JSON {type(review_record).__name__}; expected an object")
    question_text = next((review_record[name] for name in QUESTION_FIELDS if name in review_record), None)
    if not isinstance(question_text, str):
        raise UserError(f"{record_location}: no question under any of {', '.join(QUESTION_FIELDS)}")
    answer_texts = (
        _read_text(record_location, review_record, "Answer1"),
        _read_text(record_location, review_record, "Answer2"),
    )
    reply_text, review_scores = _read_review(record_location, review_record, "review", "scores")
    reply_reverse, scores_reverse = _read_review(record_location, review_record, "review_reverse", "scores_reverse")
    record_verdict = Verdict(
        candidate=CANDIDATE,
        against=BASELINE,
        judge="replay",
        repeat=0,
        prompt_set=prompt_set,
        prompt_id=str(record_index),
        reply=reply_text,
        scores=review_scores,
        reply_reverse=reply_reverse,
        scores_reverse=scores_reverse,
        verdict=decide_verdict(review_scores, scores_reverse),
    )
    return Review(record_verdict, question_text, answer_texts)


def _read_text(record_location: str, review_record: Mapping[str, Any], field_name: str) -> str:
    field_value = review_record.get(field_name)
    if not isinstance(field_value, str):
        raise UserError(f"{record_location}: {field_name} is {field_value!r}; expected a text")
    return field_value


def _read_review(
    record_location: str, review_record: Mapping[str, Any], review_field: str, scores_field: str
) -> tuple[str, Scores | None]:
    """Read a review and its scores, checked against the stored ones."""
    review_text = _read_text(record_location, review_record, review_field)
    review_scores = parse_scores(review_text)
    stored_value = review_record.get(scores_field)
    # The published files hold the list as a text, "[9.0, 8.5]".
    if isinstance(stored_value, str):
        stored_value = parse_json(
            stored_value,
            f"{record_location}: {scores_field}, {stored_value!r:.60},",
            "Expected two numbers in a list",
        )
    stored_scores = read_scores(stored_value, f"{record_location}: {scores_field}")
    if stored_scores not in (None, UNREADABLE_SCORES, review_scores):
        parsed_text = "no two scores" if review_scores is None else f"{review_scores[0]:g} {review_scores[1]:g}"
        raise UserError(
            f"{record_location}: {scores_field} is {list(stored_scores or ())}, but the first line of "
            f"{review_field} holds {parsed_text} ({review_text.strip()[:40]!r}); correct the one that "
            "is wrong"
        )
    return review_text, review_scores
