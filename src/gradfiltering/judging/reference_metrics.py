"""Metrics of a model's responses against references, and chrF through sacrebleu."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import cache, lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import Response

if TYPE_CHECKING:
    from sacrebleu.metrics import CHRF

Expected = TypeVar("Expected")

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
    prompts: Sequence[Prompt], responses_by_model: Mapping[str, Sequence[Response]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure every model's responses: `{model: {prompt set: {metric: value}}}`."""
    return {
        model_name: {set_name: asdict(metrics) for set_name, metrics in measure_responses(prompts, responses).items()}
        for model_name, responses in responses_by_model.items()
    }


def measure_responses(prompts: Sequence[Prompt], model_responses: Sequence[Response]) -> dict[str, ResponseMetrics]:
    """Measure one model's responses, by prompt set in order of first appearance.

    Args:
        prompts: the prompts, with references where there are any.
        model_responses: the model's response to each of them, in the same order.

    Raises:
        ValueError: prompts and responses do not belong together.
    """
    pairs_by_set: dict[str, list[tuple[Prompt, Response]]] = {}
    for eval_prompt, model_response in zip(prompts, model_responses, strict=True):
        if (eval_prompt.prompt_set, eval_prompt.prompt_id) != (
            model_response.prompt_set,
            model_response.prompt_id,
        ):
            raise ValueError(
                f"response to {model_response.prompt_set}/{model_response.prompt_id} stands where the prompt "
                f"is {eval_prompt.prompt_set}/{eval_prompt.prompt_id}"
            )
        pairs_by_set.setdefault(eval_prompt.prompt_set, []).append((eval_prompt, model_response))
    return {prompt_set: _measure_set(answered_pairs) for prompt_set, answered_pairs in pairs_by_set.items()}


@lru_cache(maxsize=65_536)
def sentence_chrf(response_text: str, reference_text: str) -> float:
    """Compute chrF of one response, from 0 to 1; 1 for an exact match, 0 for an empty response.

    It is sacrebleu's value divided by 100: n-grams of up to six characters without spaces, beta = 2
    (Popović, 2015), averaged over the orders that response and reference are both long enough for.

    Cached, because each order of a judgement and the metrics need the same pairs.
    """
    if response_text.strip() == reference_text.strip():
        return 1.0  # two empty texts, too, for which sacrebleu gives 0
    percent: float = _chrf_metric().sentence_score(response_text, [reference_text]).score
    return percent / 100


def corpus_chrf(response_texts: Sequence[str], reference_texts: Sequence[str]) -> float:
    """Compute chrF of n-gram counts pooled over all responses, from 0 to 1."""
    percent: float = _chrf_metric().corpus_score(response_texts, [reference_texts]).score
    return percent / 100


def reference_number(reference_text: str) -> Decimal | None:
    """Read the number a reference ends in after `####`, or that it is; None where it is neither."""
    reference_ending = reference_text.rpartition("####")[2].strip()
    return last_number(reference_ending) if _NUMBER.fullmatch(reference_ending) else None


def last_number(text: str) -> Decimal | None:
    """Read the last number of a text, thousands with or without commas; None without one."""
    text_numbers = _NUMBER.findall(text)
    return Decimal(text_numbers[-1].replace("$", "").replace(",", "")) if text_numbers else None


def _measure_set(answered_pairs: Sequence[tuple[Prompt, Response]]) -> ResponseMetrics:
    referenced_pairs = [
        (model_response.response.strip(), eval_prompt.reference.strip())
        for eval_prompt, model_response in answered_pairs
        if eval_prompt.reference is not None
    ]
    numbered_pairs = [
        (answer_text, expected_number)
        for answer_text, reference_text in referenced_pairs
        if (expected_number := reference_number(reference_text)) is not None
    ]
    return ResponseMetrics(
        responses=len(answered_pairs),
        references=len(referenced_pairs),
        exact_match=_mean(referenced_pairs, lambda answer_text, reference_text: answer_text == reference_text),
        final_number=_mean(
            numbered_pairs, lambda answer_text, expected_number: last_number(answer_text) == expected_number
        ),
        chrf=_mean(referenced_pairs, sentence_chrf),
        chrf_corpus=corpus_chrf(*zip(*referenced_pairs, strict=True)) if referenced_pairs else None,
        mean_response_tokens=fmean(model_response.response_tokens for _, model_response in answered_pairs),
        stopped_by_length=fmean(model_response.stop_reason == "length" for _, model_response in answered_pairs),
    )


def _mean(
    answered_pairs: Iterable[tuple[str, Expected]], measure_pair: Callable[[str, Expected], float]
) -> float | None:
    pair_values = [float(measure_pair(answer_text, expected_value)) for answer_text, expected_value in answered_pairs]
    return sum(pair_values) / len(pair_values) if pair_values else None


@cache
def _chrf_metric() -> "CHRF":
    from sacrebleu.metrics import CHRF

    return CHRF()
