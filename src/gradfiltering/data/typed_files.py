"""Typed files (parquet, arrow, feather): their schema and their rows, a few at a time."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather

from gradfiltering.data.data_files import DataFile, explained_file_access
from gradfiltering.data.remote_files import RemoteFile, explained_access
from gradfiltering.errors import UserError
from gradfiltering.runs.plain_text import one_line

ARROW_FILE_START = b"ARROW1"


def is_arrow_stream(data_file: DataFile) -> bool:
    """Return True for an arrow file that is a stream, as `datasets` writes them, and not of the file format."""
    with data_file.path.open("rb") as first_bytes:
        return not first_bytes.read(6).startswith((ARROW_FILE_START, b"FEA1"))


def read_typed_batches(data_file: DataFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema of a parquet, arrow or feather file and its batches, read as they are asked for.

    Raises:
        UserError: the file is not of its type.
    """
    if isinstance(data_file.path, RemoteFile):
        with explained_access(str(data_file.path)):
            return _read_remote_batches(data_file, data_file.path.open_anywhere())
    try:
        if data_file.kind == "parquet":
            parquet_file = pq.ParquetFile(data_file.path, memory_map=True)
            return parquet_file.schema_arrow, _explain_read_errors(data_file, parquet_file.iter_batches())
        memory_map = pa.memory_map(str(data_file.path))
        if not is_arrow_stream(data_file):
            if memory_map.read(4) == b"FEA1":
                feather_table = feather.read_table(data_file.path)
                return feather_table.schema, iter(feather_table.to_batches())
            return _read_arrow_file(data_file, memory_map)
        byte_stream = pa.ipc.open_stream(memory_map)
        return byte_stream.schema, _explain_read_errors(data_file, iter(byte_stream))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable_file(data_file, error) from error


def _read_remote_batches(data_file: DataFile, remote_stream: IO[bytes]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    try:
        if data_file.kind == "parquet":
            parquet_file = pq.ParquetFile(remote_stream)
            return parquet_file.schema_arrow, _explain_read_errors(data_file, parquet_file.iter_batches())
        first_bytes = remote_stream.read(6)
        remote_stream.seek(0)
        if first_bytes.startswith(b"FEA1"):
            raise UserError(f"{data_file.path} is of the first feather format; write it again as parquet or arrow")
        if first_bytes.startswith(ARROW_FILE_START):
            return _read_arrow_file(data_file, pa.PythonFile(remote_stream, mode="r"))
        byte_stream = pa.ipc.open_stream(pa.PythonFile(remote_stream, mode="r"))
        return byte_stream.schema, _explain_read_errors(data_file, iter(byte_stream))
    except pa.ArrowException as error:
        raise _unreadable_file(data_file, error) from error


def _read_arrow_file(data_file: DataFile, source: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    reader = pa.ipc.open_file(source)
    record_batches = (reader.get_batch(batch_index) for batch_index in range(reader.num_record_batches))
    return reader.schema, _explain_read_errors(data_file, record_batches)


def _explain_read_errors(data_file: DataFile, record_batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    with explained_file_access(data_file):
        try:
            yield from record_batches
        except pa.ArrowException as error:
            raise _unreadable_file(data_file, error) from error
        except OSError as error:
            if isinstance(data_file.path, RemoteFile):
                raise
            raise _unreadable_file(data_file, error) from error


def _unreadable_file(data_file: DataFile, error: Exception) -> UserError:
    return UserError(
        f"{data_file.path} is no readable {data_file.kind} file: {one_line(error)}; write it again, or fetch it again"
    )
