"""Reference metrics of a model's responses, per prompt set."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradfiltering.judge.chrf import corpus_chrf, sentence_chrf
from gradfiltering.judge.prompts import Prompt
from gradfiltering.judge.responses import Response


@dataclass(frozen=True)
class ResponseMetrics:
    """What can be said of one model's responses to one prompt set without a judge.

    Attributes:
        responses: prompts answered.
        references: of those, prompts with a reference.
        exact_match: share of these whose answer equals the reference, both stripped of surrounding white space.
        chrf: mean over these of the sentence chrF, from 0 to 1.
        chrf_corpus: chrF of the n-gram counts pooled over these, from 0 to 1.
        mean_response_tokens: over all responses.
        stopped_by_length: share of all responses that the token limit cut off.

    The three that need a reference are None where no prompt of the set has one.
    """

    responses: int
    references: int
    exact_match: float | None
    chrf: float | None
    chrf_corpus: float | None
    mean_response_tokens: float
    stopped_by_length: float


def response_metrics(prompts: Sequence[Prompt], responses: Sequence[Response]) -> dict[str, ResponseMetrics]:
    """Metrics of one model, by prompt set in order of first appearance.

    Args:
        prompts: the prompts, with references where there are any.
        responses: the model's response to each of them, in the same order.

    Raises:
        ValueError: prompts and responses do not belong together.
    """
    by_set: dict[str, list[tuple[Prompt, Response]]] = {}
    for prompt, response in zip(prompts, responses, strict=True):
        if (prompt.prompt_set, prompt.prompt_id) != (response.prompt_set, response.prompt_id):
            raise ValueError(
                f"response to {response.prompt_set}/{response.prompt_id} stands where the prompt is "
                f"{prompt.prompt_set}/{prompt.prompt_id}"
            )
        by_set.setdefault(prompt.prompt_set, []).append((prompt, response))
    return {name: _of_set(pairs) for name, pairs in by_set.items()}


def _of_set(pairs: Sequence[tuple[Prompt, Response]]) -> ResponseMetrics:
    judged = [
        (response.response.strip(), prompt.reference.strip())
        for prompt, response in pairs
        if prompt.reference is not None
    ]
    answers, references = [answer for answer, _ in judged], [reference for _, reference in judged]
    return ResponseMetrics(
        responses=len(pairs),
        references=len(judged),
        exact_match=_mean([float(answer == reference) for answer, reference in judged]) if judged else None,
        chrf=_mean([sentence_chrf(answer, reference) for answer, reference in judged]) if judged else None,
        chrf_corpus=corpus_chrf(answers, references) if judged else None,
        mean_response_tokens=_mean([response.response_tokens for _, response in pairs]),
        stopped_by_length=_mean([float(response.stop_reason == "length") for _, response in pairs]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
