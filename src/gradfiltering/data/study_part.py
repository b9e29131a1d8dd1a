"""The two parts of a dataset in a study: rows to find settings on, and rows to report results on."""

import hashlib
import json
from collections.abc import Iterator
from typing import Literal

from datasets import Dataset

from gradfiltering.data.json_rows import JsonRows
from gradfiltering.data.row_contents import iterate_columns
from gradfiltering.data.schemas import Schema
from gradfiltering.options import NonNegativeInt, OpenShare, options

DIGEST_BYTES = 8


@options
class StudyPart:
    """Part of the rows that a run uses.

    A row's part is decided by a digest of its question (of its text where it asks none) and the seed, so that it
    depends neither on the order of rows nor on which others there are, and rows that ask the same stand together.

    Attributes:
        use: `all` rows, those for `tuning`, or those for `reporting`.
        tuning_share: expected share of the rows for tuning.
        seed: of the division, apart from the run's seed.
    """

    use: Literal["all", "tuning", "reporting"] = "all"
    tuning_share: OpenShare = 0.5
    seed: NonNegativeInt = 0

    def find_other_rows(self, dataset_rows: Dataset | JsonRows, schema: Schema) -> frozenset[int]:
        """Find the positions of the rows that belong to the other part; none where all are used."""
        if self.use == "all":
            return frozenset()
        return frozenset(
            position
            for position, question in enumerate(_iterate_questions(dataset_rows, schema))
            if (self.draw_number(question) < self.tuning_share) != (self.use == "tuning")
        )

    def draw_number(self, question: str) -> float:
        """Return a number in [0, 1) that depends on the question and the seed alone, even over many questions."""
        digest = hashlib.sha256(f"{self.seed}\n{question.strip()}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:DIGEST_BYTES], "big") / (1 << 8 * DIGEST_BYTES)


def _iterate_questions(dataset_rows: Dataset | JsonRows, schema: Schema) -> Iterator[str]:
    for row_values in iterate_columns(dataset_rows, schema.fields):
        turn = schema.turn(row_values)
        if turn is not None:
            yield turn.question
        else:
            yield json.dumps([row_values.get(name) for name in schema.fields], default=str)
