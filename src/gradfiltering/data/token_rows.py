"""Rows of a tokenised table as arrays, cut out of the table's own buffers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from gradfiltering.runs.mapped_arrays import map_large_array


class TokenRows:
    """Reads lists of numbers, such as token ids, of any rows of a table.

    `Dataset` would make a Python list of each row, which takes longer than a training step on a GPU has. Here a row is
    a view of the table, which lies in files that are mapped into memory.

    Args:
        table: with columns of lists of integers.
    """

    def __init__(self, table: Dataset):
        self.table = table
        self._stored_positions = _find_stored_positions(table)
        self._columns: dict[str, _ListColumn] = {}

    def __reduce__(self) -> tuple[type["TokenRows"], tuple[Dataset]]:
        """Hand another process the table alone, which knows its files."""
        return TokenRows, (self.table,)

    def read(self, column_name: str, row_positions: NDArray[np.integer]) -> list[NDArray[np.integer]]:
        """Return a column's list of each of these rows, as a view that must not be written to.

        Args:
            column_name: of a column of lists.
            row_positions: [rows] positions in the table.
        """
        if column_name not in self._columns:
            self._columns[column_name] = _ListColumn(self.table.data.column(column_name))
        if self._stored_positions is not None:
            row_positions = self._stored_positions[row_positions].astype(np.int64)
        return self._columns[column_name].read(row_positions)


class _ListColumn:
    """A column of lists, which is stored in pieces."""

    def __init__(self, column: pa.ChunkedArray):
        pieces = [piece for piece in column.chunks if len(piece)]  # each may itself be a slice of larger buffers
        self.first_rows = np.cumsum([0, *map(len, pieces)])
        self.ends: list[NDArray[np.integer]] = [piece.offsets.to_numpy() for piece in pieces]  # [rows of piece + 1]
        self.numbers: list[NDArray[np.integer]] = [piece.values.to_numpy() for piece in pieces]

    def read(self, row_positions: NDArray[np.integer]) -> list[NDArray[np.integer]]:
        piece_indices = np.searchsorted(self.first_rows, row_positions, side="right") - 1
        rows_in_pieces = row_positions - self.first_rows[piece_indices]
        lists = []
        for piece_index, row in zip(piece_indices.tolist(), rows_in_pieces.tolist(), strict=True):
            ends = self.ends[piece_index]
            lists.append(self.numbers[piece_index][ends[row] : ends[row + 1]])
        return lists


def _find_stored_positions(table: Dataset) -> NDArray[Any] | None:
    """Return where each row of a table lies in what is stored, of which the table may be a selection; None if there."""
    selection = table._indices  # `Dataset` tells it nowhere else
    if selection is None:
        return None
    pieces: Sequence[pa.Array] = selection.column(0).chunks
    if len(pieces) == 1:
        return np.asarray(pieces[0].to_numpy())
    return map_large_array(np.asarray(selection.column(0).to_numpy()))
