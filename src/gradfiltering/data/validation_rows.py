"""Validation rows and the task each belongs to, for scorers that ask which rows help on them."""

from dataclasses import dataclass, replace

import numpy as np

from gradfiltering.data.dataset import InstructionDataset, check_rows
from gradfiltering.data.examples import Encoder, Examples
from gradfiltering.data.loading import load
from gradfiltering.errors import UserError

AUTO = "auto"
SOURCE = "source"  # the field that `auto` looks for
ONE_TASK = "all"


@dataclass(frozen=True)
class ValidationRows:
    """Rows to do well on.

    Attributes:
        records: the run's records, with these rows as the held-out ones.
        tasks: [V] name of each row's task.
        origin: the rows in words, for messages.
    """

    records: InstructionDataset
    tasks: list[str]
    origin: str

    def encode(self, encoder: Encoder) -> tuple[Examples, np.ndarray]:
        """The rows that have a response as tokens, and their tasks.

        Raises:
            UserError: none has one.
        """
        examples = encoder.encode_heldout(self.records)
        if examples is None:
            raise UserError(
                f"none of the {len(self.tasks)} validation rows ({self.origin}) has a response within max_tokens; give "
                "others with scorer.validation=FILE, or raise proxy.max_tokens"
            )
        return examples, np.asarray(self.tasks)[examples.example_ids]


def validation_rows(records: InstructionDataset, path: str | None, task: str | None) -> ValidationRows:
    """The rows of a file, or those that are held out.

    Args:
        records: the run's.
        path: a file of rows in the schema of the data; None takes the held-out rows.
        task: field that names a row's task; `auto` takes `source` where every row has it, and one task where no row
            has; None puts all rows into one task.

    Raises:
        UserError: there are no such rows, they lack a column, or a row names no task.
    """
    if path is not None:
        try:
            loaded, schema = load(path), records.schema
        except UserError as error:
            raise UserError(f"scorer.validation={path} cannot be read as rows: {error}") from error
        lacking = [name for name in schema.required if name not in loaded.rows.column_names]
        if lacking:
            raise UserError(
                f"scorer.validation={path} has no column {' and no column '.join(map(repr, lacking))}, which the "
                f"data's schema {schema.name} reads; give rows in the fields of the data"
            )
        check_rows(loaded.rows, schema, loaded.place)
        records = replace(records, heldout=loaded.rows)
    if records.heldout is None or not len(records.heldout):
        raise UserError(
            "the scorer looks at validation rows, and nothing is held out; give scorer.validation=FILE, or hold rows "
            "out with data.heldout.share=0.05, data.heldout.path=FILE or a data.limit below the file's length "
            "(data=tasks: data.heldout_rows=200)"
        )
    origin = path or "the held-out rows"
    return ValidationRows(records, _tasks(records, task, origin), origin)


def _tasks(records: InstructionDataset, task: str | None, origin: str) -> list[str]:
    assert records.heldout is not None
    rows = records.heldout
    if task is None or (task == AUTO and SOURCE not in rows.column_names):
        return [ONE_TASK] * len(rows)
    name = SOURCE if task == AUTO else task
    if name not in rows.column_names:
        raise UserError(
            f"scorer.task={name}: {origin} has no such field (it has: {', '.join(rows.column_names)}); name one of "
            "them, or give scorer.task=null for one task"
        )
    found = list(rows[name])
    nameless = [place for place, value in enumerate(found) if value is None]
    if nameless:
        raise UserError(
            f"{origin}: row {nameless[0]} has no '{name}', so its task is not known; mend the row, or give "
            "scorer.task=null for one task"
        )
    return [str(value) for value in found]
