"""New evidence: a description of what is measured, and the measurer of it."""

from dataclasses import dataclass

import numpy as np

from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import Measurer
from gradfiltering.requests import Request


@dataclass(frozen=True)
class WordLengths(Request[np.ndarray]):
    """Mean length of the words of each row's response, [N] float64.

    Attributes:
        column: the row's field that holds the response.
    """

    column: str = "output"


class WordLengthMeasurer(Measurer[WordLengths]):
    """Measures word lengths on the rows as they came in."""

    request_type = WordLengths

    def measure(self, request: WordLengths, context: MeasurementContext) -> np.ndarray:
        """Measure [N] characters per word."""
        texts = context.dataset.rows.select(context.examples.example_ids.tolist())[request.column]
        return np.array([np.mean([len(word) for word in text.split()]) for text in texts])
