"""Files of the gradient log: one parquet file for each member and epoch, in Hive partitions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.errors import UserError
from gradfiltering.requests import EpochLog
from gradfiltering.runs.files import atomic_path

PARQUET_FILE = "part-0.parquet"
SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("grad_norm", pa.float32()),
        ("loss", pa.float32()),
        ("response_tokens", pa.int32()),
    ]
)


def partition_folder(folder: Path, member: int, epoch: int) -> Path:
    """Return the Hive partition of one member and epoch."""
    return folder / f"member={member:02d}" / f"epoch={epoch:02d}"


def write_epoch(log_folder: Path, log: EpochLog, members: Sequence[int], epoch: int) -> None:
    """Write one epoch of the log, a parquet file for each member."""
    for member_index, member in enumerate(members):
        with atomic_path(partition_folder(log_folder, member, epoch) / PARQUET_FILE) as part:
            write_member(part, log, member_index)


def write_member(parquet_file: Path, log: EpochLog, member_index: int) -> None:
    """Write the measurements of one member, given by its position in the log."""
    grad_norm = log.grad_norm[member_index].astype(np.float32)  # [N]
    loss = log.loss[member_index].astype(np.float32)  # [N]
    table = pa.table([log.example_ids, grad_norm, loss, log.response_tokens], schema=SCHEMA)
    pq.write_table(table, parquet_file)


def read_members(parquet_files: Sequence[Path]) -> EpochLog:
    """Read the log of an epoch from one file for each member.

    Raises:
        UserError: the members logged different examples.
    """
    tables = [pq.ParquetFile(parquet_file).read() for parquet_file in parquet_files]
    example_ids = tables[0]["example_id"].to_numpy()
    for parquet_file, table in zip(parquet_files, tables, strict=True):
        if not np.array_equal(table["example_id"].to_numpy(), example_ids):
            raise UserError(f"{parquet_file} logged other examples than {parquet_files[0]}")
    return EpochLog(
        example_ids=example_ids,
        grad_norm=np.stack([table["grad_norm"].to_numpy() for table in tables]),
        loss=np.stack([table["loss"].to_numpy() for table in tables]),
        response_tokens=tables[0]["response_tokens"].to_numpy(),
    )


class GradientLogReader:
    """A gradient log on disk, of which each epoch is read when it is first needed.

    Args:
        log_folder: `gradient_log/` of a run.

    Attributes:
        members: numbers of the logged members, ascending.
        epochs: logged epochs of the first member, ascending.

    Raises:
        UserError: there is no log.
    """

    def __init__(self, log_folder: Path):
        self.log_folder = Path(log_folder)
        self.members = _partition_numbers(self.log_folder, "member")
        if not self.members:
            raise UserError(f"no gradient log at {log_folder}; run the proxy stage first (until=proxy or later)")
        first_member_folder = partition_folder(self.log_folder, self.members[0], 0).parent
        self.epochs = _partition_numbers(first_member_folder, "epoch")
        self._epoch_logs: dict[int, EpochLog] = {}

    def epoch(self, epoch: int) -> EpochLog:
        """Return all members' measurements at an epoch.

        Raises:
            UserError: the log has no such epoch.
        """
        if epoch not in self._epoch_logs:
            self._epoch_logs[epoch] = self._read_epoch(epoch)
        return self._epoch_logs[epoch]

    def _read_epoch(self, epoch: int) -> EpochLog:
        parquet_files = [partition_folder(self.log_folder, member, epoch) / PARQUET_FILE for member in self.members]
        for member, parquet_file in zip(self.members, parquet_files, strict=True):
            if not parquet_file.is_file():
                raise UserError(
                    f"the gradient log {self.log_folder} has no epoch {epoch} for member {member} (epochs logged: "
                    f"{self.epochs}); choose epochs.early and epochs.late among them or log that epoch"
                )
        return read_members(parquet_files)


def _partition_numbers(folder: Path, partition_name: str) -> list[int]:
    return sorted(int(path.name.partition("=")[2]) for path in folder.glob(f"{partition_name}=*"))


