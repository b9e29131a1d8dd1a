import pytest

from gradfiltering.judge.chrf import corpus_chrf, sentence_chrf
from gradfiltering.judge.metrics import response_metrics

TOLERANCE = 1e-6  # torchmetrics counts in float32


def slow_chrf(response: str, reference: str, order: int = 6, beta: float = 2.0) -> float:
    """Popović (2015): mean F-beta over the character n-gram orders, spaces removed."""
    response, reference = "".join(response.split()), "".join(reference.split())
    order = min(order, len(reference))
    total = 0.0
    for n in range(1, order + 1):
        given = [response[i : i + n] for i in range(len(response) - n + 1)]
        wanted = [reference[i : i + n] for i in range(len(reference) - n + 1)]
        matches = sum(min(given.count(gram), wanted.count(gram)) for gram in set(given))
        if matches:
            precision, recall = matches / len(given), matches / len(wanted)
            total += (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
    return total / order


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
    metrics = response_metrics(prompts, responses)
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
        response_metrics([make_prompt("a", "0")], [make_response("a", "1")])
