"""Rows as they came in, and what is known about them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from gradfiltering.data.file_formats import FileFormat
from gradfiltering.data.json_rows import READ_AT_ONCE, JsonRows
from gradfiltering.data.row_contents import RowContents, iterate_columns
from gradfiltering.data.schemas import Columns as Columns
from gradfiltering.data.schemas import Instruction, Schema, Text
from gradfiltering.data.templates import AUTO, Turn, has_chat_template
from gradfiltering.errors import UserError


def check_rows(dataset_rows: Dataset | JsonRows, schema: Schema, describe_row: Callable[[int], str]) -> None:
    """Refuse rows that are not of the schema.

    Args:
        dataset_rows: all rows of a source.
        schema: what they are to be.
        describe_row: says where a row stands.

    Raises:
        UserError: the first row that does not fit, its field and value.
    """
    if _only_text(dataset_rows, schema):
        return
    for row_position, row_values in enumerate(iterate_columns(dataset_rows, schema.fields)):
        schema_problem = schema.problem(row_values)
        if schema_problem:
            raise UserError(
                f"{describe_row(row_position)}: {schema_problem}; mend the rows, name another column, or choose "
                "another schema",
                owner=Columns,
                arguments=schema.options,
            )


def _only_text(dataset_rows: Dataset | JsonRows, schema: Schema) -> bool:
    """Return True where what is known about the types of columns tells that each row is of its schema."""
    if not isinstance(schema, Instruction | Text):
        return False
    column_names = (*schema.prompt, schema.output) if isinstance(schema, Instruction) else schema.fields
    if isinstance(dataset_rows, JsonRows):
        value_types = {name for column in column_names for name in dataset_rows.kinds.get(column, {})}
        return value_types <= {"str", "NoneType"}
    return all(
        getattr(dataset_rows.features[column], "dtype", None) in ("string", "large_string", "null")
        for column in column_names
        if column in dataset_rows.column_names
    )


@dataclass(frozen=True)
class InstructionDataset:
    """The candidate rows of a run and its held-out rows.

    Attributes:
        rows: N rows with every field as it came in; a row's position is its `example_id`.
        heldout: rows for evaluation, which nothing is trained on: those of `rows` at `set_aside`, or others; None where
            no row is held out.
        schema: the columns of question and answer, and the text that is supervised.
        kinds: the planted kind of each of the N rows where it is known. Kept apart from the rows: no scorer sees it.
        set_aside: positions in `rows` that are held out from training (listed as unscored).
        template: name of the prompt template; `auto` for the one that suits each model (`template_for`).
        origin: the source in words, for messages and provenance.
        form: what the rows came in, and the subset is given back in.
        contents: how many rows are of each schema, and what of them is not used.
        drop: signs of poor rows (see `row_hygiene`) that a row is left out for.
        dropped: rows that are left out, with the reason (listed as unscored).
        other_part: positions in `rows` of the other part of a study (listed as unscored); budgets do not count them.
    """

    rows: Dataset | JsonRows
    heldout: Dataset | JsonRows | None
    schema: Schema
    kinds: list[str] | None
    set_aside: frozenset[int]
    template: str
    origin: str
    form: FileFormat
    contents: RowContents = field(default_factory=RowContents)
    drop: Sequence[str] = ()
    dropped: Mapping[int, str] = field(default_factory=dict)
    other_part: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counted_rows(self) -> int:
        """Number of rows that budgets count: all, or those of the part of a study that is used."""
        return len(self.rows) - len(self.other_part)

    @property
    def sources(self) -> list[str] | None:
        """Source of each row (its `source` column), None where rows name none."""
        if "source" not in self.rows.column_names:
            return None
        return [str(source_name) for source_name in self.rows["source"][:]]

    @property
    def heldout_sources(self) -> list[str] | None:
        """Source of each held-out row, None where rows name none."""
        if self.heldout is None or "source" not in self.heldout.column_names:
            return None
        return [str(source_name) for source_name in self.heldout["source"][:]]

    def template_for(self, tokenizer: Any) -> str:
        """Return the name of the prompt template under a tokenizer.

        `auto` is the tokenizer's own chat template where it has one; else the Alpaca prompt, and for conversations a
        plain layout of roles. Whole texts are taken as they are.
        """
        if self.template != AUTO:
            return self.template
        if isinstance(self.schema, Text):
            return "verbatim"
        if has_chat_template(tokenizer):
            return "chat"
        return "conversation" if self.schema.is_conversational else "alpaca"

    def heldout_turns(self) -> list[Turn] | None:
        """The held-out rows with a response, or None where nothing with a question is held out.

        Of a conversation this is the first question and its answer.
        """
        return [question_turn for question_turn, _ in self.heldout_questions()] or None

    def heldout_questions(self) -> list[tuple[Turn, str | None]]:
        """The held-out rows with a question and a response, each with its source, None where rows name none."""
        question_turns = [self.schema.turn(row_values) for row_values in self.heldout or ()]
        sources = [None] * len(question_turns)
        if self.heldout is not None and "source" in self.heldout.column_names:
            sources = self.heldout["source"][:]
        source_names = [None if source is None else str(source) for source in sources]
        return [
            (question_turn, source_name)
            for question_turn, source_name in zip(question_turns, source_names, strict=True)
            if question_turn is not None and question_turn.output.strip()
        ]


def hash_content(dataset_rows: Dataset | JsonRows, column_names: Sequence[str]) -> str:
    """Digest of some columns' content and names, whatever file or cache the rows were read from."""
    content_digest = hashlib.sha256()
    for column_values in _column_values(dataset_rows, column_names):
        content_digest.update(json.dumps(column_values, default=str).encode())
    return hashlib.sha256((json.dumps(list(column_names)) + content_digest.hexdigest()).encode()).hexdigest()[:32]


def _column_values(dataset_rows: Dataset | JsonRows, column_names: Sequence[str]) -> Iterator[list[Any]]:
    """Each row's values of some columns, None where it has no such column."""
    if isinstance(dataset_rows, JsonRows):
        yield from ([row_values.get(column_name) for column_name in column_names] for row_values in dataset_rows)
        return
    present_columns = [
        column_name for column_name in column_names if column_name in dataset_rows.column_names
    ]  # a column left out is never decoded
    for row_batch in dataset_rows.with_format(None).select_columns(present_columns).iter(READ_AT_ONCE):
        for column_values in zip(*(row_batch[column_name] for column_name in present_columns), strict=True):
            row_values = dict(zip(present_columns, column_values, strict=True))
            yield [row_values.get(column_name) for column_name in column_names]
