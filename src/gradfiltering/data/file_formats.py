"""File formats: which file is of which, and how each gives its rows, a few at a time."""

import codecs
import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather

from gradfiltering.errors import UserError

SUFFIXES = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
TYPED = ("parquet", "arrow")
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own bound is shorter than some responses
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, OSError)

Placed = tuple[dict[str, Any], int]


@dataclass(frozen=True)
class DataFile:
    """One file to read.

    Attributes:
        path: where it is.
        kind: json, jsonl, csv, tsv, parquet or arrow.
        compression: gzip, zstd or None.
    """

    path: Path
    kind: str
    compression: str | None


@dataclass(frozen=True)
class Form:
    """What files look like from outside, so that chosen rows can be given back in the same.

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


JSON_LINES = Form("jsonl", ".jsonl")


def form_of(file: DataFile) -> Form:
    """The form of a file, from its name and, where it is typed, its header."""
    if file.kind in TYPED:
        return Form(file.kind, file.path.suffix, None, batches_of(file)[0], file.kind == "arrow" and _is_stream(file))
    ends = {compression: suffix for suffix, compression in COMPRESSIONS.items()}
    return Form(file.kind, f".{file.kind}{ends.get(file.compression or '', '')}", file.compression)


def _is_stream(file: DataFile) -> bool:
    with file.path.open("rb") as start:
        return not start.read(6).startswith((b"ARROW1", b"FEA1"))


def find_files(path: str) -> list[DataFile]:
    """The files that a path, folder or glob names, in sorted order and all of one type.

    A path that exists is taken literally, whatever characters it holds. In a folder, hidden files and those of other
    types (a README) are passed over.

    Raises:
        UserError: nothing is there, nothing readable is there, or the types differ.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [_data_file(place)]
    if place.is_dir():
        inside = sorted(entry for entry in place.iterdir() if entry.is_file() and not entry.name.startswith((".", "_")))
        files = [_data_file(entry) for entry in inside if _kind(entry)[0]]
        if not files:
            raise UserError(f"{path} holds no file of a known type; data.path= reads {', '.join(SUFFIXES)}")
    else:
        found = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207  (the pattern may be absolute)
        files = [_data_file(Path(name)) for name in found if Path(name).is_file()]
    if not files:
        raise UserError(
            f"no such file: {path} (looked in {place.absolute().parent}); set data.path= to a file, a folder or a glob"
        )
    if len({file.kind for file in files}) > 1:
        kinds = {file.kind: file.path.name for file in files}
        raise UserError(
            f"{path} mixes file types ({', '.join(f'{kind}: {name}' for kind, name in kinds.items())}); name those of "
            f"one type with a glob, such as data.path='{place}/*{files[0].path.suffix}'"
        )
    return files


def _kind(path: Path) -> tuple[str | None, str | None]:
    compression = COMPRESSIONS.get(path.suffix.lower())
    kind = SUFFIXES.get((path.with_suffix("") if compression else path).suffix.lower())
    return kind, compression


def _data_file(path: Path) -> DataFile:
    kind, compression = _kind(path)
    if kind is None:
        raise UserError(
            f"{path}: cannot read '{path.suffix}' files; data.path= reads {', '.join(SUFFIXES)} (text ones also "
            f"with {' or '.join(COMPRESSIONS)} behind)"
        )
    if compression and kind in TYPED:
        raise UserError(f"{path}: {kind} files are compressed inside; unpack it, for example with gunzip or zstd -d")
    return DataFile(path, kind, compression)


def records_of(file: DataFile) -> Iterator[Placed]:
    """The records of a text file with their line (0 where a record has none).

    Raises:
        UserError: the file, line or row that is broken, and what to do about it.
    """
    with _opened(file) as stream:
        if file.kind == "json":
            yield from _whole(file, stream)
        elif file.kind == "jsonl":
            yield from _lines(file, stream)
        else:
            yield from _cells(file, stream)


@contextmanager
def _opened(file: DataFile) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked and without a byte order mark."""
    try:
        if file.compression == "zstd":
            raw = cast(BinaryIO, io.BufferedReader(cast(Any, pa.input_stream(str(file.path), compression="zstd"))))
        else:
            raw = cast(BinaryIO, gzip.open(file.path) if file.compression else file.path.open("rb"))  # noqa: SIM115
        with raw:
            start = cast(Any, raw).peek(4)[:4]
            for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                if start.startswith(mark):
                    raise UserError(f"{file.path} is UTF-16 or UTF-32, not UTF-8. {_ICONV}UTF-16 -t UTF-8")
            if start.startswith(codecs.BOM_UTF8):
                raw.read(len(codecs.BOM_UTF8))
            yield raw
    except _DAMAGED as error:
        if isinstance(error, UserError):
            raise
        how = f"unpack it by hand ({file.compression}) to see whether it is whole" if file.compression else "mend it"
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{file.path}: no such file; check the spelling, or give the whole path") from error
        if isinstance(error, IsADirectoryError):
            raise UserError(f"{file.path}: is a folder; name a file in it") from error
        raise UserError(
            f"{file.path} cannot be read: {error}; check permissions and {how}, or fetch it again"
        ) from error


_ICONV = "Convert it, for example with iconv -f "


def parse_json(text: str, where: str, remedy: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: it is not JSON, or Python cannot hold it; the message opens with `where` and ends with `remedy`.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise UserError(f"{where} is not valid JSON: {error.msg} at {place}. {remedy}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists within lists
        raise UserError(f"{where} cannot be read: {error}. {remedy}") from error


def read_json(path: Path, remedy: str) -> Any:
    """The value of a JSON file the user named.

    Raises:
        UserError: the file is missing, a folder, unreadable, not UTF-8 or not JSON.
    """
    file = DataFile(path, "json", None)
    with _opened(file) as stream:
        return parse_json(_text(file, stream.read(), ""), str(path), remedy)


def _text(file: DataFile, data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.path}{where} is not UTF-8: {error}. {_ICONV}LATIN1 -t UTF-8") from error


def _record(file: DataFile, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{file.path}, {where}: {value!r:.60} is no record; give objects with named fields")
    return value


def _whole(file: DataFile, stream: BinaryIO) -> Iterator[Placed]:
    """The records of a json array, or of a single object; such a file is read whole."""
    text = _text(file, stream.read(), "")
    try:
        found = parse_json(text, str(file.path), "Mend it or convert it to jsonl") if text.strip() else []
    except UserError:
        # Perhaps json lines under the other suffix.
        if not text.lstrip().startswith("{") or "\n" not in text.strip():
            raise
        yield from _lines(file, io.BytesIO(text.encode()))
        return
    for position, row in enumerate(found if isinstance(found, list) else [found]):
        yield _record(file, row, f"row {position}"), 0


def _lines(file: DataFile, stream: BinaryIO) -> Iterator[Placed]:
    """The records of json lines; blank lines count for nothing."""
    row = 0
    for number, data in enumerate(stream, start=1):
        text = _text(file, data, f", line {number},")
        if not text.strip():
            continue
        value = parse_json(text, f"{file.path}, line {number},", "Mend the line; jsonl wants one record a line")
        yield _record(file, value, f"line {number}, row {row}"), number
        row += 1


def _cells(file: DataFile, stream: BinaryIO) -> Iterator[Placed]:
    """The records of a csv or tsv file with a header; every cell is text."""
    csv.field_size_limit(LONGEST_CELL)
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    reader = csv.reader(text, delimiter="\t" if file.kind == "tsv" else ",", strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header) or not all(header):
            raise UserError(
                f"{file.path}, line 1: the header {header!r:.120} has an empty or a repeated name; give every column "
                "a name of its own"
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{file.path}, line {reader.line_num}, has {len(cells)} cells and the header {len(header)}; mend "
                    "the line, and put cells with a separator or a line end in double quotes"
                )
            yield dict(zip(header, cells, strict=True)), reader.line_num
    except csv.Error as error:
        raise UserError(
            f"{file.path}, line {reader.line_num}, is not valid {file.kind}: {error}; mend its double quotes"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file.path}, after line {reader.line_num}, is not UTF-8: {error}. {_ICONV}LATIN1 -t UTF-8"
        ) from error
    finally:
        text.detach()


def batches_of(file: DataFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema of a parquet, arrow or feather file and its batches, read as they are asked for.

    Raises:
        UserError: the file is not of its type.
    """
    try:
        if file.kind == "parquet":
            parquet = pq.ParquetFile(file.path, memory_map=True)
            return parquet.schema_arrow, _guarded(file, parquet.iter_batches())
        source = pa.memory_map(str(file.path))
        if not _is_stream(file):
            if source.read(4) == b"FEA1":
                table = feather.read_table(file.path)
                return table.schema, iter(table.to_batches())
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            return reader.schema, _guarded(file, batches)
        stream = pa.ipc.open_stream(source)
        return stream.schema, _guarded(file, iter(stream))
    except (pa.ArrowException, OSError) as error:
        raise _not_typed(file, error) from error


def _guarded(file: DataFile, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except (pa.ArrowException, OSError) as error:
        raise _not_typed(file, error) from error


def _not_typed(file: DataFile, error: Exception) -> UserError:
    return UserError(f"{file.path} is no readable {file.kind} file: {error}; write it again, or fetch it again")
