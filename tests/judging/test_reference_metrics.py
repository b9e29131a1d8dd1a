import json
from decimal import Decimal

import pytest

from gradfiltering.judging.reference_metrics import (
    corpus_chrf,
    last_number,
    measure_responses,
    reference_number,
    sentence_chrf,
)

TOLERANCE = 1e-12


def slow_chrf(response: str, reference: str, order: int = 6, beta: float = 2.0) -> float:
    """Popović (2015): F-beta of mean precision and recall over the character n-gram orders, spaces removed."""
    response, reference = "".join(response.split()), "".join(reference.split())
    precisions, recalls = [], []
    for n in range(1, min(order, len(response), len(reference)) + 1):
        given = [response[i : i + n] for i in range(len(response) - n + 1)]
        wanted = [reference[i : i + n] for i in range(len(reference) - n + 1)]
        matches = sum(min(given.count(gram), wanted.count(gram)) for gram in set(given))
        precisions.append(matches / len(given))
        recalls.append(matches / len(wanted))
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("a cat sat on the mat", "the cat sat on a mat"),
        ("12", "123"),
        ("7", "7"),
        ("The answer is 42.", "42"),
        ("grün", "Das Gras ist grün."),
        ("nothing alike", "xyz"),
    ],
)
def test_sentence_chrf_is_the_published_formula(response, reference):
    assert sentence_chrf(response, reference) == pytest.approx(slow_chrf(response, reference), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("response", "reference", "percent"),  # sentence_chrf of sacrebleu 2.6.0's command line
    [("7", "7 apples", 17.2413793), ("7 apples", "7", 45.4545455), ("x", "7", 0.0), ("", "7", 0.0), ("7", "", 0.0)],
)
def test_chrf_of_short_answers_is_that_of_sacrebleu(response, reference, percent):
    assert 100 * sentence_chrf(response, reference) == pytest.approx(percent, abs=1e-6)


def test_half_a_surrogate_pair_has_a_chrf():
    assert sentence_chrf("\ud83d x", "x") == sentence_chrf("y x", "x")


def test_chrf_at_the_ends():
    assert sentence_chrf(" 7 ", "7") == 1.0
    assert sentence_chrf("", "7") == 0.0
    assert sentence_chrf("7", "") == 0.0
    assert sentence_chrf("", "") == 1.0
    assert corpus_chrf(["a whole sentence", "b"], ["a whole sentence", "b"]) == pytest.approx(1.0, abs=TOLERANCE)


def test_metrics_by_set(make_prompt, make_response):
    prompts = [
        make_prompt("42", "0"),
        make_prompt("a green apple", "1"),
        make_prompt(None, "2"),
        make_prompt(None, "0", "vicuna"),
    ]
    responses = [
        make_response(" 42\n", "0", tokens=2),
        make_response("a red apple", "1", tokens=4),
        make_response("anything", "2", tokens=9, stop="length"),
        make_response("words", "0", "vicuna", tokens=5),
    ]
    metrics = measure_responses(prompts, responses)
    assert list(metrics) == ["tasks", "vicuna"]
    tasks = metrics["tasks"]
    assert (tasks.responses, tasks.references, tasks.exact_match) == (3, 2, 0.5)
    assert tasks.chrf == pytest.approx((1 + slow_chrf("a red apple", "a green apple")) / 2, abs=TOLERANCE)
    assert 0 < tasks.chrf_corpus < 1
    assert tasks.mean_response_tokens == 5
    assert tasks.stopped_by_length == pytest.approx(1 / 3)
    vicuna = metrics["vicuna"]
    assert (vicuna.exact_match, vicuna.chrf, vicuna.chrf_corpus) == (None, None, None)
    assert (vicuna.references, vicuna.mean_response_tokens) == (0, 5)


def test_responses_to_other_prompts_are_refused(make_prompt, make_response):
    with pytest.raises(ValueError, match="tasks/1 stands where the prompt is tasks/0"):
        measure_responses([make_prompt("a", "0")], [make_response("a", "1")])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("She makes $1,234.50 a day", "1234.50"),
        ("#### 18", "18"),
        ("3-4", "4"),
        ("It is -5", "-5"),
        ("It is -$5", "-5"),
        ("1,2", "2"),
        ("10,00", "00"),
        ("18.0", "18"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_only_references_that_end_in_a_number_ask_for_one():
    assert reference_number("9 * 2 = 18\n#### 1,018") == 1018
    assert reference_number(" 7 ") == 7
    assert reference_number("The year 1999") is None and reference_number("") is None


def test_final_number_in_the_metrics(make_prompt, make_response):
    references = ["so\n#### 18", "#### 5", "a text"]
    prompts = [make_prompt(reference, str(n)) for n, reference in enumerate(references)]
    responses = [make_response(text, str(n)) for n, text in enumerate(["It is $18.00", "5 or 6", "a text"])]
    found = measure_responses(prompts, responses)["tasks"]
    assert (found.final_number, found.exact_match) == (0.5, pytest.approx(1 / 3))
    assert measure_responses(prompts[2:], responses[2:])["tasks"].final_number is None


def test_every_reference_of_gsm8k_holds_its_number(shared_data):
    lines = (shared_data / "tasks" / "gsm8k_test.jsonl").read_text("utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 1319
    for answer in answers:
        assert reference_number(answer) == last_number(answer) == Decimal(answer.split("####")[1].replace(",", ""))
