"""Tokenised examples: their arrays, and digests of their tokens."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import DTypeLike

from gradfiltering.data.row_duplicates import find_first_equal
from gradfiltering.data.token_rows import TokenRows
from gradfiltering.runs.mapped_arrays import map_large_array

READ_AT_ONCE = 10_000  # rows of a tokenised table
REJECTED_COLUMNS = {"rejected_ids": "input_ids", "rejected_supervised": "supervised"}


@dataclass(frozen=True)
class Examples:
    """Tokenised examples that can be scored.

    Attributes:
        table: one row an example: `example_id`, `input_ids` (each response closed by its end token), `supervised`
            (the spans of `input_ids` to learn, as start, stop, start, stop, …), `tokens`, `response_tokens` (those
            in the spans), `lost_tokens` (cut off, 0 for a whole row). Of a preference row `input_ids` and `supervised`
            are the prompt with the chosen answer, `rejected_ids` and `rejected_supervised` that with the rejected one,
            and the counts are of both.
        example_ids: [N] int64, ascending.
        lengths: [N] int32, all tokens.
        response_tokens: [N] int32.
        truncated: number of rows that were cut.
        lost_tokens: number of tokens that they lost.
        max_tokens: the longest that an example could be.
        unscored: example id and reason of every row left out.
        not_shown: what rows hold and the model does not see -> number of examples.
        not_shown_of: examples that these were counted among, of which a few may have been drawn since.
        sequence_lengths: [N, 2] int32, tokens of each of a preference row's two sequences; None for other rows.
        reference_nll: [N, 2] float64, negative log-likelihood of both answers of preference rows under the base model
            without adapters, in nats; None where it was not measured.
    """

    table: Dataset
    example_ids: np.ndarray
    lengths: np.ndarray
    response_tokens: np.ndarray
    truncated: int
    lost_tokens: int
    max_tokens: int
    unscored: list[tuple[int, str]]
    not_shown: Mapping[str, int] = field(default_factory=dict)
    not_shown_of: int = 0
    sequence_lengths: np.ndarray | None = None
    reference_nll: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def is_paired(self) -> bool:
        """True for preference rows, of two sequences each."""
        return self.sequence_lengths is not None

    @property
    def sequence_count(self) -> int:
        """Number of sequences of an example."""
        return 2 if self.is_paired else 1

    @property
    def widths(self) -> np.ndarray:
        """[N] tokens of each example's longest sequence."""
        return self.lengths if self.sequence_lengths is None else self.sequence_lengths.max(1)

    def sequences(self) -> "Examples":
        """Return the sequences as examples of their own: those with the chosen answers, then the rejected ones.

        The sequences of example n are numbers n and N + n, which are their ids, too. Other rows are returned as they
        are.
        """
        if self.sequence_lengths is None:
            return self
        chosen = self._chosen_table()
        rejected = self.table.select_columns(list(REJECTED_COLUMNS)).rename_columns(REJECTED_COLUMNS)
        return _plain_examples(concatenate_datasets([chosen, rejected]), self.sequence_lengths.T.ravel(), self)

    def chosen_sequences(self) -> "Examples":
        """Return the prompts with their chosen answers, under the examples' own ids; other rows as they are."""
        if self.sequence_lengths is None:
            return self
        chosen = _plain_examples(self._chosen_table(), self.sequence_lengths[:, 0], self)
        table = chosen.table.remove_columns("example_id").add_column("example_id", self.example_ids)
        return replace(chosen, table=table, example_ids=self.example_ids)

    def sequence_positions(self, row_positions: np.ndarray) -> np.ndarray:
        """Return the positions of some rows' sequences in `sequences()`, those of a row side by side."""
        offsets = len(self) * np.arange(self.sequence_count)
        positions: np.ndarray = (row_positions[:, None] + offsets).ravel()
        return positions

    def read_rows(self, row_positions: np.ndarray) -> dict[str, Sequence[np.ndarray]]:
        """Read the rows of a batch.

        Args:
            row_positions: [rows] positions of them.

        Returns:
            `example_id` [rows]; and for each of `input_ids`, `supervised` and, where rows are paired, `rejected_ids`
            and `rejected_supervised` a list with an array of each row.
        """
        column_names = ["input_ids", "supervised", *(REJECTED_COLUMNS if self.is_paired else ())]
        token_columns = {name: self._token_rows.read(name, row_positions) for name in column_names}
        return {"example_id": self.example_ids[row_positions], **token_columns}

    @cached_property
    def _token_rows(self) -> TokenRows:
        return TokenRows(self.table)

    def _chosen_table(self) -> Dataset:
        return self.table.select_columns(["input_ids", "supervised"])

    @property
    def tokens(self) -> int:
        """Tokens of one pass over all examples, padding not counted."""
        return int(self.lengths.sum())

    def summary(self, dataset_rows: int, left_out: Sequence[tuple[int, str]] = ()) -> dict[str, Any]:
        """The part of `summary.json` about the data.

        Args:
            dataset_rows: in all.
            left_out: id and reason of examples that a scorer gave no score.
        """
        unscored = [*self.unscored, *left_out]
        return {
            "examples": dataset_rows,
            "unscored": len(unscored),
            "unscored_reasons": dict(Counter(unscored_reason for _, unscored_reason in unscored)),
            "truncated": {"rows": self.truncated, "tokens": self.lost_tokens},
            "max_tokens": self.max_tokens,
            "tokens": self.tokens,
            "not_shown": dict(self.not_shown),
        }

    def warnings(self) -> list[str]:
        """Name what the model does not see of the rows, with the number of examples."""
        counted_examples = self.not_shown_of or len(self)
        return [
            f"{count} of {counted_examples} examples have {name} that the template does not show, so that nothing is "
            "learnt of it; choose a template that shows it, or drop it from the rows"
            for name, count in self.not_shown.items()
        ]

    def select(self, example_ids: Sequence[int] | np.ndarray) -> "Examples":
        """The examples with these ids, in ascending order of id."""
        row_positions = np.flatnonzero(np.isin(self.example_ids, np.asarray(example_ids)))
        selected_table = self.table.select(row_positions)
        lost_tokens = read_numbers(selected_table, "lost_tokens", np.int32)
        return replace(
            self,
            table=selected_table,
            example_ids=map_large_array(self.example_ids[row_positions]),
            lengths=map_large_array(self.lengths[row_positions]),
            response_tokens=map_large_array(self.response_tokens[row_positions]),
            truncated=int(np.count_nonzero(lost_tokens)),
            lost_tokens=int(lost_tokens.sum()),
            unscored=[],
            not_shown={},
            sequence_lengths=None if self.sequence_lengths is None else self.sequence_lengths[row_positions],
            reference_nll=None if self.reference_nll is None else self.reference_nll[row_positions],
        )


@dataclass(frozen=True)
class Rows:
    """The examples to train on and score, and the held-out ones (None where nothing is held out)."""

    examples: Examples
    heldout: Examples | None


def read_numbers(table: Dataset, column_name: str, dtype: DTypeLike) -> np.ndarray:
    """Return a column of numbers, [N] of the type given, which lie in a file where there are many.

    It is read some thousand rows at a time: read at once, a table of selected rows takes hundreds of bytes a row.
    """
    numbers = np.empty(len(table), dtype=dtype)
    first_row = 0
    for batch in table.select_columns([column_name]).with_format("arrow").iter(READ_AT_ONCE):
        batch_numbers = batch[column_name].to_numpy()
        numbers[first_row : first_row + len(batch_numbers)] = batch_numbers
        first_row += len(batch_numbers)
    return map_large_array(numbers)


def hash_examples(examples: Examples) -> str:
    """Digest of ids, tokens and the spans to learn."""
    digest = hashlib.sha256(np.ascontiguousarray(examples.example_ids).tobytes())
    column_names = ["input_ids", "supervised", *(REJECTED_COLUMNS if examples.is_paired else ())]
    for batch in examples.table.select_columns(column_names).with_format("arrow").iter(READ_AT_ONCE):
        for column_name in column_names:
            column = batch[column_name].combine_chunks()
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            digest.update(column.flatten().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()[:32]


def digest_rows(examples: Examples) -> np.ndarray:
    """Return [N, 2] uint64, a digest of each row's tokens, equal for rows of equal tokens."""
    digests = np.empty((len(examples), 2), dtype=np.uint64)
    first_row = 0
    for batch in examples.table.select_columns(["input_ids"]).with_format("arrow").iter(READ_AT_ONCE):
        column = batch["input_ids"].combine_chunks()
        row_ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
        tokens = np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False))
        batch_digests = b"".join(
            hashlib.blake2b(row_tokens.tobytes(), digest_size=16).digest()
            for row_tokens in np.split(tokens, row_ends[:-1])
        )
        digests[first_row : first_row + len(column)] = np.frombuffer(batch_digests, dtype=np.uint64).reshape(-1, 2)
        first_row += len(column)
    return digests


def number_equal_rows(examples: Examples) -> np.ndarray:
    """Return [N] int64: for each row the position of the first row of the same tokens."""
    return find_first_equal(digest_rows(examples))


def _plain_examples(table: Dataset, lengths: np.ndarray, origin: Examples) -> Examples:
    """Return sequences of preference rows as examples of their own, numbered from 0."""
    example_ids = np.arange(len(table))
    spans = table.select_columns(["supervised"])["supervised"]
    response_tokens = [sum(row_spans[1::2]) - sum(row_spans[::2]) for row_spans in spans]
    return Examples(
        table=table.add_column("example_id", example_ids),
        example_ids=example_ids,
        lengths=np.ascontiguousarray(lengths, dtype=np.int32),
        response_tokens=np.asarray(response_tokens, dtype=np.int32),
        truncated=0,
        lost_tokens=0,
        max_tokens=origin.max_tokens,
        unscored=[],
    )
