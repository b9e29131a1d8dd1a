"""Files of the gradient log: one parquet file for each member and epoch, in Hive partitions."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradfiltering.errors import UserError
from gradfiltering.requests import EpochLog, SnapshotUnit

PARQUET_FILE = "part-0.parquet"
PIECE_ROWS = 1 << 18  # rows that are read, and written, at once
SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("grad_norm", pa.float32()),
        ("loss", pa.float32()),
        ("response_tokens", pa.int32()),
    ]
)


def partition_folder(
    parent_folder: Path, member_number: int, snapshot_number: int, unit: SnapshotUnit = "epoch"
) -> Path:
    """Return the Hive partition of one member and snapshot, which is counted in epochs or in updates."""
    digits = 2 if unit == "epoch" else 5
    return parent_folder / f"member={member_number:02d}" / f"{unit}={snapshot_number:0{digits}d}"


def write_member(parquet_file: Path, log: EpochLog, member_index: int) -> None:
    """Write the measurements of one member, given by its position in the log."""
    grad_norm = log.grad_norm[member_index].astype(np.float32)  # [N]
    loss = log.loss[member_index].astype(np.float32)  # [N]
    member_table = pa.table([log.example_ids, grad_norm, loss, log.response_tokens], schema=SCHEMA)
    pq.write_table(member_table, parquet_file)


def read_members(parquet_files: Sequence[Path]) -> EpochLog:
    """Read the log of an epoch from one file for each member.

    Raises:
        UserError: the members logged different examples.
    """
    return _join_members(parquet_files, [pq.ParquetFile(parquet_file).read() for parquet_file in parquet_files])


def _join_members(parquet_files: Sequence[Path], member_tables: Sequence[pa.Table]) -> EpochLog:
    example_ids = member_tables[0]["example_id"].to_numpy()
    for parquet_file, member_table in zip(parquet_files, member_tables, strict=True):
        if not np.array_equal(member_table["example_id"].to_numpy(), example_ids):
            raise UserError(f"{parquet_file} logged other examples than {parquet_files[0]}")
    return EpochLog(
        example_ids=example_ids,
        grad_norm=np.stack([member_table["grad_norm"].to_numpy() for member_table in member_tables]),
        loss=np.stack([member_table["loss"].to_numpy() for member_table in member_tables]),
        response_tokens=member_tables[0]["response_tokens"].to_numpy(),
    )


def read_member_pieces(parquet_files: Sequence[Path], piece_rows: int = PIECE_ROWS) -> Iterator[EpochLog]:
    """Read the log of an epoch piece by piece, in ascending order of ids, from one file for each member.

    Args:
        parquet_files: of the members.
        piece_rows: rows of a piece; the last has fewer.

    Raises:
        UserError: the members logged different examples, or a file holds a row twice or out of order.
    """
    last_id = -1
    with ExitStack() as open_files:
        readers = [open_files.enter_context(pq.ParquetFile(parquet_file)) for parquet_file in parquet_files]
        row_counts = [reader.metadata.num_rows for reader in readers]
        for parquet_file, row_count in zip(parquet_files, row_counts, strict=True):
            if row_count != row_counts[0]:
                raise UserError(
                    f"{parquet_file} logged {row_count:,} examples and {parquet_files[0]} {row_counts[0]:,}; "
                    "every member must log the same"
                )
        for member_tables in zip(*(_iterate_tables(reader, piece_rows) for reader in readers), strict=True):
            epoch_log = _join_members(parquet_files, member_tables)
            id_steps = np.diff(epoch_log.example_ids, prepend=last_id)
            if (id_steps <= 0).any():
                first_position = int(np.flatnonzero(id_steps <= 0)[0])
                raise UserError(
                    f"{parquet_files[0]} holds example {epoch_log.example_ids[first_position]} twice or out of order; "
                    "each row must be measured once, in ascending order of example_id"
                )
            last_id = int(epoch_log.example_ids[-1])
            yield epoch_log


def join_pieces(pieces: Iterable[EpochLog]) -> EpochLog:
    """Join the logs of some rows after the other."""
    epoch_logs = list(pieces)
    return EpochLog(
        example_ids=np.concatenate([epoch_log.example_ids for epoch_log in epoch_logs]),
        grad_norm=np.concatenate([epoch_log.grad_norm for epoch_log in epoch_logs], axis=1),
        loss=np.concatenate([epoch_log.loss for epoch_log in epoch_logs], axis=1),
        response_tokens=np.concatenate([epoch_log.response_tokens for epoch_log in epoch_logs]),
    )


def _iterate_tables(reader: pq.ParquetFile, piece_rows: int) -> Iterator[pa.Table]:
    """Yield a file's rows in tables of `piece_rows` rows, whatever its row groups; the last has fewer."""
    waiting = SCHEMA.empty_table()
    for record_batch in reader.iter_batches(piece_rows, columns=SCHEMA.names, use_threads=False):
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([record_batch]).cast(SCHEMA)])
        while len(waiting) >= piece_rows:
            yield waiting.slice(0, piece_rows)
            waiting = waiting.slice(piece_rows)
    if len(waiting):
        yield waiting


class GradientLogReader:
    """A gradient log on disk, of which each epoch is read when it is first needed.

    Args:
        log_folder: `gradient_log/` of a run.
        read_ids: [K] int64, ascending: the rows that `epoch` returns, of those that were logged; None for all.

    Attributes:
        members: numbers of the logged members, ascending.
        epochs: snapshots that were logged of every member, ascending; members that a search added lack some.
        unit: what these are counted in.

    Raises:
        UserError: there is no log.
    """

    def __init__(self, log_folder: Path, read_ids: NDArray[np.int64] | None = None):
        self.log_folder = Path(log_folder)
        self.read_ids = read_ids
        self.members = _partition_numbers(self.log_folder, "member")
        if not self.members:
            raise UserError(f"no gradient log at {log_folder}; run the proxy stage first (until=proxy or later)")
        member_folders = [partition_folder(self.log_folder, member_number, 0).parent for member_number in self.members]
        self.unit: SnapshotUnit = "update" if any(member_folders[0].glob("update=*")) else "epoch"
        self.epochs = sorted(
            set.intersection(*(set(_partition_numbers(folder, self.unit)) for folder in member_folders))
        )
        self._epoch_logs: dict[int, EpochLog] = {}

    def epoch(self, epoch_number: int) -> EpochLog:
        """Return all members' measurements at an epoch, of the rows that are to be read.

        Raises:
            UserError: the log has no such epoch.
        """
        if epoch_number not in self._epoch_logs:
            self._epoch_logs[epoch_number] = self._read_epoch(epoch_number)
        return self._epoch_logs[epoch_number]

    def _read_epoch(self, epoch_number: int) -> EpochLog:
        if self.read_ids is None:
            return read_members(self.list_files(epoch_number))
        return join_pieces(
            piece.select_rows(np.flatnonzero(np.isin(piece.example_ids, self.read_ids)))
            for piece in self.pieces(epoch_number)
        )

    def pieces(self, epoch_number: int, piece_rows: int = PIECE_ROWS) -> Iterator[EpochLog]:
        """Read all members' measurements at an epoch piece by piece, see `read_member_pieces`."""
        return read_member_pieces(self.list_files(epoch_number), piece_rows)

    def count_rows(self, epoch_number: int) -> int:
        """Count the rows that the first member logged at an epoch."""
        return int(pq.read_metadata(self.list_files(epoch_number)[0]).num_rows)

    def list_files(self, epoch_number: int) -> list[Path]:
        """List the file of each member at an epoch.

        Raises:
            UserError: the log has no such epoch.
        """
        parquet_files = [
            partition_folder(self.log_folder, member_number, epoch_number, self.unit) / PARQUET_FILE
            for member_number in self.members
        ]
        for member_number, parquet_file in zip(self.members, parquet_files, strict=True):
            if not parquet_file.is_file():
                raise UserError(
                    f"the gradient log {self.log_folder} has no {self.unit} {epoch_number} for member "
                    f"{member_number} ({self.unit}s logged: "
                    f"{self.epochs}); choose epochs.early and epochs.late among them or log that {self.unit}"
                )
        return parquet_files


def _partition_numbers(parent_folder: Path, partition_name: str) -> list[int]:
    return sorted(
        int(partition_path.name.partition("=")[2]) for partition_path in parent_folder.glob(f"{partition_name}=*")
    )
