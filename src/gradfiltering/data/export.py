"""Chosen rows written as they came: in their own fields and file type, and described for LLaMA-Factory."""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.file_formats import JSON_LINES, Form
from gradfiltering.data.json_rows import JsonRows, to_json
from gradfiltering.data.schemas import ROLES, Instruction, Messages
from gradfiltering.runs.cache import atomic_path, write_json

READ_AT_ONCE = 1000  # rows
# The names LLaMA-Factory has for the roles of a conversation.
TAGS = {"user": "user_tag", "assistant": "assistant_tag", "system": "system_tag", "tool": "observation_tag"}


def write_rows(run_dir: Path, records: InstructionDataset, chosen: Sequence[int]) -> None:
    """Writes `subset.jsonl`, the same rows in the form of file they came in, and `dataset_info.json`."""
    rows, form = records.rows.select(chosen), records.form
    _write_text(run_dir / "subset.jsonl", rows, JSON_LINES)
    if isinstance(rows, Dataset) and form.schema is not None:
        # subset.parquet holds the ids and scores of any run.
        name = "subset_rows.parquet" if form.kind == "parquet" else f"subset{form.suffix}"
        _write_table(run_dir / name, rows, form)
    elif form != JSON_LINES:
        _write_text(run_dir / f"subset{form.suffix}", rows, form)
    write_json(run_dir / "dataset_info.json", {"subset": llama_factory_entry(records, rows)})


def as_json(row: Any) -> str:
    """A row as one line of JSON, readable but for what UTF-8 cannot hold (half a surrogate pair)."""
    text = to_json(row, ascii_only=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return to_json(row)
    return text


def _write_text(path: Path, rows: Dataset | JsonRows, form: Form) -> None:
    with atomic_path(path) as part, _text_file(part, form.compression) as file:
        if form.kind in ("csv", "tsv"):
            separator = "\t" if form.kind == "tsv" else ","
            writer = csv.DictWriter(file, rows.column_names, delimiter=separator, lineterminator="\n")
            writer.writeheader()
            writer.writerows(_each(rows))
        elif form.kind == "json":
            for number, row in enumerate(_each(rows)):
                file.write((",\n" if number else "[\n") + as_json(row))
            file.write("\n]\n")
        else:
            for row in _each(rows):
                file.write(as_json(row) + "\n")


@contextmanager
def _text_file(path: Path, compression: str | None) -> Iterator[TextIO]:
    with path.open("wb") as raw:
        packed: Any = raw
        if compression == "gzip":
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)  # the same rows give the same bytes
        elif compression == "zstd":
            packed = pa.CompressedOutputStream(raw, "zstd")
        with packed, io.TextIOWrapper(io.BufferedWriter(packed), encoding="utf-8", newline="") as text:
            yield text


def _write_table(path: Path, rows: Dataset, form: Form) -> None:
    """A typed file in the schema that the input has."""
    schema = form.schema
    assert schema is not None, "a typed form has a schema"
    with atomic_path(path) as part, pa.OSFile(str(part), "wb") as sink:
        if form.kind == "parquet":
            writer: Any = pq.ParquetWriter(sink, schema)
        else:
            writer = pa.ipc.new_stream(sink, schema) if form.stream else pa.ipc.new_file(sink, schema)
        with writer:
            for table in rows.with_format("arrow").iter(READ_AT_ONCE):
                writer.write_table(table.select(schema.names).cast(schema))


def llama_factory_entry(records: InstructionDataset, rows: Dataset | JsonRows) -> dict[str, Any]:
    """What LLaMA-Factory's `dataset_info.json` says about `subset.jsonl`: where it finds prompt and response."""
    schema = records.schema
    entry: dict[str, Any] = {"file_name": "subset.jsonl"}
    if isinstance(schema, Messages):
        entry |= {"formatting": "sharegpt", "columns": {"messages": schema.column}, "tags": _tags(schema, rows)}
        if any("system" in row for row in _each(rows)):
            entry["columns"]["system"] = "system"
    elif isinstance(schema, Instruction):
        columns = {"prompt": schema.instruction, "response": schema.output}
        # A field that no chosen row has is one that LLaMA-Factory would not find.
        if schema.input is not None and any(schema.input in row for row in _each(rows)):
            columns["query"] = schema.input
        entry |= {"formatting": "alpaca", "columns": columns}
    else:
        entry["columns"] = {"prompt": schema.fields[0]}
    return entry


def _tags(schema: Messages, rows: Dataset | JsonRows) -> dict[str, str]:
    """The names that the messages have for their parts and roles, as the first rows show them."""
    tags: dict[str, str] = {}
    for row, _ in zip(_each(rows), range(READ_AT_ONCE), strict=False):
        for message in row.get(schema.column) or ():
            role = "role" if message.get("role") else "from"
            content = "content" if message.get("content") is not None else "value"
            tags.setdefault("role_tag", role)
            tags.setdefault("content_tag", content)
            tags.setdefault(TAGS[ROLES[message[role]]], message[role])
    return tags


def _each(rows: Dataset | JsonRows) -> Iterator[dict[str, Any]]:
    yield from rows
