"""Gradient norms and losses of rows, written by the rank that measured them, and merged where each is there once."""

import uuid
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradfiltering.distributed.process_group import gather_from_ranks, rank
from gradfiltering.errors import UserError
from gradfiltering.runs.files import explain_failed_writes
from gradfiltering.runs.gradient_log import PIECE_ROWS, SCHEMA
from gradfiltering.shards.database import open_database, read_files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SHARD_ROWS = 1 << 16  # measurements that a process holds before it writes them
SHARD_SCHEMA = pa.schema(
    [("member", pa.int32()), ("example_id", pa.int64()), ("grad_norm", pa.float64()), ("loss", pa.float64())]
)
IDS_NAMED = 10  # in an error


class MeasurementShards:
    """Records the gradient norm and loss of rows in any order and on any rank, in files of a folder that all ranks see.

    No process holds more than `SHARD_ROWS` measurements, and none is sent to another.

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
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def record(
        self, example_ids: NDArray[np.int64], grad_norm: NDArray[np.floating], loss: NDArray[np.floating]
    ) -> None:
        """Record a batch.

        Args:
            example_ids: [B], or [M, B] where members see different rows.
            grad_norm: [M, B].
            loss: [M, B], nats per response token.
        """
        member_index = np.broadcast_to(np.arange(self.members, dtype=np.int32)[:, None], grad_norm.shape)
        columns = [
            np.ravel(member_index),
            np.ravel(np.broadcast_to(example_ids, grad_norm.shape)),
            np.ravel(grad_norm).astype(np.float64),
            np.ravel(loss).astype(np.float64),
        ]
        self._waiting.append(pa.table(columns, schema=SHARD_SCHEMA))
        self._waiting_rows += grad_norm.size
        if self._waiting_rows >= self.shard_rows:
            self._write()

    def list_files(self) -> list[str]:
        """Write what waits, and list the names of all ranks' files so far; every rank calls it."""
        if self._waiting:
            self._write()
        return list(chain.from_iterable(gather_from_ranks(self.own_files)))

    def restore(self, file_names: Sequence[str]) -> None:
        """Go on from what `list_files` returned, whatever the number of ranks then and now."""
        self.own_files = list(file_names) if rank() == 0 else []

    def _write(self) -> None:
        file_name = f"rank={rank()}-{uuid.uuid4().hex}.parquet"
        with explain_failed_writes(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(self._waiting), self.folder / file_name, use_dictionary=False)
        self.own_files.append(file_name)
        self._waiting, self._waiting_rows = [], 0


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

    Rank zero calls it, after all ranks have listed their files. Memory does not grow with the rows.

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
    shards = read_files([folder / file_name for file_name in file_names])
    with open_database(folder) as connection:
        if not file_names:  # of no rows
            connection.register("no_rows", SHARD_SCHEMA.empty_table())
            shards = "no_rows"
        _check_finite(connection, shards, members, settings_class)
        for member_index, merged_file in enumerate(merged_files):
            member_rows = (
                f"SELECT example_id, grad_norm, loss FROM {shards} WHERE member = {member_index} ORDER BY example_id"
            )
            with connection.sql(member_rows).to_arrow_reader(PIECE_ROWS) as reader:
                is_complete = _write_member(reader, merged_file, example_ids, response_tokens)
            if not is_complete:
                raise _describe_miscount(connection, shards, example_ids, members)
    return merged_files


def _write_member(
    reader: pa.RecordBatchReader,
    merged_file: Path,
    example_ids: NDArray[np.int64],
    response_tokens: NDArray[np.int32],
) -> bool:
    """Write one member's rows as they come, by example id; False where they are not those that were asked for."""
    row_count = 0
    with pq.ParquetWriter(merged_file, SCHEMA) as writer:
        for record_batch in reader:
            batch_ids = record_batch["example_id"].to_numpy()
            rows = slice(row_count, row_count + len(batch_ids))
            if not np.array_equal(batch_ids, example_ids[rows]):
                return False
            measurements = [record_batch[name].to_numpy().astype(np.float32) for name in ("grad_norm", "loss")]
            writer.write_table(pa.table([batch_ids, *measurements, response_tokens[rows]], schema=SCHEMA))
            row_count += len(batch_ids)
    return row_count == len(example_ids)


def _check_finite(connection: "DuckDBPyConnection", shards: str, members: int, settings_class: type) -> None:
    not_finite = f"FROM {shards} WHERE NOT (isfinite(grad_norm) AND isfinite(loss))"
    member_count = connection.execute(f"SELECT count(DISTINCT member) {not_finite}").fetchall()[0][0]
    if member_count:
        first_rows = connection.execute(
            f"SELECT DISTINCT example_id {not_finite} ORDER BY example_id LIMIT {IDS_NAMED}"
        ).fetchall()
        raise UserError(
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
