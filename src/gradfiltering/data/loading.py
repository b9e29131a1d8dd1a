"""From files to a memory-mapped table: rows go in chunks into an Arrow file, once per content."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from filelock import FileLock

from gradfiltering.data.data_files import TYPED_KINDS, DataFile, find_data_files
from gradfiltering.data.file_formats import JSON_LINES, FileFormat, detect_file_format
from gradfiltering.data.json_rows import (
    LINE_COLUMN,
    RECORD_COLUMN,
    JsonRows,
    ValueTypes,
    note_value_types,
    to_json,
)
from gradfiltering.data.remote_files import RemoteFile, explained_access, is_address, public_address
from gradfiltering.data.text_files import read_text_rows
from gradfiltering.data.typed_files import read_typed_batches
from gradfiltering.errors import UserError
from gradfiltering.runs.cache_record import (
    RECORD_FILE,
    checksum_once,
    damage_error,
    find_damaged_files,
    read_record,
    write_record,
)
from gradfiltering.runs.files import atomic_path, discard_folder, explain_failed_writes, hash_key
from gradfiltering.runs.logs import announce
from gradfiltering.runs.plain_text import one_line
from gradfiltering.runs.progress import track

CACHE_FORMAT = 3  # of the cache; raised when what stands in it changes its meaning
WRITTEN_AT_ONCE = 2000  # rows
ROW_SCHEMA = pa.schema([(RECORD_COLUMN, pa.large_string()), (LINE_COLUMN, pa.int64())])


@dataclass(frozen=True)
class LoadedRows:
    """Rows as they came in.

    Attributes:
        rows: text formats as `JsonRows`, typed ones as a table.
        origin: the source in words.
        form: what the rows came in, and are given back in.
        left_out: columns that could not be read, with their types.
    """

    rows: Dataset | JsonRows
    origin: str
    form: FileFormat = JSON_LINES
    left_out: Mapping[str, str] = field(default_factory=dict)

    def describe_row(self, row_position: int) -> str:
        """Name the place of a row, in words."""
        return (
            self.rows.describe_row(row_position)
            if isinstance(self.rows, JsonRows)
            else f"{self.origin}, row {row_position}"
        )


def load(path: str, first_rows: int | None = None, split: str | None = None) -> LoadedRows:
    """Read a file, the files of a folder, or those a glob or an address names; every value stays as it is there.

    The Arrow file lies in the cache of `datasets` (`HF_DATASETS_CACHE`) under a digest of what was read, so that a
    changed file is never read from an old one. Files of another machine go into it as they come, without a copy of
    their own.

    Args:
        path: what to read.
        first_rows: only so many rows are asked for; of text files no more are read (a json array is read whole), of
            typed ones more may come.
        split: of a saved dataset or a copy of one of the hub; None takes the only one.

    Raises:
        UserError: nothing is there, it cannot be read as rows, or it holds none.
    """
    data_files = find_data_files(path, split)
    origin = public_address(path) if is_address(path) else path
    is_typed = data_files[0].kind in TYPED_KINDS
    rows_to_read = None if is_typed else first_rows
    # A digest of the bytes would need the whole file, one of the first rows needs no more than these.
    content_digests = (
        [_file_digest(data_file) for data_file in data_files]
        if rows_to_read is None
        else [_rows_digest(_numbered_rows(data_files, [], rows_to_read))]
    )
    cache_key = {
        "format": CACHE_FORMAT,
        "files": [[str(data_file.path), data_file.kind] for data_file in data_files],
        "first": rows_to_read,
        "digests": content_digests,
    }
    cache_folder = cached(
        cache_key,
        lambda partial_folder: (
            _write_typed(partial_folder, data_files)
            if is_typed
            else _write_files(partial_folder, data_files, rows_to_read)
        ),
    )
    rows: Dataset | JsonRows = (
        Dataset.from_file(str(cache_folder / "rows.arrow")) if is_typed else open_rows(cache_folder)
    )
    if not len(rows):
        raise UserError(f"{origin} is empty; give a file with at least one row")
    file_format = detect_file_format(data_files[0])
    left_out = json.loads((cache_folder / "about.json").read_text("utf-8")).get("left_out", {}) if is_typed else {}
    if file_format.schema is not None and isinstance(rows, Dataset):
        file_format = replace(file_format, schema=_common_schema(file_format.schema, rows.features.arrow_schema))
    return LoadedRows(rows, origin, file_format, left_out)


def _common_schema(first_schema: pa.Schema, row_schema: pa.Schema) -> pa.Schema:
    """The first file's schema for files of all rows: without columns left out, and in the types that hold all rows."""
    decoded_schema = _decoded_schema(first_schema)
    columns = [
        column
        if decoded_schema.field(column.name).type == row_schema.field(column.name).type
        else row_schema.field(column.name)
        for column in first_schema
        if column.name in row_schema.names
    ]
    return pa.schema(columns, metadata=first_schema.metadata)


def cached(cache_key: Mapping[str, Any], write_rows_to: Any) -> Path:
    """Return the folder of read rows for a key, filled by one of the processes that want it.

    It lies in the cache of `datasets`, which may be each machine's own, and not in the cache of results.
    """
    cache_folder = Path(datasets.config.HF_DATASETS_CACHE) / "gradfiltering" / hash_key(cache_key)
    if not _is_whole(cache_folder):
        with explain_failed_writes(cache_folder):
            cache_folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_folder.with_suffix(".lock")):
            if not _is_whole(cache_folder):
                discard_folder(cache_folder)
                with atomic_path(cache_folder, keep_existing=True) as partial_folder:
                    partial_folder.mkdir()
                    write_rows_to(partial_folder)
                    write_record(partial_folder, "rows", cache_key, 0.0)
    return cache_folder


def _is_whole(cache_folder: Path) -> bool:
    """Return True where the folder holds what was written there; damage is announced."""
    try:
        record = read_record(cache_folder)
        damaged_files = [] if record is None else find_damaged_files(cache_folder, record["files"], checksum_once)
    except UserError:
        damaged_files = [RECORD_FILE]
    if damaged_files and (cache_folder / RECORD_FILE).is_file():
        announce(f"{damage_error(cache_folder / damaged_files[0])}; the rows are read again")
    return not damaged_files and (cache_folder / RECORD_FILE).is_file()


def open_rows(cache_folder: Path) -> JsonRows:
    """The rows that `write_rows` wrote, memory-mapped."""
    cached_description = json.loads((cache_folder / "about.json").read_text("utf-8"))
    data_files = tuple((file_name, first_rows) for file_name, first_rows in cached_description["files"])
    return JsonRows(Dataset.from_file(str(cache_folder / "rows.arrow")), cached_description["kinds"], data_files)


def write_rows(
    cache_folder: Path, rows: Iterable[tuple[Mapping[str, Any], int]], data_files: list[tuple[str, int]]
) -> None:
    """Write rows and their lines in chunks, so that memory holds one chunk.

    Args:
        cache_folder: an existing folder.
        rows: each with its line, 0 for none.
        data_files: name and first row of each file; may grow while the rows are read.
    """
    value_types: ValueTypes = {}
    with (
        pa.OSFile(str(cache_folder / "rows.arrow"), "wb") as file_sink,
        pa.ipc.new_stream(file_sink, ROW_SCHEMA) as batch_writer,
    ):
        row_texts: list[str] = []
        line_numbers: list[int] = []

        def flush() -> None:
            column_arrays = [pa.array(row_texts, pa.large_string()), pa.array(line_numbers, pa.int64())]
            batch_writer.write_batch(pa.record_batch(column_arrays, schema=ROW_SCHEMA))
            row_texts.clear()
            line_numbers.clear()

        for row_position, (row_values, line_number) in enumerate(track(rows, "reading rows")):
            note_value_types(value_types, row_values, row_position)
            row_texts.append(to_json(row_values))
            line_numbers.append(line_number)
            if len(row_texts) == WRITTEN_AT_ONCE:
                flush()
        flush()
    cached_description = {"kinds": value_types, "files": data_files}
    (cache_folder / "about.json").write_text(json.dumps(cached_description), encoding="utf-8")


def _write_files(cache_folder: Path, data_files: list[DataFile], first_rows: int | None) -> None:
    file_starts: list[tuple[str, int]] = []
    write_rows(cache_folder, _numbered_rows(data_files, file_starts, first_rows), file_starts)


def _numbered_rows(
    data_files: list[DataFile], file_starts: list[tuple[str, int]], first_rows: int | None
) -> Iterator[tuple[Mapping[str, Any], int]]:
    """The first rows of all files, each with its line; where a file's rows start is added to `file_starts`."""
    row_count = 0
    for data_file in data_files:
        file_starts.append((str(data_file.path), row_count))
        for numbered_row in read_text_rows(data_file):
            yield numbered_row
            row_count += 1
            if row_count == first_rows:
                return


def _rows_digest(rows: Iterable[tuple[Mapping[str, Any], int]]) -> str:
    row_digest = hashlib.sha256()
    for row_values, line_number in rows:
        row_digest.update(f"{line_number}\t{to_json(row_values)}\n".encode())
    return row_digest.hexdigest()


def _write_typed(cache_folder: Path, data_files: list[DataFile]) -> None:
    """Copy the batches of typed files, dictionary columns as the values they stand for.

    Files may have their columns in another order, and may have nothing but nulls in one. A column of a type that no
    `Dataset` can hold is left out.
    """
    opened_files = [(data_file, *read_typed_batches(data_file)) for data_file in data_files]
    first_file, whole_schema = data_files[0], _decoded_schema(opened_files[0][1])
    for data_file, file_schema, _ in opened_files:
        column_names = file_schema.names
        if len(set(column_names)) < len(column_names):
            raise UserError(f"{data_file.path} has a column name twice ({', '.join(column_names)}); rename one of them")
        if set(column_names) != set(whole_schema.names):
            raise UserError(
                f"{data_file.path} has the columns {', '.join(column_names)} and {first_file.path} has "
                f"{', '.join(whole_schema.names)}; give files of the same columns"
            )
        try:
            whole_schema = pa.unify_schemas([whole_schema, _decoded_schema(file_schema)], promote_options="permissive")
        except (pa.ArrowException, ValueError) as error:
            raise UserError(
                f"{data_file.path} differs in a column's type from {first_file.path}: {one_line(error)}; cast it"
            ) from error
    left_out = {column.name: str(column.type) for column in whole_schema if not _is_readable(column)}
    arrow_schema = pa.schema([column for column in whole_schema if column.name not in left_out])
    with (
        pa.OSFile(str(cache_folder / "rows.arrow"), "wb") as file_sink,
        pa.ipc.new_stream(file_sink, arrow_schema) as batch_writer,
    ):
        for data_file, _, record_batches in opened_files:
            row_count = 0
            for record_batch in record_batches:
                whole_table = pa.Table.from_batches([record_batch]).replace_schema_metadata(None)
                batch_table = whole_table.select(arrow_schema.names)
                _check_cells(batch_table, data_file, row_count)
                try:
                    batch_table = batch_table.cast(arrow_schema)
                except (pa.ArrowException, ValueError) as error:
                    raise UserError(
                        f"{data_file.path} differs in a column's type from {first_file.path}: {one_line(error)}; "
                        "cast it"
                    ) from error
                batch_writer.write_table(batch_table)
                row_count += len(record_batch)
    (cache_folder / "about.json").write_text(json.dumps({"left_out": left_out}), encoding="utf-8")


def _is_readable(column: pa.Field) -> bool:
    """Return True for a column of a type that a `Dataset` can hold."""
    try:
        datasets.Features.from_arrow_schema(pa.schema([column]))
    except (ValueError, TypeError, NotImplementedError, KeyError):
        return False
    return True


def _check_cells(table: pa.Table, data_file: DataFile, first_row: int) -> None:
    """Refuse cells that are not what their column's type says, such as bytes that are no UTF-8.

    Raises:
        UserError: names file, column and the first such row.
    """
    for column_name in table.column_names:
        column = table[column_name]
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            row = next((row for row in range(len(column)) if not _is_valid(column.slice(row, 1))), 0)
            raise UserError(
                f"{data_file.path}, row {first_row + row}: column '{column_name}' holds no valid {column.type}: "
                f"{one_line(error)}; write it again as UTF-8"
            ) from error
        try:
            if pa.types.is_temporal(column.type) and not pa.types.is_duration(column.type):
                pc.min_max(column).as_py()
        except (ValueError, OverflowError, pa.ArrowException) as error:
            raise UserError(
                f"{data_file.path}: column '{column_name}' holds times that have no date: {one_line(error)}; "
                "drop the column or cast it to text"
            ) from error


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowException:
        return False
    return True


def _decoded_schema(arrow_schema: pa.Schema) -> pa.Schema:
    plain_fields = []
    for schema_field in arrow_schema:
        field_type = schema_field.type.value_type if pa.types.is_dictionary(schema_field.type) else schema_field.type
        plain_fields.append(
            pa.field(schema_field.name, pa.string() if pa.types.is_string_view(field_type) else field_type)
        )
    return pa.schema(plain_fields)


def _file_digest(data_file: DataFile) -> str:
    """Digest of a file's bytes; of a file elsewhere, what its store says of them, where that tells every change."""
    if isinstance(data_file.path, RemoteFile):
        content_version = data_file.path.content_version()
        if content_version is not None:
            return content_version
        with explained_access(str(data_file.path)), data_file.path.open("rb") as byte_stream:
            return hashlib.file_digest(byte_stream, "sha256").hexdigest()
    try:
        with data_file.path.open("rb") as byte_stream:
            return hashlib.file_digest(byte_stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{data_file.path} cannot be read: {error.strerror or error}; check its permissions") from error
