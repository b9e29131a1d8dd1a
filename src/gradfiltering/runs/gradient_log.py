"""Files of the gradient log: one parquet file for each member and epoch, in Hive partitions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.errors import UserError
from gradfiltering.requests import EpochLog, SnapshotUnit

PARQUET_FILE = "part-0.parquet"
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
    member_tables = [pq.ParquetFile(parquet_file).read() for parquet_file in parquet_files]
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


class GradientLogReader:
    """A gradient log on disk, of which each epoch is read when it is first needed.

    Args:
        log_folder: `gradient_log/` of a run.

    Attributes:
        members: numbers of the logged members, ascending.
        epochs: logged snapshots of the first member, ascending.
        unit: what these are counted in.

    Raises:
        UserError: there is no log.
    """

    def __init__(self, log_folder: Path):
        self.log_folder = Path(log_folder)
        self.members = _partition_numbers(self.log_folder, "member")
        if not self.members:
            raise UserError(f"no gradient log at {log_folder}; run the proxy stage first (until=proxy or later)")
        first_member_folder = partition_folder(self.log_folder, self.members[0], 0).parent
        self.unit: SnapshotUnit = "update" if any(first_member_folder.glob("update=*")) else "epoch"
        self.epochs = _partition_numbers(first_member_folder, self.unit)
        self._epoch_logs: dict[int, EpochLog] = {}

    def epoch(self, epoch_number: int) -> EpochLog:
        """Return all members' measurements at an epoch.

        Raises:
            UserError: the log has no such epoch.
        """
        if epoch_number not in self._epoch_logs:
            self._epoch_logs[epoch_number] = self._read_epoch(epoch_number)
        return self._epoch_logs[epoch_number]

    def _read_epoch(self, epoch_number: int) -> EpochLog:
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
        return read_members(parquet_files)


def _partition_numbers(parent_folder: Path, partition_name: str) -> list[int]:
    return sorted(
        int(partition_path.name.partition("=")[2]) for partition_path in parent_folder.glob(f"{partition_name}=*")
    )
