"""The outer form of a file, in which selected rows are given back."""

from dataclasses import dataclass

import pyarrow as pa

from gradfiltering.data.data_files import COMPRESSION_BY_SUFFIX, TYPED_KINDS, DataFile, load_row_readers
from gradfiltering.data.typed_files import is_arrow_stream, read_typed_batches


@dataclass(frozen=True)
class FileFormat:
    """Outer form of files, so that selected rows can be given back in the same form.

    Attributes:
        kind: json, jsonl, csv, tsv, parquet or arrow.
        suffix: of the name, compression included.
        compression: gzip, zstd or None.
        schema: of a typed file, dictionaries and metadata included.
        stream: whether an arrow file is a stream, as `datasets` writes them, and not of the file format.
    """

    kind: str
    suffix: str
    compression: str | None = None
    schema: pa.Schema | None = None
    stream: bool = False


JSON_LINES = FileFormat("jsonl", ".jsonl")


def detect_file_format(data_file: DataFile) -> FileFormat:
    """The form of a file, from its name and, where it is typed, its header."""
    if data_file.kind in TYPED_KINDS:
        return FileFormat(
            data_file.kind,
            data_file.path.suffix,
            None,
            read_typed_batches(data_file)[0],
            data_file.kind == "arrow" and is_arrow_stream(data_file),
        )
    if data_file.kind in load_row_readers():
        return JSON_LINES  # other packages read; what they read is given back as JSON lines
    suffix_by_compression = {compression: suffix for suffix, compression in COMPRESSION_BY_SUFFIX.items()}
    return FileFormat(
        data_file.kind,
        f".{data_file.kind}{suffix_by_compression.get(data_file.compression or '', '')}",
        data_file.compression,
    )
