"""Validation rows and the task each belongs to, for scorers that ask which rows help on them."""

from dataclasses import dataclass, replace

import numpy as np

from gradfiltering.data.dataset import InstructionDataset, check_rows
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.examples import Examples
from gradfiltering.data.loading import load
from gradfiltering.data.schemas import find_missing_columns
from gradfiltering.errors import UserError

AUTO_FIELD = "auto"
SOURCE_FIELD = "source"  # the field that `auto` looks for
ONE_TASK = "all"


@dataclass(frozen=True)
class ValidationRows:
    """Rows to do well on.

    Attributes:
        dataset: the run's dataset, with these rows as the held-out ones.
        tasks: [V] name of each row's task.
        origin: the rows in words, for messages.
    """

    dataset: InstructionDataset
    tasks: list[str]
    origin: str

    def encode(self, encoder: Encoder) -> tuple[Examples, np.ndarray]:
        """The rows that have a response as tokens, and their tasks.

        Raises:
            UserError: no row has a response within the longest example.
        """
        examples = encoder.encode_heldout(self.dataset)
        if examples is None:
            raise UserError(
                f"none of the {len(self.tasks)} validation rows ({self.origin}) has a response within the longest "
                "example; name a file of others, or allow longer examples"
            )
        return examples, np.asarray(self.tasks)[examples.example_ids]


def validation_rows(dataset: InstructionDataset, validation_path: str | None, task_field: str | None) -> ValidationRows:
    """The rows of a file, or those that are held out.

    Args:
        dataset: the run's.
        validation_path: a file of rows in the schema of the data; None takes the held-out rows.
        task_field: field that names a row's task; `auto` takes `source` where every row has it, and one task where no
            row has; None puts all rows into one task.

    Raises:
        UserError: there are no such rows, they lack a column, or a row names no task.
    """
    if validation_path is not None:
        try:
            loaded_rows, row_schema = load(validation_path), dataset.schema
        except UserError as error:
            raise UserError(f"the validation file {validation_path} cannot be read as rows: {error}") from error
        missing_columns = find_missing_columns(row_schema, loaded_rows.rows.column_names)
        if missing_columns:
            raise UserError(
                f"the validation file {validation_path} has no column "
                f"{' and no column '.join(map(repr, missing_columns))}, which the data's schema "
                f"{row_schema.name} reads; give rows in the fields of the data"
            )
        check_rows(loaded_rows.rows, row_schema, loaded_rows.describe_row)
        dataset = replace(dataset, heldout=loaded_rows.rows)
    if dataset.heldout is None or not len(dataset.heldout):
        raise UserError(
            "the scorer looks at validation rows, and nothing is held out; name a file of validation rows, or hold "
            "rows out: a share of them, a file of their own, or a row limit below the file's length"
        )
    rows_origin = validation_path or "the held-out rows"
    return ValidationRows(dataset, _read_task_names(dataset, task_field, rows_origin), rows_origin)


def _read_task_names(dataset: InstructionDataset, task_field: str | None, rows_origin: str) -> list[str]:
    assert dataset.heldout is not None
    heldout_rows = dataset.heldout
    if task_field is None or (task_field == AUTO_FIELD and SOURCE_FIELD not in heldout_rows.column_names):
        return [ONE_TASK] * len(heldout_rows)
    field_name = SOURCE_FIELD if task_field == AUTO_FIELD else task_field
    if field_name not in heldout_rows.column_names:
        raise UserError(
            f"{rows_origin} have no field {field_name!r} that could name their task (they have: "
            f"{', '.join(heldout_rows.column_names)}); name one of them, or none for one task"
        )
    task_names = list(heldout_rows[field_name])
    rows_without_task = [row_position for row_position, task_name in enumerate(task_names) if task_name is None]
    if rows_without_task:
        raise UserError(
            f"{rows_origin}: row {rows_without_task[0]} has no '{field_name}', so its task is not "
            "known; mend the row, or name no field for one task"
        )
    return [str(task_name) for task_name in task_names]
