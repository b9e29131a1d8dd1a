"""Gradient norms and losses of rows, written by the rank that measured them, and merged where each is there once."""

import uuid
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradfiltering.distributed.process_group import gather_from_ranks, rank
from gradfiltering.errors import UserError
from gradfiltering.runs.files import explain_failed_writes
from gradfiltering.runs.gradient_log import SCHEMA
from gradfiltering.runs.memory import return_freed_buffers
from gradfiltering.shards.database import open_database, read_files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SHARD_ROWS = 1 << 16  # measurements that a process holds before it writes them
SHARD_SCHEMA = pa.schema(
    [("member", pa.int32()), ("example_id", pa.int64()), ("grad_norm", pa.float64()), ("loss", pa.float64())]
)
WAITING_TYPE = np.dtype(
    [("member", "i4"), ("example_id", "i8"), ("has_norm", "?"), ("grad_norm", "f8"), ("loss", "f8")]
)
MEASUREMENTS_FILE = "measurements.bin"
IDS_NAMED = 10  # in an error


class MeasurementShards:
    """Records the gradient norm and loss of rows in any order and on any rank, in files of a folder that all ranks see.

    Where losses alone are measured, the norms are null. No process holds more than `SHARD_ROWS` measurements, and none
    is sent to another. They wait in a single array: small ones, kept among the large buffers of training steps, would
    leave the heap in pieces that later buffers do not fit into.

    Args:
        folder: shared by the ranks; made when the first file is written.
        members: M, the models that each row is measured with.
        shard_rows: measurements of a file.
    """

    def __init__(self, folder: Path, members: int, shard_rows: int = SHARD_ROWS):
        self.folder = folder
        self.members = members
        self.shard_rows = shard_rows
        self.own_files: list[str] = []
        self._waiting = np.empty(0, dtype=WAITING_TYPE)
        self._waiting_rows = 0

    def record(
        self,
        example_ids: NDArray[np.int64],
        grad_norm: NDArray[np.floating] | None,
        loss: NDArray[np.floating],
    ) -> None:
        """Record a batch.

        Args:
            example_ids: [B], or [M, B] where members see different rows.
            grad_norm: [M, B]; None where losses alone are measured.
            loss: [M, B], nats per response token.
        """
        first_row, end_row = self._waiting_rows, self._waiting_rows + loss.size
        if end_row > len(self._waiting):
            self._waiting = np.resize(self._waiting, self.shard_rows + loss.size)
        batch = self._waiting[first_row:end_row].reshape(loss.shape)  # [M, B]
        batch["member"] = np.arange(self.members)[:, None]
        batch["example_id"] = example_ids
        batch["has_norm"] = grad_norm is not None
        batch["grad_norm"] = 0.0 if grad_norm is None else grad_norm
        batch["loss"] = loss
        self._waiting_rows = end_row
        if self._waiting_rows >= self.shard_rows:
            self._write()

    def list_files(self) -> list[str]:
        """Write what waits, and list the names of all ranks' files so far; every rank calls it."""
        if self._waiting_rows:
            self._write()
        return list(chain.from_iterable(gather_from_ranks(self.own_files)))

    def restore(self, file_names: Sequence[str]) -> None:
        """Go on from what `list_files` returned, whatever the number of ranks then and now."""
        self.own_files = list(file_names) if rank() == 0 else []

    def _write(self) -> None:
        file_name = f"rank={rank()}-{uuid.uuid4().hex}.parquet"
        waiting = self._waiting[: self._waiting_rows]
        norms = pa.array(waiting["grad_norm"], mask=~waiting["has_norm"], from_pandas=False)  # NaN stays NaN
        shard = pa.table([waiting["member"], waiting["example_id"], norms, waiting["loss"]], schema=SHARD_SCHEMA)
        with explain_failed_writes(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(shard, self.folder / file_name, use_dictionary=False)
        self.own_files.append(file_name)
        self._waiting_rows = 0
        return_freed_buffers()


def has_all_files(folder: Path, file_names: Sequence[str]) -> bool:
    """Return True where all of these files are in the folder, and none was cut off."""
    try:
        return all(pq.read_metadata(folder / file_name).num_rows > 0 for file_name in file_names)
    except (OSError, pa.ArrowInvalid):
        return False


def merge_shards(
    folder: Path,
    file_names: Sequence[str],
    example_ids: NDArray[np.int64],
    response_tokens: NDArray[np.int32],
    members: int,
    settings_class: type,
) -> list[Path]:
    """Merge shards into one file for each member, by example id, in the layout of the gradient log.

    Rank zero calls it, after all ranks have listed their files. Memory does not grow with the rows: numbers are put
    where their rows stand in a file of 8 bytes a row, which is mapped into memory and deleted in the end.

    Args:
        folder: of the shards; the merged files go into it.
        file_names: all shards.
        example_ids: [N] int64, ascending: the rows that must have been measured once by each member.
        response_tokens: [N] int32 of these rows.
        members: M.
        settings_class: options of the training, to name in errors.

    Returns:
        The file of each member, in order.

    Raises:
        UserError: a file is not there, a row was not measured exactly once, or a number is not finite.
    """
    for file_name in file_names:
        if not (folder / file_name).is_file():
            raise UserError(
                f"{folder / file_name} was written by another process and is not to be seen from this one; all hosts "
                "of a run need one cache folder that they share"
            )
    merged_files = [folder / f"member={member_index}.parquet" for member_index in range(members)]
    shard_files = [folder / file_name for file_name in file_names]
    with explain_failed_writes(folder), TemporaryDirectory(dir=folder) as scratch_folder:
        for member_index, merged_file in enumerate(merged_files):
            measurements_file = Path(scratch_folder) / MEASUREMENTS_FILE
            is_complete = _place_measurements(shard_files, member_index, example_ids, measurements_file)
            if not (is_complete and _write_member(measurements_file, merged_file, example_ids, response_tokens)):
                raise _describe_problem(folder, shard_files, example_ids, members, settings_class)
    return merged_files


def _place_measurements(
    shard_files: Sequence[Path], member_index: int, example_ids: NDArray[np.int64], measurements_file: Path
) -> bool:
    """Write the numbers of one member into a file of [N, 2] float32, norm and loss, NaN for what was not measured.

    Returns:
        False where a number is not finite, there are more or fewer than one for each row, or they are of other rows.
    """
    if not len(example_ids):
        return not shard_files
    measurements = np.memmap(measurements_file, np.float32, "w+", shape=(len(example_ids), 2))
    measurements[:] = np.nan
    measured_count = 0
    for shard_file in shard_files:
        shard = pq.ParquetFile(shard_file).read(use_threads=False)
        is_of_member = shard["member"].to_numpy() == member_index
        measured_ids = shard["example_id"].to_numpy()[is_of_member]
        positions = np.minimum(np.searchsorted(example_ids, measured_ids), len(example_ids) - 1)
        if not np.array_equal(example_ids[positions], measured_ids):
            return False
        for column_index, column_name in enumerate(("grad_norm", "loss")):
            if shard[column_name].null_count == len(shard):  # losses alone were measured
                continue
            column_values = shard[column_name].to_numpy()[is_of_member]
            if not np.isfinite(column_values).all():
                return False
            measurements[positions, column_index] = column_values
        measured_count += len(measured_ids)
        return_freed_buffers()
    measurements.flush()
    return measured_count == len(example_ids)


def _write_member(
    measurements_file: Path, merged_file: Path, example_ids: NDArray[np.int64], response_tokens: NDArray[np.int32]
) -> bool:
    """Write one member's rows by example id; False where a row has no loss."""
    with pq.ParquetWriter(merged_file, SCHEMA, use_dictionary=["response_tokens"]) as writer:
        for first_row in range(0, len(example_ids), SHARD_ROWS):
            rows = slice(first_row, first_row + SHARD_ROWS)
            piece_ids = example_ids[rows]
            measurements = np.fromfile(
                measurements_file, np.float32, count=2 * len(piece_ids), offset=8 * first_row
            ).reshape(-1, 2)
            norms, losses = measurements.T
            if np.isnan(losses).any():
                return False
            known_norms = pa.array(norms, from_pandas=True)  # null where it was not measured
            writer.write_table(pa.table([piece_ids, known_norms, losses, response_tokens[rows]], schema=SCHEMA))
            return_freed_buffers()
    return True


def _describe_problem(
    folder: Path,
    shard_files: Sequence[Path],
    example_ids: NDArray[np.int64],
    members: int,
    settings_class: type,
) -> UserError:
    """Find which rows have numbers that are not finite, or were not measured exactly once."""
    shards = read_files(shard_files)
    with open_database(folder) as connection:
        if not shard_files:
            connection.register("no_rows", SHARD_SCHEMA.empty_table())
            shards = "no_rows"
        infinite_numbers = _describe_infinite(connection, shards, members, settings_class)
        return infinite_numbers or _describe_miscount(connection, shards, example_ids, members)


def _describe_infinite(
    connection: "DuckDBPyConnection", shards: str, members: int, settings_class: type
) -> UserError | None:
    """Name the rows whose norm or loss is not finite; None where all are."""
    not_finite = f"FROM {shards} WHERE NOT (isfinite(grad_norm) AND isfinite(loss))"
    member_count = connection.execute(f"SELECT count(DISTINCT member) {not_finite}").fetchall()[0][0]
    if not member_count:
        return None
    first_rows = connection.execute(
        f"SELECT DISTINCT example_id {not_finite} ORDER BY example_id LIMIT {IDS_NAMED}"
    ).fetchall()
    return UserError(
        f"gradient norm or loss is not finite for {member_count} of {members} members, rows "
        f"{[example_id for (example_id,) in first_rows]}; lower the learning rate, clip the gradients, or look at "
        "those rows",
        owner=settings_class,
        arguments=("lr", "clip_norm"),
    )


def _describe_miscount(
    connection: "DuckDBPyConnection", shards: str, example_ids: NDArray[np.int64], members: int
) -> UserError:
    """Count the measurements that are missing, were made more than once, or are of rows that were not asked for."""
    connection.register("asked_rows", pa.table({"example_id": example_ids}))
    connection.register("asked_members", pa.table({"member": np.arange(members, dtype=np.int32)}))
    counts = (
        f"(SELECT member, example_id, count(*) AS times FROM {shards} GROUP BY ALL) AS measured "
        "FULL JOIN (SELECT * FROM asked_rows, asked_members) AS asked USING (member, example_id)"
    )
    conditions = {
        "are missing": "measured.times IS NULL",
        "were made more than once": "measured.times > 1",
        "are of other rows": "asked.example_id IS NULL",
    }
    described_counts = []
    for meaning, condition in conditions.items():
        count, first_id = connection.execute(
            f"SELECT count(*), min(example_id) FROM {counts} WHERE {condition}"
        ).fetchall()[0]
        if count:
            described_counts.append(f"{count:,} {meaning} (first row {first_id})")
    return UserError(
        f"of {members * len(example_ids):,} measurements of rows {' and '.join(described_counts)}; each row must be "
        "measured exactly once by each member: start the run again, and report this if it happens again"
    )
