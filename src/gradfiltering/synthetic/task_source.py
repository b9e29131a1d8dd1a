"""The bundled tasks as a dataset source."""

from collections.abc import Sequence

from datasets import Dataset

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.file_formats import JSON_LINES
from gradfiltering.data.row_hygiene import HygieneName
from gradfiltering.data.schemas import Columns, Instruction, find_candidates
from gradfiltering.data.sources import DefectPlanter
from gradfiltering.errors import UserError
from gradfiltering.options import NonNegativeInt, PositiveInt, options
from gradfiltering.seeding import derive_seed
from gradfiltering.synthetic import task_generator


@options
class TaskSource:
    """The bundled generator: skill families with planted defects and a known truth.

    Attributes:
        rows: rows to generate.
        heldout_rows: clean rows to hold out; none of the training rows asks what they ask.
        limit: only the first so many rows, None for all.
        template: name of the prompt template.
        columns: names of the columns that hold instruction, input and output.
        corrupt: the defects that are planted.
        drop: signs of poor rows that a row is left out for.
    """

    rows: PositiveInt
    heldout_rows: NonNegativeInt
    limit: PositiveInt | None
    template: str
    columns: Columns
    corrupt: DefectPlanter
    drop: Sequence[HygieneName] = ()

    def load(self, seed: int) -> InstructionDataset:
        """Generate training rows (with planted kinds) and clean held-out rows."""
        row_count = self.rows if self.limit is None else min(self.rows, self.limit)
        origin = f"bundled tasks ({row_count} rows, seed {seed})"
        clean_rows = task_generator.generate_rows(self.rows, seed, "train")[:row_count]
        if not clean_rows:
            raise UserError(f"{origin} holds no rows; give a positive number", self, ("rows",))
        schema = find_candidates(list(clean_rows[0]), self.columns, "alpaca", origin)[0]
        assert isinstance(schema, Instruction)
        planted_rows, defect_kinds = self.corrupt.plant(
            clean_rows,
            derive_seed(seed, "corrupt"),
            schema.prompt,
            schema.output,
            task_generator.wrong_answer,
        )
        heldout_rows = task_generator.generate_rows(self.heldout_rows, seed, "heldout")
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
