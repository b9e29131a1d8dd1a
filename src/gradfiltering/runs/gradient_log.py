"""The gradient log: what was measured for each example, member and epoch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.errors import UserError
from gradfiltering.requests import EpochLog
from gradfiltering.runs.files import atomic_path

FILE = PARQUET_FILE = "part-0.parquet"
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


leaf = partition_folder  # old name


def write_epoch(folder: Path, log: EpochLog, members: Sequence[int], epoch: int) -> None:
    """Writes one epoch of the log, a parquet file per member."""
    for position, member in enumerate(members):
        with atomic_path(leaf(folder, member, epoch) / FILE) as part:
            write_member(part, log, position)


def write_member(path: Path, log: EpochLog, position: int) -> None:
    """Writes the measurements of the member at `position` of the log."""
    norm, loss = (values[position].astype(np.float32) for values in (log.grad_norm, log.loss))
    pq.write_table(pa.table([log.example_ids, norm, loss, log.response_tokens], schema=SCHEMA), path)


def read_members(files: Sequence[Path]) -> EpochLog:
    """The log of an epoch from one file a member.

    Raises:
        UserError: the members logged different examples.
    """
    tables = [pq.ParquetFile(file).read() for file in files]
    ids = tables[0]["example_id"].to_numpy()
    for file, table in zip(files, tables, strict=True):
        if not np.array_equal(table["example_id"].to_numpy(), ids):
            raise UserError(f"{file} logged other examples than {files[0]}")
    return EpochLog(
        example_ids=ids,
        grad_norm=np.stack([table["grad_norm"].to_numpy() for table in tables]),
        loss=np.stack([table["loss"].to_numpy() for table in tables]),
        response_tokens=tables[0]["response_tokens"].to_numpy(),
    )


class GradientLog:
    """A gradient log on disk.

    Args:
        folder: `gradient_log/` of a run.

    Raises:
        UserError: there is no log.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.members = sorted(int(path.name.partition("=")[2]) for path in self.folder.glob("member=*"))
        if not self.members:
            raise UserError(f"no gradient log at {folder}; run the proxy stage first (until=proxy or later)")
        self.epochs = sorted(
            int(path.name.partition("=")[2]) for path in leaf(self.folder, self.members[0], 0).parent.glob("epoch=*")
        )
        self._read: dict[int, EpochLog] = {}

    def epoch(self, epoch: int) -> EpochLog:
        """All members' measurements at `epoch`.

        Raises:
            UserError: the log has no such epoch.
        """
        if epoch not in self._read:
            self._read[epoch] = self._load(epoch)
        return self._read[epoch]

    def _load(self, epoch: int) -> EpochLog:
        files = [leaf(self.folder, member, epoch) / FILE for member in self.members]
        for member, file in zip(self.members, files, strict=True):
            if not file.is_file():
                raise UserError(
                    f"the gradient log {self.folder} has no epoch {epoch} for member {member} (epochs logged: "
                    f"{self.epochs}); choose epochs.early and epochs.late among them or log that epoch"
                )
        return read_members(files)
