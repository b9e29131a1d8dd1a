"""The bundled tasks as a dataset source."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from datasets import Dataset

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.file_formats import JSON_LINES
from gradfiltering.data.preference_schema import CHOSEN, REJECTED, Preference, find_preference_schema
from gradfiltering.data.row_hygiene import HygieneName
from gradfiltering.data.schemas import Columns, Instruction, find_candidates
from gradfiltering.data.sources import DefectPlanter
from gradfiltering.errors import UserError
from gradfiltering.options import NonNegativeInt, PositiveInt, Probability, model_validator, options
from gradfiltering.seeding import derive_seed, numpy_rng
from gradfiltering.statistics.rounding import share_of_count
from gradfiltering.synthetic import task_generator


@options
class TaskSource:
    """The bundled generator: skill families with planted defects and a known truth.

    Attributes:
        rows: rows to generate.
        heldout_rows: clean rows to hold out; none of the training rows asks what they ask.
        limit: reads only this many rows, from the start; None for all.
        template: name of the prompt template.
        columns: names of the columns that hold instruction, input and output.
        corrupt: the defects that are planted.
        drop: signs of poor rows that a row is left out for.
        schema: `alpaca` for rows with one answer, `preference` for rows with a right and a wrong one (chosen and
            rejected); other defects than `flipped` are planted into the chosen answer.
        flipped: share of preference rows whose answers are exchanged, so that the wrong one is chosen.
    """

    rows: PositiveInt
    heldout_rows: NonNegativeInt
    limit: PositiveInt | None
    template: str
    columns: Columns
    corrupt: DefectPlanter
    drop: Sequence[HygieneName] = ()
    schema: Literal["alpaca", "preference"] = "alpaca"
    flipped: Probability = 0.0

    @model_validator(mode="after")
    def _check_flipped(self) -> Self:
        if self.flipped and self.schema != "preference":
            raise UserError(
                f"the answers of {self.flipped:.0%} of the rows are to be exchanged, and rows of the schema "
                f"{self.schema} have one answer; choose the schema preference",
                arguments=("flipped",),
            )
        return self

    def load(self, seed: int) -> InstructionDataset:
        """Generate training rows (with planted kinds) and clean held-out rows."""
        row_count = self.rows if self.limit is None else min(self.rows, self.limit)
        origin = f"bundled tasks ({row_count} rows, seed {seed})"
        clean_rows = task_generator.generate_rows(self.rows, seed, "train")[:row_count]
        if not clean_rows:
            raise UserError(f"{origin} holds no rows; give a positive number", self, ("rows",))
        heldout_rows = task_generator.generate_rows(self.heldout_rows, seed, "heldout")
        schema: Instruction | Preference
        if self.schema == "preference":
            schema = find_preference_schema([CHOSEN, REJECTED], self.columns, origin)
            planted_rows, defect_kinds = self.corrupt.plant(
                _add_wrong_answers(clean_rows, seed),
                derive_seed(seed, "corrupt"),
                (schema.instruction, schema.input),
                CHOSEN,
                _wrong_chosen_answer,
            )
            self._flip_answers(planted_rows, defect_kinds, seed)
            heldout_rows = _add_wrong_answers(heldout_rows, seed)
        else:
            found_schema = find_candidates(list(clean_rows[0]), self.columns, "alpaca", origin)[0]
            assert isinstance(found_schema, Instruction)
            schema = found_schema
            planted_rows, defect_kinds = self.corrupt.plant(
                clean_rows,
                derive_seed(seed, "corrupt"),
                schema.prompt,
                schema.output,
                task_generator.wrong_answer,
            )
        return InstructionDataset(
            rows=Dataset.from_list(planted_rows),
            heldout=Dataset.from_list(heldout_rows) if heldout_rows else None,
            schema=schema,
            kinds=defect_kinds,
            set_aside=frozenset(),
            template=self.template,
            origin=origin,
            form=JSON_LINES,
            drop=self.drop,
        )

    def _flip_answers(self, preference_rows: list[dict[str, Any]], defect_kinds: list[str], seed: int) -> None:
        """Exchange the answers of some clean rows, in place.

        Raises:
            UserError: there are not as many clean rows.
        """
        flipped_count = share_of_count(self.flipped, len(preference_rows))
        clean_rows = [position for position, kind in enumerate(defect_kinds) if kind == "clean"]
        if flipped_count > len(clean_rows):
            raise UserError(
                f"the answers of {flipped_count} rows are to be exchanged, and {len(clean_rows)} are clean; lower the "
                "share, or that of other defects",
                self,
                ("flipped",),
            )
        for clean_index in numpy_rng(seed, "flipped answers").permutation(len(clean_rows))[:flipped_count].tolist():
            row = preference_rows[clean_rows[clean_index]]
            row[CHOSEN], row[REJECTED] = row[REJECTED], row[CHOSEN]
            defect_kinds[clean_rows[clean_index]] = "flipped"


def _wrong_chosen_answer(row: Mapping[str, Any], generator: np.random.Generator) -> str:
    return task_generator.wrong_answer({**row, "output": row[CHOSEN]}, generator)


def _add_wrong_answers(task_rows: Sequence[task_generator.TaskRow], seed: int) -> list[dict[str, Any]]:
    """Return preference rows: the right answer is chosen, a wrong one of the same form rejected."""
    generator = numpy_rng(seed, "rejected answers")
    return [
        {
            **{name: value for name, value in row.items() if name != "output"},
            CHOSEN: row["output"],
            REJECTED: task_generator.wrong_answer(row, generator),
        }
        for row in task_rows
    ]
