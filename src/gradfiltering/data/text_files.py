"""Text files (JSON, JSON Lines, CSV, TSV, and those of other packages): their rows, one after the other."""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from gradfiltering.data.data_files import DataFile, explained_file_access, load_row_readers, read_suffixes
from gradfiltering.errors import UserError
from gradfiltering.runs.plain_text import one_line

# Byte order mark -> encoding; a mark of UTF-32 may begin with one of UTF-16.
WIDE_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own bound is shorter than some responses
_DAMAGE_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error, OSError)

NumberedRow = tuple[dict[str, Any], int]


def detect_text_file(path: Path) -> DataFile:
    """A text file by its suffix; of another suffix JSON Lines, or a JSON array where it begins with a bracket."""
    kind, compression = read_suffixes(path)
    if kind not in ("json", "jsonl", "csv", "tsv"):
        kind = "jsonl"
    data_file = DataFile(path, kind, compression)
    if kind == "jsonl":
        with _open_file(data_file) as byte_stream:
            if byte_stream.read(1000).lstrip().startswith(b"["):
                return DataFile(path, "json", compression)
    return data_file


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
    with explained_file_access(data_file), _open_unpacked(data_file) as raw_stream:
        yield raw_stream


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
            for byte_order_mark, encoding in WIDE_ENCODINGS.items():
                if first_bytes.startswith(byte_order_mark):
                    raise UserError(f"{data_file.path} is {encoding}, not UTF-8. {_CONVERSION_HINT}{encoding} -t UTF-8")
            if first_bytes.startswith(codecs.BOM_UTF8):
                raw_stream.read(len(codecs.BOM_UTF8))
            yield raw_stream
    except _DAMAGE_ERRORS as error:
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
        UserError: it is not JSON, or Python cannot hold it; the message opens with `row_location` and ends with
            `error_remedy`.
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
