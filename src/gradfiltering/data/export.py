"""Chosen rows written as they came: in their own fields and file type, and described for LLaMA-Factory."""

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any

from datasets import Dataset

from gradfiltering.data.records import Records
from gradfiltering.data.rows import JsonRows
from gradfiltering.data.schemas import ROLES, Instruction, Messages
from gradfiltering.errors import UserError
from gradfiltering.store import atomic_path, write_json

READ_AT_ONCE = 1000  # rows
# The names LLaMA-Factory has for the roles of a conversation.
TAGS = {"user": "user_tag", "assistant": "assistant_tag", "system": "system_tag", "tool": "observation_tag"}


def write_rows(run_dir: Path, records: Records, chosen: Sequence[int]) -> None:
    """Writes `subset.jsonl`, the same rows in the type of file they came in, and `dataset_info.json`."""
    rows = records.rows.select(chosen)
    with atomic_path(run_dir / "subset.jsonl") as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for row in _each(rows):
            file.write(as_json(row) + "\n")
    if records.file_kind == "json":
        with atomic_path(run_dir / "subset.json") as part, part.open("w", encoding="utf-8", newline="\n") as file:
            for number, row in enumerate(_each(rows)):
                file.write((",\n" if number else "[\n") + as_json(row))
            file.write("\n]\n")
    elif records.file_kind in ("csv", "tsv"):
        _write_cells(run_dir / f"subset.{records.file_kind}", rows, records.file_kind)
    elif isinstance(rows, Dataset) and records.file_kind in ("parquet", "arrow"):
        with atomic_path(run_dir / "subset_rows.parquet") as part:
            rows.to_parquet(str(part))
    write_json(run_dir / "dataset_info.json", {"subset": llama_factory_entry(records, rows)})


def as_json(row: Any) -> str:
    """A row as one line of JSON, readable but for what UTF-8 cannot hold (half a surrogate pair)."""
    text = json.dumps(row, ensure_ascii=False, default=_as_text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row, default=_as_text)
    return text


def llama_factory_entry(records: Records, rows: Dataset | JsonRows) -> dict[str, Any]:
    """What LLaMA-Factory's `dataset_info.json` says about `subset.jsonl`: where it finds prompt and response."""
    schema = records.schema
    entry: dict[str, Any] = {"file_name": "subset.jsonl"}
    if isinstance(schema, Messages):
        entry |= {"formatting": "sharegpt", "columns": {"messages": schema.column}, "tags": _tags(schema, rows)}
        if "system" in rows.column_names:
            entry["columns"]["system"] = "system"
    elif isinstance(schema, Instruction):
        columns = {"prompt": schema.instruction, "response": schema.output}
        if schema.input is not None and schema.input in rows.column_names:
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


def _write_cells(path: Path, rows: Dataset | JsonRows, kind: str) -> None:
    with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows.column_names, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_each(rows))


def _each(rows: Dataset | JsonRows) -> Iterator[dict[str, Any]]:
    yield from rows


def _as_text(value: Any) -> str:
    """Dates and times, which a typed table may hold and JSON has no type for, in ISO 8601."""
    if isinstance(value, date | time):
        return value.isoformat()
    raise UserError(f"a field holds {type(value).__name__}, which JSON cannot; drop that column before the run")
