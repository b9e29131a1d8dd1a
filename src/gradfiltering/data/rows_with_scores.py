"""Scores that somebody gave to rows of the data, read from a file and put beside those rows."""

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradfiltering.data.dataset import InstructionDataset, check_rows
from gradfiltering.data.loading import LoadedRows, load
from gradfiltering.data.row_contents import iterate_columns
from gradfiltering.data.row_duplicates import digest_row
from gradfiltering.data.row_texts import RowText, iterate_row_texts, prompt_and_response
from gradfiltering.data.schemas import find_missing_columns
from gradfiltering.errors import UserError
from gradfiltering.runs.plain_text import replace_lone_surrogates

ID_COLUMN = "example_id"
DEFAULT_SCORE_COLUMN = "score"


def read_row_scores(dataset: InstructionDataset, path: str, score_column: str) -> NDArray[np.float64]:
    """Read the scores that a file gives to rows of a dataset.

    A row of the file is a row of the data by its column `example_id`, where the file has one, or else by its prompt
    and response. Of rows with equal texts the first in the file is the first of the data, and so on.

    Args:
        dataset: the run's.
        path: a file in any form that data may have.
        score_column: of the scores, higher is better. Where the file lacks the column `score`, rows count as listed
            from the best to the worst.

    Returns:
        [N] for all rows of the data, NaN for those that the file does not list.

    Raises:
        UserError: the file cannot be read, lacks a column, lists a row twice or that the data does not have, or holds
            something else than a finite number as a score.
    """
    try:
        loaded_rows = load(path)
    except UserError as error:
        raise UserError(f"the file of scores {path} cannot be read as rows: {error}") from error
    column_names = loaded_rows.rows.column_names
    if score_column not in column_names and score_column != DEFAULT_SCORE_COLUMN:
        raise UserError(
            f"the file of scores {path} has no column {score_column!r} (it has: {', '.join(column_names)}); name one "
            "of them"
        )
    listed_ids = (
        _read_ids(loaded_rows, len(dataset), path)
        if ID_COLUMN in column_names
        else _find_ids(loaded_rows, dataset, path)
    )
    scores = np.full(len(dataset), np.nan)
    for file_row, (example_id, score) in enumerate(
        zip(listed_ids, _read_scores(loaded_rows, score_column), strict=True)
    ):
        if not math.isnan(scores[example_id]):
            raise UserError(f"{loaded_rows.describe_row(file_row)}: the row {example_id} is listed a second time")
        scores[example_id] = score
    return scores


def _read_scores(loaded_rows: LoadedRows, score_column: str) -> Iterator[float]:
    """Yield the score of each row of the file; without the column, minus its position."""
    if score_column not in loaded_rows.rows.column_names:
        yield from (-float(file_row) for file_row in range(len(loaded_rows.rows)))
        return
    for file_row, values in enumerate(iterate_columns(loaded_rows.rows, [score_column])):
        score = _to_number(values.get(score_column))
        if score is None or not math.isfinite(score):
            raise UserError(
                f"{loaded_rows.describe_row(file_row)}: '{score_column}' holds {values.get(score_column)!r}, which is "
                "no finite number; mend it, or leave out the row"
            )
        yield score


def _read_ids(loaded_rows: LoadedRows, row_count: int, path: str) -> Iterator[int]:
    """Yield the id of each row of the file, which is its position in the data."""
    for file_row, values in enumerate(iterate_columns(loaded_rows.rows, [ID_COLUMN])):
        example_id = _to_number(values.get(ID_COLUMN))
        if example_id is None or not (example_id.is_integer() and 0 <= example_id < row_count):
            raise UserError(
                f"{loaded_rows.describe_row(file_row)}: '{ID_COLUMN}' is {values.get(ID_COLUMN)!r}, and the rows of "
                f"the data are 0 to {row_count - 1}; {path} must be about the same rows"
            )
        yield int(example_id)


def _find_ids(loaded_rows: LoadedRows, dataset: InstructionDataset, path: str) -> Iterator[int]:
    """Yield the id of the row of the data that has the texts of each row of the file."""
    schema = dataset.schema
    missing_columns = find_missing_columns(schema, loaded_rows.rows.column_names)
    if missing_columns:
        raise UserError(
            f"the file of scores {path} has no column '{ID_COLUMN}', and no column "
            f"{' and no column '.join(map(repr, missing_columns))}, by which its rows could be found in the data; give "
            "one or the other"
        )
    check_rows(loaded_rows.rows, schema, loaded_rows.describe_row)
    free_ids: dict[bytes, deque[int]] = defaultdict(deque)  # by a digest of the text, as there may be many rows
    all_texts = chain.from_iterable(iterate_row_texts(dataset))
    for example_id, row_text in enumerate(all_texts):
        free_ids[digest_row(row_text)].append(example_id)
    for file_row, values in enumerate(iterate_columns(loaded_rows.rows, schema.fields)):
        equal_ids = free_ids[digest_row(_read_text(dataset, values))]
        if not equal_ids:
            raise UserError(
                f"{loaded_rows.describe_row(file_row)}: the data ({dataset.origin}) has no such row, or no further "
                f"one; {path} must list rows of the data, word for word"
            )
        yield equal_ids.popleft()


def _read_text(dataset: InstructionDataset, values: Mapping[str, Any]) -> RowText:
    question, answer = prompt_and_response(dataset.schema, values)
    return RowText(replace_lone_surrogates(question), replace_lone_surrogates(answer))


def _to_number(value: Any) -> float | None:
    """Read a number, also from the text of a csv file; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
