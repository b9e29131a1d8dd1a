"""Reference metrics of a model's responses, per prompt set."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from gradfiltering.judging.chrf import corpus_chrf, sentence_chrf
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import Response

# A sign counts where no digit or word stands before it, as in "3-4" it would be a minus between two numbers.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", flags=re.ASCII)


@dataclass(frozen=True)
class ResponseMetrics:
    """What can be said of one model's responses to one prompt set without a judge.

    Attributes:
        responses: prompts answered.
        references: of those, prompts with a reference.
        exact_match: share of these whose answer equals the reference, both stripped of surrounding white space.
        final_number: share, of the references that end in a number as GSM8K's do (`#### 42`, or the number alone), of
            responses whose last number is the same. None where there is no such reference.
        chrf: mean over these of the sentence chrF, from 0 to 1.
        chrf_corpus: chrF of the n-gram counts pooled over these, from 0 to 1.
        mean_response_tokens: over all responses.
        stopped_by_length: share of all responses that the token limit cut off.

    The four that need a reference are None where no prompt of the set has one.
    """

    responses: int
    references: int
    exact_match: float | None
    final_number: float | None
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
    wanted = [(answer, number) for answer, text in judged if (number := reference_number(text)) is not None]
    answers, references = [answer for answer, _ in judged], [reference for _, reference in judged]
    return ResponseMetrics(
        responses=len(pairs),
        references=len(judged),
        exact_match=_mean([float(answer == reference) for answer, reference in judged]) if judged else None,
        final_number=_mean([float(last_number(answer) == number) for answer, number in wanted]) if wanted else None,
        chrf=_mean([sentence_chrf(answer, reference) for answer, reference in judged]) if judged else None,
        chrf_corpus=corpus_chrf(answers, references) if judged else None,
        mean_response_tokens=_mean([response.response_tokens for _, response in pairs]),
        stopped_by_length=_mean([float(response.stop_reason == "length") for _, response in pairs]),
    )


def reference_number(reference: str) -> Decimal | None:
    """The number that a reference ends in after `####`, or that it is; None where it is neither."""
    final = reference.rpartition("####")[2].strip()
    return last_number(final) if _NUMBER.fullmatch(final) else None


def last_number(text: str) -> Decimal | None:
    """The last number of a text, thousands with or without commas; None without one."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].lstrip("$ ").replace("$", "").replace(",", "")) if found else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
