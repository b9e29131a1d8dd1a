"""Scores of rows that a file holds."""

import numpy as np

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.rows_with_scores import read_row_scores
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import Measurer
from gradfiltering.requests import FileScores


class FileScoreMeasurer(Measurer[FileScores]):
    """Reads scores from a file; no model takes part."""

    request_type = FileScores

    def check_dataset(self, request: FileScores, dataset: InstructionDataset) -> None:
        """Refuse a file that cannot be read, or is about other rows."""
        read_row_scores(dataset, request.path, request.column)

    def measure(self, request: FileScores, context: MeasurementContext) -> np.ndarray:
        """Return the scores of the rows that can be scored, NaN where the file lists none."""
        all_scores = read_row_scores(context.dataset, request.path, request.column)
        return np.asarray(all_scores[context.examples.example_ids])
