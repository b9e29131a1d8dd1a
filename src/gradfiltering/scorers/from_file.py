"""Scores from elsewhere."""

from typing import Any, ClassVar

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.options import options
from gradfiltering.requests import Evidence, FileScores, Request
from gradfiltering.scorers.base import Scorer, Scores

NOT_LISTED = "not listed in the file of scores"


@options
class FileScorer(Scorer):
    """Takes scores, or an order of rows, from a file, to test what another tool selected.

    A row of the file is a row of the data by its column `example_id`, where the file has one (as `scores.parquet` of a
    run has), or else by its prompt and response, word for word. Rows that the file does not list get no score.

    Attributes:
        path: of the file, in any form that data may have.
        column: of the scores, higher is better. Where a file lacks the column `score`, it counts as listing its rows
            from the best to the worst.
    """

    path: str
    column: str = "score"

    row_wise: ClassVar[bool] = True

    @property
    def requests(self) -> frozenset[Request[Any]]:
        """The scores of the file."""
        return frozenset({FileScores(self.path, self.column)})

    def score(self, evidence: Evidence) -> Scores:
        """Score the rows that the file lists.

        Raises:
            UserError: none of them can be trained on.
        """
        scores = evidence.get(FileScores(self.path, self.column))
        is_listed = ~np.isnan(scores)
        if not is_listed.any():
            raise UserError(
                f"no row of {self.path} can be trained on (unscored.parquet says why); list others",
                owner=self,
                arguments=("path",),
            )
        unscored = [(int(example_id), NOT_LISTED) for example_id in evidence.example_ids[~is_listed]]
        return Scores(evidence.example_ids[is_listed], scores[is_listed], unscored=unscored)
