"""A scorer that requests evidence of its own."""

from typing import Any, ClassVar

from gradfiltering.options import options
from gradfiltering.requests import Evidence, Request
from gradfiltering.scorers.base import Scorer, Scores
from plain_speech.word_lengths import WordLengths


@options
class ShortWords(Scorer):
    """Ranks rows high whose responses use short words.

    Attributes:
        column: the row's field that holds the response.
    """

    column: str = "output"

    row_wise: ClassVar[bool] = True

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """The lengths of the words of the response."""
        return frozenset({WordLengths(self.column)})

    def score(self, evidence: Evidence) -> Scores:
        """Score [N] rows by the negative mean length of their words."""
        return Scores(evidence.example_ids, -evidence.get(WordLengths(self.column)))
