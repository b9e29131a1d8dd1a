"""From files to a memory-mapped table: rows go in chunks into an Arrow file, once per content."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset

from gradfiltering.data.file_formats import (
    JSON_LINES,
    TYPED,
    DataFile,
    Form,
    batches_of,
    find_files,
    form_of,
    records_of,
)
from gradfiltering.data.json_rows import LINE, RECORD, JsonRows, Kinds, check_types, note_kinds, to_json
from gradfiltering.errors import UserError
from gradfiltering.runs.cache import atomic_path, hash_key

FORMAT = 2  # of the cache; raised when what stands in it changes its meaning
WRITTEN_AT_ONCE = 2000  # rows
SCHEMA = pa.schema([(RECORD, pa.large_string()), (LINE, pa.int64())])


@dataclass(frozen=True)
class LoadedRows:
    """Rows as they came in.

    Attributes:
        rows: text formats as `JsonRows`, typed ones as a table.
        origin: the source in words.
        form: what the rows came in, and are given back in.
    """

    rows: Dataset | JsonRows
    origin: str
    form: Form = JSON_LINES

    def place(self, position: int) -> str:
        """Where a row stands, in words."""
        return self.rows.place(position) if isinstance(self.rows, JsonRows) else f"{self.origin}, row {position}"


def load(path: str, first: int | None = None) -> LoadedRows:
    """Reads a file, the files of a folder, or those a glob names; every value stays what the file says it is.

    The Arrow file lies in the cache of `datasets` (`HF_DATASETS_CACHE`) under a digest of what was read, so that a
    changed file is never read from an old one.

    Args:
        path: what to read.
        first: only so many rows are asked for; of text files no more are read (a json array is read whole), of typed
            ones more may come.

    Raises:
        UserError: nothing is there, it cannot be read as rows, or it holds none.
    """
    files = find_files(path)
    typed = files[0].kind in TYPED
    cut = None if typed else first
    # A digest of the bytes would need the whole file, one of the first rows needs no more than these.
    digests = [_digest(file) for file in files] if cut is None else [_rows_digest(_placed(files, [], cut))]
    key = {"format": FORMAT, "files": [[str(file.path), file.kind] for file in files], "first": cut, "digests": digests}
    folder = cached(key, lambda part: _write_typed(part, files) if typed else _write_files(part, files, cut))
    rows: Dataset | JsonRows = Dataset.from_file(str(folder / "rows.arrow")) if typed else open_rows(folder)
    if not len(rows):
        raise UserError(f"{path} is empty; give a file with at least one record")
    return LoadedRows(rows, path, form_of(files[0]))


def cached(key: Mapping[str, Any], write: Any) -> Path:
    """The folder of the cache for `key`; `write` fills it where it is not there yet."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "gradfiltering" / hash_key(key)
    if not (folder / "about.json").is_file():
        with atomic_path(folder, keep_existing=True) as part:
            part.mkdir()
            write(part)
    return folder


def open_rows(folder: Path) -> JsonRows:
    """The rows that `write_rows` wrote, memory-mapped."""
    about = json.loads((folder / "about.json").read_text("utf-8"))
    files = tuple((name, first) for name, first in about["files"])
    return JsonRows(Dataset.from_file(str(folder / "rows.arrow")), about["kinds"], files)


def write_rows(folder: Path, rows: Iterable[tuple[Mapping[str, Any], int]], files: list[tuple[str, int]]) -> None:
    """Writes rows and their lines in chunks, so that memory holds one chunk.

    Args:
        folder: an existing folder.
        rows: each with its line, 0 for none.
        files: name and first row of each file; may grow while the rows are read.
    """
    kinds: Kinds = {}
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        texts: list[str] = []
        lines: list[int] = []

        def flush() -> None:
            columns = [pa.array(texts, pa.large_string()), pa.array(lines, pa.int64())]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            texts.clear()
            lines.clear()

        for position, (row, line) in enumerate(rows):
            note_kinds(kinds, row, position)
            texts.append(to_json(row))
            lines.append(line)
            if len(texts) == WRITTEN_AT_ONCE:
                flush()
        flush()
    about = {"kinds": kinds, "files": files}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _write_files(folder: Path, files: list[DataFile], first: int | None) -> None:
    starts: list[tuple[str, int]] = []
    write_rows(folder, _placed(files, starts, first), starts)


def _placed(
    files: list[DataFile], starts: list[tuple[str, int]], first: int | None
) -> Iterator[tuple[Mapping[str, Any], int]]:
    """The first rows of all files, each with its line; where a file's rows start is added to `starts`."""
    count = 0
    for file in files:
        starts.append((str(file.path), count))
        for placed in records_of(file):
            yield placed
            count += 1
            if count == first:
                return


def _rows_digest(rows: Iterable[tuple[Mapping[str, Any], int]]) -> str:
    digest = hashlib.sha256()
    for row, line in rows:
        digest.update(f"{line}\t{to_json(row)}\n".encode())
    return digest.hexdigest()


def _write_typed(folder: Path, files: list[DataFile]) -> None:
    """Copies the batches of typed files, dictionary columns as the values they stand for."""
    opened = [(file, *batches_of(file)) for file in files]
    schema = _plain(opened[0][1])
    if len(set(schema.names)) < len(schema.names):
        raise UserError(f"{files[0].path} has a column name twice ({', '.join(schema.names)}); rename one of them")
    check_types(schema, str(files[0].path))
    try:
        datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, NotImplementedError, KeyError) as error:
        raise UserError(
            f"{files[0].path}: a column has a type that cannot be read: {error}; drop or cast it"
        ) from error
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for file, own, batches in opened:
            if _plain(own).names != schema.names:
                raise UserError(
                    f"{file.path} has the columns {', '.join(own.names)} and {files[0].path} has "
                    f"{', '.join(schema.names)}; give files of the same columns"
                )
            for batch in batches:
                try:
                    table = pa.Table.from_batches([batch]).replace_schema_metadata(None).cast(schema)
                except (pa.ArrowException, ValueError) as error:
                    raise UserError(
                        f"{file.path} differs in a column's type from {files[0].path}: {error}; cast it"
                    ) from error
                writer.write_table(table)
    (folder / "about.json").write_text("{}", encoding="utf-8")


def _plain(schema: pa.Schema) -> pa.Schema:
    fields = []
    for one in schema:
        kind = one.type.value_type if pa.types.is_dictionary(one.type) else one.type
        fields.append(pa.field(one.name, pa.string() if pa.types.is_string_view(kind) else kind))
    return pa.schema(fields)


def _digest(file: DataFile) -> str:
    try:
        with file.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file.path} cannot be read: {error.strerror or error}; check its permissions") from error
