"""The gradient log: what was measured for each example, member and epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.distributed.process_group import total
from gradfiltering.errors import UserError
from gradfiltering.runs.cache import atomic_path

FILE = "part-0.parquet"
SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("grad_norm", pa.float32()),
        ("loss", pa.float32()),
        ("response_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class EpochLog:
    """Measurements of N examples under M members at one epoch.

    Attributes:
        example_ids: [N] int64, ascending.
        grad_norm: [M, N] float32 when read from disk, float64 while it is being measured.
        loss: [M, N] likewise, nats per response token.
        response_tokens: [N] int32.
    """

    example_ids: np.ndarray
    grad_norm: np.ndarray
    loss: np.ndarray
    response_tokens: np.ndarray


class EpochRecorder:
    """Gathers the measurements of all processes in any order and hands them out by example id.

    Args:
        example_ids: [N] int64, ascending: every example that must be measured once.
        response_tokens: [N] int32.
        members: M.
    """

    def __init__(self, example_ids: np.ndarray, response_tokens: np.ndarray, members: int):
        self.example_ids = example_ids
        self.response_tokens = response_tokens
        self.grad_norm = np.zeros((members, len(example_ids)))
        self.loss = np.zeros_like(self.grad_norm)
        self.times = np.zeros(self.grad_norm.shape, dtype=np.int32)

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
        self.times[member, rows] += 1

    def arrays(self) -> dict[str, np.ndarray]:
        """What was measured so far, for `restore`."""
        return {"grad_norm": self.grad_norm, "loss": self.loss, "times": self.times}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes on from what `arrays` gave."""
        self.grad_norm, self.loss, self.times = (arrays[name] for name in ("grad_norm", "loss", "times"))

    def finish(self) -> EpochLog:
        """The complete log of the epoch, the same in every process.

        Raises:
            RuntimeError: some example was not measured exactly once over all processes (a defect of the caller).
            UserError: a norm or a loss is not finite.
        """
        times = total(self.times)
        if (times != 1).any():
            raise RuntimeError(
                f"of {times.size} measurements {int((times == 0).sum())} are missing from the gradient log and "
                f"{int((times > 1).sum())} were made more than once"
            )
        # Every other process has 0 where this one measured, so the sums are the measurements, bit for bit.
        grad_norm, loss = total(self.grad_norm), total(self.loss)
        bad = ~(np.isfinite(grad_norm) & np.isfinite(loss))
        if bad.any():
            rows = self.example_ids[bad.any(0)][:10].tolist()
            raise UserError(
                f"gradient norm or loss is not finite for {int(bad.any(1).sum())} of {len(bad)} members, rows {rows}; "
                "lower ensemble.lr, or set ensemble.clip_norm, or look at those rows"
            )
        return EpochLog(self.example_ids, grad_norm, loss, self.response_tokens)


def leaf(folder: Path, member: int, epoch: int) -> Path:
    """The Hive partition of one member and epoch."""
    return folder / f"member={member:02d}" / f"epoch={epoch:02d}"


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
