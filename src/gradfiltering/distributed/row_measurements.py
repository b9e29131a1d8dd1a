"""Measurements of rows, shared out over the ranks and brought together once each row was measured exactly once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gradfiltering.distributed.process_group import rank, sum_over_ranks, world_size


@dataclass(frozen=True)
class WorkShare:
    """The pieces of work that one rank does: every `world_size`-th from `rank` on.

    Attributes:
        rank: 0 for the first.
        world_size: number of ranks.
    """

    rank: int
    world_size: int

    def __call__(self, work_pieces: Any) -> Any:
        """Return this rank's pieces of a list or array; there may be none."""
        return work_pieces[self.rank :: self.world_size]


ALL_WORK = WorkShare(0, 1)


def share_of_this_rank() -> WorkShare:
    """Return the share of this process."""
    return WorkShare(rank(), world_size())


@dataclass(frozen=True)
class Column:
    """One number, or one array of numbers, that is measured for each member and row.

    Attributes:
        shape: of one measurement; empty for a number.
        dtype: of the table that it is brought together in.
    """

    shape: tuple[int, ...] = ()
    dtype: DTypeLike = np.float64


class RowMeasurements:
    """Record measurements of rows in any order and on any rank, and hand out complete tables.

    Args:
        example_ids: [N] int64, ascending: the rows that must be measured exactly once for each member.
        column_types: column name -> shape and type of one measurement.
        members: M, the models that each row is measured with.
    """

    def __init__(
        self, example_ids: NDArray[np.int64], column_types: Mapping[str, Column] | Sequence[str], members: int = 1
    ):
        described_columns = (
            column_types
            if isinstance(column_types, Mapping)
            else {column_name: Column() for column_name in column_types}
        )
        row_count = len(example_ids)
        self.example_ids = example_ids
        self.tables: dict[str, NDArray[Any]] = {
            column_name: np.zeros((members, row_count, *column_type.shape), dtype=column_type.dtype)  # [M, N, ...]
            for column_name, column_type in described_columns.items()
        }
        self.counts: NDArray[np.int32] = np.zeros((members, row_count), dtype=np.int32)

    def share(self, batches: Sequence[Any]) -> Any:
        """Return the batches that this rank measures."""
        return share_of_this_rank()(batches)

    def record(self, example_ids: NDArray[np.int64], **column_values: NDArray[Any]) -> None:
        """Record a batch.

        Args:
            example_ids: [B], or [M, B] where members see different rows.
            **column_values: column name -> [M, B, ...]; the axis of members may be left out where M is 1.
        """
        member_count = len(self.counts)
        row_indices = np.searchsorted(
            self.example_ids, np.broadcast_to(example_ids, (member_count, example_ids.shape[-1]))
        )
        member_index = np.arange(member_count)[:, None]
        for column_name, column_table in self.tables.items():
            column_table[member_index, row_indices] = np.reshape(
                column_values[column_name], (*row_indices.shape, *column_table.shape[2:])
            )
        self.counts[member_index, row_indices] += 1

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the measurements of all ranks so far, for `restore`; every rank calls it."""
        tables = {column_name: sum_over_ranks(column_table) for column_name, column_table in self.tables.items()}
        return {**tables, "counts": sum_over_ranks(self.counts)}

    def restore(self, saved_arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned, whatever the number of ranks then and now."""
        if rank() == 0:  # measurements of all ranks are added up in the end
            self.counts = np.array(saved_arrays["counts"])
            self.tables = {column_name: np.array(saved_arrays[column_name]) for column_name in self.tables}

    def gather(self) -> dict[str, NDArray[Any]]:
        """Return the complete [M, N, ...] table of each column, the same on every rank.

        Raises:
            RuntimeError: some row was not measured exactly once over all ranks (a defect of the caller).
        """
        measurement_counts = sum_over_ranks(self.counts)
        if (measurement_counts != 1).any():
            missing_count, repeated_count = int((measurement_counts == 0).sum()), int((measurement_counts > 1).sum())
            raise RuntimeError(
                f"of {measurement_counts.size} measurements of rows {missing_count} are missing and "
                f"{repeated_count} were made more than once"
            )
        # Every other rank holds 0 where one rank measured, so the sums are the measurements, bit for bit.
        return {column_name: sum_over_ranks(column_table) for column_name, column_table in self.tables.items()}
