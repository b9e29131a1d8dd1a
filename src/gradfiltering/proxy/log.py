"""The gradient log: what was measured for each example, member and epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.errors import UserError
from gradfiltering.store import atomic_path

SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("grad_norm", pa.float32()),
        ("loss", pa.float32()),
        ("response_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class EpochPair:
    """The two snapshots whose norms are compared; epoch 0 is before training.

    Attributes:
        early: s.
        late: t > s.
    """

    early: int
    late: int

    def __post_init__(self):
        if not 0 <= self.early < self.late:
            raise UserError(f"epochs.early={self.early}, epochs.late={self.late}: give 0 <= early < late")


@dataclass(frozen=True)
class EpochLog:
    """Measurements of N examples under M members at one epoch.

    Attributes:
        example_ids: [N] int64, ascending.
        grad_norm: [M, N] float32.
        loss: [M, N] float32, nats per response token.
        response_tokens: [N] int32.
    """

    example_ids: np.ndarray
    grad_norm: np.ndarray
    loss: np.ndarray
    response_tokens: np.ndarray


class EpochRecorder:
    """Gathers measurements in any order and hands them out by example id.

    Args:
        example_ids: [N] int64, ascending: every example that must be measured once.
        response_tokens: [N] int32.
        members: M.
    """

    def __init__(self, example_ids: np.ndarray, response_tokens: np.ndarray, members: int):
        self.example_ids = example_ids
        self.response_tokens = response_tokens
        self.grad_norm = np.full((members, len(example_ids)), np.nan, dtype=np.float32)
        self.loss = np.full_like(self.grad_norm, np.nan)

    def add(self, example_id: np.ndarray, grad_norm: np.ndarray, loss: np.ndarray) -> None:
        """Records a batch.

        Args:
            example_id: [B], or [M, B] where members saw different rows.
            grad_norm: [M, B].
            loss: [M, B].
        """
        rows = np.searchsorted(self.example_ids, np.broadcast_to(example_id, grad_norm.shape))
        member = np.arange(len(grad_norm))[:, None]
        self.grad_norm[member, rows] = grad_norm
        self.loss[member, rows] = loss

    def finish(self) -> EpochLog:
        """The complete log of the epoch.

        Raises:
            RuntimeError: some example was never measured (a defect of the caller).
        """
        missing = int(np.isnan(self.grad_norm).sum())
        if missing:
            raise RuntimeError(f"{missing} of {self.grad_norm.size} measurements are missing from the gradient log")
        return EpochLog(self.example_ids, self.grad_norm, self.loss, self.response_tokens)


def leaf(folder: Path, member: int, epoch: int) -> Path:
    """The Hive partition of one member and epoch."""
    return folder / f"member={member:02d}" / f"epoch={epoch:02d}"


def write_epoch(folder: Path, log: EpochLog, members: Sequence[int], epoch: int) -> None:
    """Writes one epoch of the log, a parquet file per member."""
    for position, member in enumerate(members):
        table = pa.table(
            [log.example_ids, log.grad_norm[position], log.loss[position], log.response_tokens], schema=SCHEMA
        )
        with atomic_path(leaf(folder, member, epoch) / "part-0.parquet") as part:
            pq.write_table(table, part)


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
        tables = []
        for member in self.members:
            file = leaf(self.folder, member, epoch) / "part-0.parquet"
            if not file.is_file():
                raise UserError(
                    f"the gradient log {self.folder} has no epoch {epoch} for member {member} (epochs logged: "
                    f"{self.epochs}); choose epochs.early and epochs.late among them or log that epoch"
                )
            tables.append(pq.ParquetFile(file).read())
        ids = tables[0]["example_id"].to_numpy()
        for member, table in zip(self.members, tables, strict=True):
            if not np.array_equal(table["example_id"].to_numpy(), ids):
                raise UserError(f"{self.folder}: member {member} logged other examples than member {self.members[0]}")
        return EpochLog(
            example_ids=ids,
            grad_norm=np.stack([table["grad_norm"].to_numpy() for table in tables]),
            loss=np.stack([table["loss"].to_numpy() for table in tables]),
            response_tokens=tables[0]["response_tokens"].to_numpy(),
        )
