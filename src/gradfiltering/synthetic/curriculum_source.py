"""The synthetic curriculum as a dataset source."""

from collections.abc import Sequence

from datasets import Dataset

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.file_formats import JSON_LINES
from gradfiltering.data.row_hygiene import HygieneName
from gradfiltering.data.schemas import Columns, Instruction, find_candidates
from gradfiltering.errors import UserError
from gradfiltering.options import NonNegativeInt, PositiveInt, ShareBelowOne, model_validator, options
from gradfiltering.statistics.rounding import share_of_count
from gradfiltering.synthetic import curriculum


@options
class CurriculumSource:
    """Two skills, compositions of them and a rare output format, with the kind of each row known.

    Rows that teach a skill alone are of the kind `clean`, the others of the kind `composition` or `rare_format`; no
    scorer sees it.

    Attributes:
        rows: rows to generate.
        heldout_rows: rows to hold out, a quarter of each family; none of the training rows asks what they ask.
        composition: share of compositions.
        rare_format: share of rows in the rare format.
        limit: reads only this many rows, from the start; None for all.
        template: name of the prompt template.
        columns: names of the columns that hold instruction, input and output.
        drop: signs of poor rows that a row is left out for.
    """

    rows: PositiveInt
    heldout_rows: NonNegativeInt
    composition: ShareBelowOne
    rare_format: ShareBelowOne
    limit: PositiveInt | None
    template: str
    columns: Columns
    drop: Sequence[HygieneName] = ()

    @model_validator(mode="after")
    def _check_shares(self) -> "CurriculumSource":
        delayed_share = self.composition + self.rare_format
        if delayed_share >= 1:
            raise UserError(
                f"compositions and the rare format are {delayed_share:.3g} of the rows, so that none teaches a skill "
                "alone; lower one of the shares",
                arguments=("composition", "rare_format"),
            )
        return self

    def load(self, seed: int) -> InstructionDataset:
        """Generate training rows, with their kinds, and held-out rows."""
        delayed_counts = {
            curriculum.COMPOSITION: share_of_count(self.composition, self.rows),
            curriculum.RARE_FORMAT: share_of_count(self.rare_format, self.rows),
        }
        skill_count = self.rows - sum(delayed_counts.values())
        family_counts = {
            curriculum.PARTNER: skill_count - skill_count // 2,
            curriculum.LAST_WORD: skill_count // 2,
            **delayed_counts,
        }
        rows = curriculum.generate_rows(family_counts, seed, "train")[: self.limit]
        quarter, remainder = divmod(self.heldout_rows, len(curriculum.FAMILY_NAMES))
        heldout_counts = {
            family_name: quarter + (index < remainder) for index, family_name in enumerate(curriculum.FAMILY_NAMES)
        }
        heldout_rows = curriculum.generate_rows(heldout_counts, seed, "heldout")
        origin = f"synthetic curriculum ({len(rows)} rows, seed {seed})"
        schema = find_candidates(list(rows[0]), self.columns, "alpaca", origin)[0]
        assert isinstance(schema, Instruction)
        return InstructionDataset(
            rows=Dataset.from_list(rows),
            heldout=Dataset.from_list(heldout_rows) if heldout_rows else None,
            schema=schema,
            kinds=[curriculum.kind_of_family(row["source"]) for row in rows],
            set_aside=frozenset(),
            template=self.template,
            origin=origin,
            form=JSON_LINES,
            drop=self.drop,
        )
