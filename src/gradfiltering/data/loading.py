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

from gradfiltering.data.formats import TYPED, DataFile, batches_of, find_files, records_of
from gradfiltering.data.rows import LINE, RECORD, JsonRows, Kinds, note_kinds
from gradfiltering.errors import UserError
from gradfiltering.store import atomic_path, fingerprint

FORMAT = 1  # of the cache; raised when what stands in it changes its meaning
WRITTEN_AT_ONCE = 2000  # rows
SCHEMA = pa.schema([(RECORD, pa.large_string()), (LINE, pa.int64())])


@dataclass(frozen=True)
class Loaded:
    """Rows as they came in.

    Attributes:
        rows: text formats as `JsonRows`, typed ones as a table.
        kind: json, jsonl, csv, tsv, parquet or arrow.
        origin: the source in words.
    """

    rows: Dataset | JsonRows
    kind: str
    origin: str

    def place(self, position: int) -> str:
        """Where a row stands, in words."""
        return self.rows.place(position) if isinstance(self.rows, JsonRows) else f"{self.origin}, row {position}"


def load(path: str) -> Loaded:
    """Reads a file, the files of a folder, or those a glob names; every value stays what the file says it is.

    The Arrow file lies in the cache of `datasets` (`HF_DATASETS_CACHE`) under a digest of the files' bytes, so that a
    changed file is never read from an old one.

    Raises:
        UserError: nothing is there, it cannot be read as rows, or it holds none.
    """
    files = find_files(path)
    key = {"format": FORMAT, "files": [[str(file.path), file.kind, _digest(file)] for file in files]}
    typed = files[0].kind in TYPED
    folder = cached(key, lambda part: _write_typed(part, files) if typed else _write_files(part, files))
    rows: Dataset | JsonRows = Dataset.from_file(str(folder / "rows.arrow")) if typed else open_rows(folder)
    if not len(rows):
        raise UserError(f"{path} is empty; give a file with at least one record")
    return Loaded(rows, files[0].kind, path)


def cached(key: Mapping[str, Any], write: Any) -> Path:
    """The folder of the cache for `key`; `write` fills it where it is not there yet."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "gradfiltering" / fingerprint(key)
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
            texts.append(json.dumps(row))
            lines.append(line)
            if len(texts) == WRITTEN_AT_ONCE:
                flush()
        flush()
    about = {"kinds": kinds, "files": files}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _write_files(folder: Path, files: list[DataFile]) -> None:
    starts: list[tuple[str, int]] = []

    def rows() -> Iterator[tuple[Mapping[str, Any], int]]:
        count = 0
        for file in files:
            starts.append((str(file.path), count))
            for placed in records_of(file):
                yield placed
                count += 1

    write_rows(folder, rows(), starts)


def _write_typed(folder: Path, files: list[DataFile]) -> None:
    """Copies the batches of typed files, dictionary columns as the values they stand for."""
    opened = [(file, *batches_of(file)) for file in files]
    schema = _plain(opened[0][1])
    if len(set(schema.names)) < len(schema.names):
        raise UserError(f"{files[0].path} has a column name twice ({', '.join(schema.names)}); rename one of them")
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
