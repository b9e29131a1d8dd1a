"""File formats: which file is of which, and how each gives its rows, a few at a time."""

import codecs
import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather

from gradfiltering.data.dataset_folders import find_split_files
from gradfiltering.data.remote_files import (
    LOCAL_ADDRESS,
    RemoteFile,
    explained_access,
    is_address,
    list_remote_files,
    public_address,
)
from gradfiltering.errors import UserError

KIND_BY_SUFFIX = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
COMPRESSION_BY_SUFFIX = {".gz": "gzip", ".zst": "zstd"}
TYPED_KINDS = ("parquet", "arrow")
ENTRY_POINT_GROUP = "gradfiltering.file_formats"
ARROW_FILE_START = b"ARROW1"
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own bound is shorter than some responses
_DAMAGE_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error, OSError)

NumberedRow = tuple[dict[str, Any], int]


@dataclass(frozen=True)
class DataFile:
    """One file to read.

    Attributes:
        path: where it is.
        kind: json, jsonl, csv, tsv, parquet or arrow.
        compression: gzip, zstd or None.
    """

    path: Path | RemoteFile
    kind: str
    compression: str | None


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
RowReader = Callable[[BinaryIO], Iterable[dict[str, Any]]]


@cache
def load_row_readers() -> dict[str, RowReader]:
    """Load the file formats of other packages: suffix without its dot -> reader of an open file's rows.

    A package names them as entry points of the group `gradfiltering.file_formats`; a suffix of this
    project cannot be taken.
    """
    readers = {entry_point.name: entry_point.load() for entry_point in entry_points(group=ENTRY_POINT_GROUP)}
    return {suffix: reader for suffix, reader in readers.items() if f".{suffix}" not in KIND_BY_SUFFIX}


def readable_suffixes() -> list[str]:
    """List the suffixes of all files that can be read, dots included."""
    return [*KIND_BY_SUFFIX, *(f".{suffix}" for suffix in load_row_readers())]


def detect_file_format(data_file: DataFile) -> FileFormat:
    """The form of a file, from its name and, where it is typed, its header."""
    if data_file.kind in TYPED_KINDS:
        return FileFormat(
            data_file.kind,
            data_file.path.suffix,
            None,
            read_typed_batches(data_file)[0],
            data_file.kind == "arrow" and _is_stream(data_file),
        )
    if data_file.kind in load_row_readers():
        return JSON_LINES  # other packages read; what they read is given back as JSON lines
    suffix_by_compression = {compression: suffix for suffix, compression in COMPRESSION_BY_SUFFIX.items()}
    return FileFormat(
        data_file.kind,
        f".{data_file.kind}{suffix_by_compression.get(data_file.compression or '', '')}",
        data_file.compression,
    )


def _is_stream(data_file: DataFile) -> bool:
    with data_file.path.open("rb") as first_bytes:
        return not first_bytes.read(6).startswith((ARROW_FILE_START, b"FEA1"))


def find_data_files(path: str, split: str | None = None) -> list[DataFile]:
    """The files that a path, folder, glob or address names, in sorted order and all of one type.

    A path that exists is taken literally, whatever characters it holds. In a folder, hidden files and those of other
    types (a README) are passed over. A folder that `datasets` saved, and a copy of a dataset repository of the hub
    (its README may list the files of each split), give the files of a split.

    Args:
        path: what to read.
        split: of a folder with several; None takes the only one.

    Raises:
        UserError: nothing is there, nothing readable is there, the types differ, or the splits are several.
    """
    if not path.strip():
        raise UserError("the path of the data is empty; name a file, a folder or a glob")
    if is_address(path):
        return _check_kinds(public_address(path), _remote_data_files(path, split))
    path = LOCAL_ADDRESS.sub("", path)
    given_path = Path(path).expanduser()
    if given_path.is_file():
        return [_data_file(given_path)]
    if given_path.is_dir():
        file_paths = find_split_files(given_path, split)
        if file_paths is None:
            file_paths = sorted(
                entry for entry in given_path.iterdir() if entry.is_file() and not entry.name.startswith((".", "_"))
            )
        data_files = [_data_file(file_path) for file_path in file_paths if _kind_and_compression(file_path)[0]]
        if not data_files:
            raise UserError(
                f"{path} holds no file of a known type; files of {', '.join(readable_suffixes())} can be read"
            )
    else:
        matching_paths = sorted(glob.glob(str(given_path), recursive=True))  # noqa: PTH207  (the pattern may be absolute)
        data_files = [_data_file(Path(name)) for name in matching_paths if Path(name).is_file()]
    if not data_files:
        raise UserError(
            f"no such file: {path} (looked in {given_path.absolute().parent}); name a file, a folder or a glob"
        )
    return _check_kinds(path, data_files)


def _remote_data_files(address: str, split: str | None) -> list[DataFile]:
    remote_files = list_remote_files(address, split)
    if not remote_files:
        raise UserError(f"no such file: {public_address(address)}; check the address, or the pattern")
    if len(remote_files) == 1:
        return [_data_file(remote_files[0])]
    data_files = [_data_file(file) for file in remote_files if _kind_and_compression(file)[0]]
    if not data_files:
        raise UserError(
            f"{public_address(address)} holds no file of a known type; files of "
            f"{', '.join(readable_suffixes())} can be read"
        )
    return data_files


def _check_kinds(path: str, data_files: list[DataFile]) -> list[DataFile]:
    if len({data_file.kind for data_file in data_files}) > 1:
        name_by_kind = {data_file.kind: data_file.path.name for data_file in data_files}
        kinds_found = ", ".join(f"{kind}: {name}" for kind, name in name_by_kind.items())
        raise UserError(
            f"{path} mixes file types ({kinds_found}); name those of one type with a glob, such as "
            f"'{path.rstrip('/')}/*{data_files[0].path.suffix}'"
        )
    return data_files


def detect_text_file(path: Path) -> DataFile:
    """A text file by its suffix; of another suffix JSON Lines, or a JSON array where it begins with a bracket."""
    kind, compression = _kind_and_compression(path)
    if kind not in ("json", "jsonl", "csv", "tsv"):
        kind = "jsonl"
    data_file = DataFile(path, kind, compression)
    if kind == "jsonl":
        with _open_file(data_file) as byte_stream:
            if byte_stream.read(1000).lstrip().startswith(b"["):
                return DataFile(path, "json", compression)
    return data_file


def _kind_and_compression(path: Path | RemoteFile) -> tuple[str | None, str | None]:
    compression = COMPRESSION_BY_SUFFIX.get(path.suffix.lower())
    suffix = Path(path.name.removesuffix(path.suffix) if compression else path.name).suffix.lower()
    kind = KIND_BY_SUFFIX.get(suffix) or (suffix[1:] if suffix[1:] in load_row_readers() else None)
    return kind, compression


def _data_file(path: Path | RemoteFile) -> DataFile:
    kind, compression = _kind_and_compression(path)
    if kind is None:
        raise UserError(
            f"{path}: cannot read '{path.suffix}' files; give one of {', '.join(readable_suffixes())} (text ones "
            f"also with {' or '.join(COMPRESSION_BY_SUFFIX)} behind)"
        )
    if compression and kind in TYPED_KINDS:
        raise UserError(f"{path}: {kind} files are compressed inside; unpack it, for example with gunzip or zstd -d")
    return DataFile(path, kind, compression)


def read_text_rows(data_file: DataFile) -> Iterator[NumberedRow]:
    """Read the rows of a text file with their line numbers (0 where a row has none).

    Raises:
        UserError: the file, line or row that is broken, and what to do about it.
    """
    with _open_file(data_file) as byte_stream:
        if data_file.kind == "json":
            yield from _json_array_rows(data_file, byte_stream)
        elif data_file.kind == "jsonl":
            yield from _json_line_rows(data_file, byte_stream)
        elif row_reader := load_row_readers().get(data_file.kind):
            for row_number, row in enumerate(row_reader(byte_stream)):
                yield _check_row(data_file, row, f"row {row_number}"), 0
        else:
            yield from _delimited_rows(data_file, byte_stream)


@contextmanager
def _open_file(data_file: DataFile) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked and without a byte order mark."""
    with _explained_access(data_file), _open_unpacked(data_file) as raw_stream:
        yield raw_stream


def _explained_access(data_file: DataFile) -> AbstractContextManager[None]:
    return explained_access(str(data_file.path)) if isinstance(data_file.path, RemoteFile) else nullcontext()


@contextmanager
def _open_unpacked(data_file: DataFile) -> Iterator[BinaryIO]:
    try:
        packed_stream = data_file.path.open("rb")
        if data_file.compression == "zstd":
            raw_stream = cast(
                BinaryIO,
                io.BufferedReader(cast(Any, pa.CompressedInputStream(pa.PythonFile(packed_stream, mode="r"), "zstd"))),
            )
        elif data_file.compression:
            raw_stream = cast(BinaryIO, gzip.GzipFile(fileobj=packed_stream))
        else:
            raw_stream = packed_stream
        with packed_stream, raw_stream:
            first_bytes = cast(Any, raw_stream).peek(4)[:4]
            for byte_order_mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                if first_bytes.startswith(byte_order_mark):
                    raise UserError(
                        f"{data_file.path} is UTF-16 or UTF-32, not UTF-8. {_CONVERSION_HINT}UTF-16 -t UTF-8"
                    )
            if first_bytes.startswith(codecs.BOM_UTF8):
                raw_stream.read(len(codecs.BOM_UTF8))
            yield raw_stream
    except _DAMAGE_ERRORS as error:
        if isinstance(error, UserError):
            raise
        unpack_hint = (
            f"unpack it by hand ({data_file.compression}) to see whether it is whole"
            if data_file.compression
            else "mend it"
        )
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{data_file.path}: no such file; check the spelling, or give the whole path") from error
        if isinstance(error, IsADirectoryError):
            raise UserError(f"{data_file.path}: is a folder; name a file in it") from error
        raise UserError(
            f"{data_file.path} cannot be read: {one_line(error)}; check permissions and {unpack_hint}, "
            "or fetch it again"
        ) from error


_CONVERSION_HINT = "Convert it, for example with iconv -f "


def parse_json(decoded_text: str, row_location: str, error_remedy: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: it is not JSON, or Python cannot hold it; the message opens with `where` and ends with `remedy`.
    """
    try:
        return json.loads(decoded_text)
    except json.JSONDecodeError as error:
        error_location = (
            f"line {error.lineno}, column {error.colno}" if "\n" in decoded_text.strip() else f"column {error.colno}"
        )
        raise UserError(f"{row_location} is not valid JSON: {error.msg} at {error_location}. {error_remedy}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists within lists
        raise UserError(f"{row_location} cannot be read: {one_line(error)}. {error_remedy}") from error


def read_json(path: Path, error_remedy: str) -> Any:
    """The value of a JSON file the user named.

    Raises:
        UserError: the file is missing, a folder, unreadable, not UTF-8 or not JSON.
    """
    data_file = DataFile(path, "json", None)
    with _open_file(data_file) as byte_stream:
        return parse_json(_decode_utf8(data_file, byte_stream.read(), ""), str(path), error_remedy)


def _decode_utf8(data_file: DataFile, line_bytes: bytes, row_location: str) -> str:
    try:
        return line_bytes.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{data_file.path}{row_location} is not UTF-8: {one_line(error)}. {_CONVERSION_HINT}LATIN1 -t UTF-8"
        ) from error


def _check_row(data_file: DataFile, json_value: Any, row_location: str) -> dict[str, Any]:
    if not isinstance(json_value, dict):
        raise UserError(
            f"{data_file.path}, {row_location}: {json_value!r:.60} is no row; give objects with named fields"
        )
    return json_value


def _json_array_rows(data_file: DataFile, byte_stream: BinaryIO) -> Iterator[NumberedRow]:
    """Read the rows of a json array, or of a single object; such a file is read whole."""
    decoded_text = _decode_utf8(data_file, byte_stream.read(), "")
    try:
        json_value: Any = []
        if decoded_text.strip():
            json_value = parse_json(decoded_text, str(data_file.path), "Mend it or convert it to jsonl")
    except UserError:
        # Perhaps json lines under the other suffix.
        if not decoded_text.lstrip().startswith("{") or "\n" not in decoded_text.strip():
            raise
        yield from _json_line_rows(data_file, io.BytesIO(decoded_text.encode()))
        return
    json_rows = json_value if isinstance(json_value, list) else [json_value]
    for row_number, row_value in enumerate(json_rows):
        yield _check_row(data_file, row_value, f"row {row_number}"), 0


def _json_line_rows(data_file: DataFile, byte_stream: BinaryIO) -> Iterator[NumberedRow]:
    """Read the rows of json lines; blank lines count for nothing."""
    row_number = 0
    for line_number, line_bytes in enumerate(byte_stream, start=1):
        decoded_text = _decode_utf8(data_file, line_bytes, f", line {line_number},")
        if not decoded_text.strip():
            continue
        json_value = parse_json(
            decoded_text, f"{data_file.path}, line {line_number},", "Mend the line; jsonl wants one row a line"
        )
        yield _check_row(data_file, json_value, f"line {line_number}, row {row_number}"), line_number
        row_number += 1


def _delimited_rows(data_file: DataFile, byte_stream: BinaryIO) -> Iterator[NumberedRow]:
    """Read the rows of a csv or tsv file with a header; every cell is text."""
    csv.field_size_limit(LONGEST_CELL)
    decoded_text = io.TextIOWrapper(byte_stream, encoding="utf-8", newline="")
    cell_reader = csv.reader(decoded_text, delimiter="\t" if data_file.kind == "tsv" else ",", strict=True)
    try:
        header_cells = next(cell_reader, None)
        if header_cells is None:
            return
        if len(set(header_cells)) < len(header_cells) or not all(header_cells):
            raise UserError(
                f"{data_file.path}, line 1: the header {header_cells!r:.120} has an empty or a repeated "
                f"name; give every column "
                "a name of its own"
            )
        for row_cells in cell_reader:
            if not row_cells:
                continue
            if len(row_cells) != len(header_cells):
                raise UserError(
                    f"{data_file.path}, line {cell_reader.line_num}, has {len(row_cells)} cells and the "
                    f"header {len(header_cells)}; mend "
                    "the line, and put cells with a separator or a line end in double quotes"
                )
            yield dict(zip(header_cells, row_cells, strict=True)), cell_reader.line_num
    except csv.Error as error:
        raise UserError(
            f"{data_file.path}, line {cell_reader.line_num}, is not valid {data_file.kind}: "
            f"{one_line(error)}; mend its double quotes"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{data_file.path}, after line {cell_reader.line_num}, is not UTF-8: {one_line(error)}. "
            f"{_CONVERSION_HINT}LATIN1 -t UTF-8"
        ) from error
    finally:
        decoded_text.detach()


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
        if not _is_stream(data_file):
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
    with _explained_access(data_file):
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


def one_line(error: Exception) -> str:
    """The message of a library's error on one line, cut where it is long."""
    return " ".join(str(error).split())[:300]
