"""chrF (Popović, 2015) through torchmetrics: character n-grams up to six, no word n-grams, beta = 2."""

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

from torch import Tensor
from torchmetrics.functional.text import chrf_score

CHARACTER_ORDER = 6


@lru_cache(maxsize=65_536)
def sentence_chrf(response: str, reference: str) -> float:
    """chrF of one response, from 0 to 1; 1 for an exact match, 0 for an empty response.

    torchmetrics averages over all orders, also those for which the reference is too short to have an n-gram, so that
    "7" would score 1/6 against "7". Here the order is at most the reference's length (spaces do not count in chrF).

    Cached, because each order of a judgement and the metrics ask for the same pairs.
    """
    response, reference = response.strip(), reference.strip()
    if response == reference:
        return 1.0
    order = min(CHARACTER_ORDER, len("".join(reference.split())))
    if not response or order == 0:
        return 0.0
    return _chrf([response], [reference], order)


def corpus_chrf(responses: Sequence[str], references: Sequence[str]) -> float:
    """chrF of n-gram counts pooled over all responses, from 0 to 1."""
    return _chrf(responses, references, CHARACTER_ORDER)


def _chrf(responses: Sequence[str], references: Sequence[str], order: int) -> float:
    targets = [[reference] for reference in references]
    score = chrf_score(list(responses), targets, n_char_order=order, n_word_order=0)
    return float(cast(Tensor, score))  # a tuple only when sentence scores are asked for
