"""Metrics of a model's responses against references, and chrF through torchmetrics."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import lru_cache
from statistics import fmean
from typing import Any, cast

from torch import Tensor
from torchmetrics.functional.text import chrf_score

from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import Response

CHARACTER_ORDER = 6  # chrF (Popović, 2015): n-grams up to six, no word n-grams, beta = 2
# A sign counts where no digit or word stands before it, as in "3-4" it would be a minus.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", flags=re.ASCII)


@dataclass(frozen=True)
class ResponseMetrics:
    """Metrics of one model's responses to one prompt set, without a judge.

    The four that need a reference are None where no prompt of the set has one.

    Attributes:
        responses: prompts answered.
        references: of those, prompts with a reference.
        exact_match: share of these whose answer equals the reference, both stripped of surrounding
            white space.
        final_number: share, of the references that end in a number as GSM8K's do (`#### 42`, or the
            number alone), of responses whose last number is the same. None without such references.
        chrf: mean over these of the sentence chrF, from 0 to 1.
        chrf_corpus: chrF of the n-gram counts pooled over these, from 0 to 1.
        mean_response_tokens: mean over all responses.
        stopped_by_length: share of all responses that the token limit cut off.
    """

    responses: int
    references: int
    exact_match: float | None
    final_number: float | None
    chrf: float | None
    chrf_corpus: float | None
    mean_response_tokens: float
    stopped_by_length: float


def measure_all_responses(
    prompts: Sequence[Prompt], responses: Mapping[str, Sequence[Response]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure every model's responses: `{model: {prompt set: {metric: value}}}`."""
    return {
        model: {
            prompt_set: asdict(metrics) for prompt_set, metrics in measure_responses(prompts, model_responses).items()
        }
        for model, model_responses in responses.items()
    }


def measure_responses(prompts: Sequence[Prompt], responses: Sequence[Response]) -> dict[str, ResponseMetrics]:
    """Measure one model's responses, by prompt set in order of first appearance.

    Args:
        prompts: the prompts, with references where there are any.
        responses: the model's response to each of them, in the same order.

    Raises:
        ValueError: prompts and responses do not belong together.
    """
    pairs_by_set: dict[str, list[tuple[Prompt, Response]]] = {}
    for prompt, response in zip(prompts, responses, strict=True):
        if (prompt.prompt_set, prompt.prompt_id) != (response.prompt_set, response.prompt_id):
            raise ValueError(
                f"response to {response.prompt_set}/{response.prompt_id} stands where the prompt "
                f"is {prompt.prompt_set}/{prompt.prompt_id}"
            )
        pairs_by_set.setdefault(prompt.prompt_set, []).append((prompt, response))
    return {prompt_set: _measure_set(pairs) for prompt_set, pairs in pairs_by_set.items()}


@lru_cache(maxsize=65_536)
def sentence_chrf(response: str, reference: str) -> float:
    """Compute chrF of one response, from 0 to 1; 1 for an exact match, 0 for an empty response.

    torchmetrics averages over all orders, also those for which the reference is too short to have
    an n-gram, so that "7" would score 1/6 against "7". Here the order is at most the reference's
    length (spaces do not count in chrF).

    Cached, because each order of a judgement and the metrics need the same pairs.
    """
    response, reference = response.strip(), reference.strip()
    if response == reference:
        return 1.0
    order = min(CHARACTER_ORDER, len("".join(reference.split())))
    if not response or order == 0:
        return 0.0
    return _chrf([response], [reference], order)


def corpus_chrf(responses: Sequence[str], references: Sequence[str]) -> float:
    """Compute chrF of n-gram counts pooled over all responses, from 0 to 1."""
    return _chrf(responses, references, CHARACTER_ORDER)


def reference_number(reference: str) -> Decimal | None:
    """Read the number a reference ends in after `####`, or that it is; None where it is neither."""
    ending = reference.rpartition("####")[2].strip()
    return last_number(ending) if _NUMBER.fullmatch(ending) else None


def last_number(text: str) -> Decimal | None:
    """Read the last number of a text, thousands with or without commas; None without one."""
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace("$", "").replace(",", "")) if numbers else None


def _measure_set(pairs: Sequence[tuple[Prompt, Response]]) -> ResponseMetrics:
    answered = [
        (response.response.strip(), prompt.reference.strip())
        for prompt, response in pairs
        if prompt.reference is not None
    ]
    numbered = [
        (answer, number) for answer, reference in answered if (number := reference_number(reference)) is not None
    ]
    return ResponseMetrics(
        responses=len(pairs),
        references=len(answered),
        exact_match=_mean(answered, lambda answer, reference: answer == reference),
        final_number=_mean(numbered, lambda answer, number: last_number(answer) == number),
        chrf=_mean(answered, sentence_chrf),
        chrf_corpus=corpus_chrf(*zip(*answered, strict=True)) if answered else None,
        mean_response_tokens=fmean(response.response_tokens for _, response in pairs),
        stopped_by_length=fmean(response.stop_reason == "length" for _, response in pairs),
    )


def _mean(pairs: Iterable[tuple[Any, Any]], measure: Callable[[Any, Any], float]) -> float | None:
    values = [float(measure(answer, expected)) for answer, expected in pairs]
    return sum(values) / len(values) if values else None


def _chrf(responses: Sequence[str], references: Sequence[str], order: int) -> float:
    targets = [[reference] for reference in references]
    score = chrf_score(list(responses), targets, n_char_order=order, n_word_order=0)
    return float(cast(Tensor, score))  # a tuple only when sentence scores are asked for
