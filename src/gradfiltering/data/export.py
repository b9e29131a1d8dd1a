"""Chosen rows written as they came: in their own fields and file type, and described for LLaMA-Factory."""

import csv
import gzip
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from gradfiltering.data.conversations import CALLING_ROLES, CANONICAL_ROLES
from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.file_formats import JSON_LINES, FileFormat
from gradfiltering.data.json_rows import JsonRows, iterate_json_rows, to_json
from gradfiltering.data.preference_schema import Preference
from gradfiltering.data.row_columns import SYSTEM_COLUMNS, TOOLS_COLUMNS
from gradfiltering.data.schemas import Instruction, Messages, Mixed, Schema
from gradfiltering.data.training_formats import ExportSettings, export_warnings, holds_messages
from gradfiltering.runs.files import atomic_path, write_json
from gradfiltering.runs.plain_text import is_encodable

READ_AT_ONCE = 1000  # rows
NATIVE = ExportSettings()
# The names LLaMA-Factory has for the roles of a conversation.
ROLE_TAGS = {"user": "user_tag", "assistant": "assistant_tag", "system": "system_tag", "tool": "observation_tag"}
# As OpenAI names roles. LLaMA-Factory takes a tag that is left out for None, and then two of them for the same role.
OPENAI_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
    "function_tag": "function_call",
}


def write_rows(
    run_dir: Path,
    dataset: InstructionDataset,
    selected_row_ids: Sequence[int],
    export: ExportSettings = NATIVE,
) -> None:
    """Write `subset.jsonl`, the same rows in the form of file they came in, and `dataset_info.json`.

    Another format than `native` gets a file of its own beside these, and the only entry of `dataset_info.json`.
    """
    selected_rows, file_format = dataset.rows.select(selected_row_ids), dataset.form
    _write_text_rows(run_dir / "subset.jsonl", selected_rows, JSON_LINES)
    if isinstance(selected_rows, Dataset) and file_format.schema is not None:
        # subset.parquet holds the ids and scores of any run.
        file_name = "subset_rows.parquet" if file_format.kind == "parquet" else f"subset{file_format.suffix}"
        _write_typed_rows(run_dir / file_name, selected_rows, file_format)
    elif file_format != JSON_LINES:
        _write_text_rows(run_dir / f"subset{file_format.suffix}", selected_rows, file_format)
    run_name = name_run(run_dir)
    if export.format != "native":
        entries = _write_exported(run_dir, dataset.schema, selected_rows, export)
    elif isinstance(dataset.schema, Mixed):
        entries = _write_by_schema(run_dir, dataset.schema, selected_rows)
    else:
        entry = llama_factory_entry(dataset.schema, selected_rows, "subset.jsonl")
        entries = {} if entry is None else {"": entry}
    named_entries = {"_".join(filter(None, (run_name, suffix))): entry for suffix, entry in entries.items()}
    write_json(run_dir / "dataset_info.json", named_entries)


def name_run(run_dir: Path) -> str:
    """Name a run by the last two parts of its folder, as its page does, with letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^\w.-]+", "-", "_".join(run_dir.resolve().parts[-2:]), flags=re.ASCII).strip("-_")


def _write_exported(
    run_dir: Path, schema: Schema, selected_rows: Dataset | JsonRows, export: ExportSettings
) -> dict[str, Any]:
    """Write the rows in the layout of other trainers.

    Returns:
        The entry of `dataset_info.json`; none where LLaMA-Factory has no reader for the layout.
    """
    exported_rows = export.export(list(_iterate_rows(selected_rows)), schema).rows
    file_name = f"subset_as_{export.format}.jsonl"
    table = JsonRows.from_list(exported_rows)
    _write_text_rows(run_dir / file_name, table, JSON_LINES)
    if export.format == "messages":
        exported_schema: Schema = Messages("messages")
    elif holds_messages(exported_rows):
        return {}
    else:
        exported_schema = Instruction("prompt_completion", "prompt", None, "completion")
    entry = llama_factory_entry(exported_schema, table, file_name)
    return {} if entry is None else {"": entry}


def _write_by_schema(run_dir: Path, mixed_schema: Mixed, selected_rows: Dataset | JsonRows) -> dict[str, Any]:
    """Write the rows of each schema into a file of their own: LLaMA-Factory reads one schema a file.

    Returns:
        The entries of `dataset_info.json` by the columns of the schema.
    """
    ids_by_schema: dict[Schema, list[int]] = {}
    for row_id, row_values in enumerate(_iterate_rows(selected_rows)):
        row_schema = mixed_schema.of_row(row_values)
        if row_schema is not None:
            ids_by_schema.setdefault(row_schema, []).append(row_id)
    entries = {}
    for row_schema, row_ids in ids_by_schema.items():
        rows_of_schema = selected_rows.select(row_ids)
        column_names = "_".join(row_schema.required)
        file_name = f"subset_{column_names}.jsonl"
        _write_text_rows(run_dir / file_name, rows_of_schema, JSON_LINES)
        entry = llama_factory_entry(row_schema, rows_of_schema, file_name)
        if entry is not None:
            entries[column_names] = entry
    return entries


def warn_of_export(dataset: InstructionDataset, selected_row_ids: Sequence[int], export: ExportSettings) -> list[str]:
    """Count what the files of a subset cannot express, or leave out."""
    selected_rows = dataset.rows.select(selected_row_ids)
    return export_warnings(list(_iterate_rows(selected_rows)), dataset.schema, export)


def row_to_json_line(row_values: Any) -> str:
    """A row as one line of JSON, readable but for what UTF-8 cannot hold (half a surrogate pair)."""
    json_text = to_json(row_values, ascii_only=False)
    return json_text if is_encodable(json_text) else to_json(row_values)


def _write_text_rows(output_path: Path, selected_rows: Dataset | JsonRows, file_format: FileFormat) -> None:
    with atomic_path(output_path) as partial_path, _text_file(partial_path, file_format.compression) as text_file:
        if file_format.kind in ("csv", "tsv"):
            _write_cells(text_file, selected_rows, "\t" if file_format.kind == "tsv" else ",")
        elif file_format.kind == "json":
            for row_number, row_values in enumerate(_iterate_rows(selected_rows)):
                text_file.write((",\n" if row_number else "[\n") + row_to_json_line(row_values))
            text_file.write("\n]\n")
        else:
            for row_values in _iterate_rows(selected_rows):
                text_file.write(row_to_json_line(row_values) + "\n")


def _write_cells(text_file: TextIO, selected_rows: Dataset | JsonRows, cell_separator: str) -> None:
    """Write a header and a line for each row.

    Python's writer puts a cell with a carriage return in quotes only where lines end in one, and its reader takes a
    bare one for the end of a line; so the cells of such rows are all quoted.
    """
    column_names = selected_rows.column_names
    plain_writer, quoting_writer = (
        csv.DictWriter(text_file, column_names, delimiter=cell_separator, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    has_return = any("\r" in name for name in column_names)
    (quoting_writer if has_return else plain_writer).writeheader()
    for row_values in _iterate_rows(selected_rows):
        has_return = any("\r" in cell_text for cell_text in row_values.values())
        (quoting_writer if has_return else plain_writer).writerow(row_values)


@contextmanager
def _text_file(output_path: Path, compression: str | None) -> Iterator[TextIO]:
    with output_path.open("wb") as byte_file:
        packed_file: Any = byte_file
        if compression == "gzip":
            packed_file = gzip.GzipFile(
                filename="", mode="wb", fileobj=byte_file, mtime=0
            )  # the same rows give the same bytes
        elif compression == "zstd":
            packed_file = pa.CompressedOutputStream(byte_file, "zstd")
        with packed_file, io.TextIOWrapper(io.BufferedWriter(packed_file), encoding="utf-8", newline="") as text_stream:
            yield text_stream


def _write_typed_rows(output_path: Path, selected_rows: Dataset, file_format: FileFormat) -> None:
    """A typed file in the schema that the input has."""
    row_schema = file_format.schema
    assert row_schema is not None, "a typed form has a schema"
    with atomic_path(output_path) as partial_path, pa.OSFile(str(partial_path), "wb") as file_sink:
        if file_format.kind == "parquet":
            file_writer: Any = pq.ParquetWriter(file_sink, row_schema)
        else:
            file_writer = (
                pa.ipc.new_stream(file_sink, row_schema)
                if file_format.stream
                else pa.ipc.new_file(file_sink, row_schema)
            )
        with file_writer:
            for arrow_table in selected_rows.with_format("arrow").iter(READ_AT_ONCE):
                file_writer.write_table(arrow_table.select(row_schema.names).cast(row_schema))


def llama_factory_entry(row_schema: Schema, selected_rows: Dataset | JsonRows, file_name: str) -> dict[str, Any] | None:
    """Describe rows of one schema for LLaMA-Factory's `dataset_info.json`: their columns and, of messages, their tags.

    A column that no selected row has is one that LLaMA-Factory would not find, and is not named. None for preference
    rows whose answers are lists of messages, which LLaMA-Factory does not read.
    """
    dataset_entry: dict[str, Any] = {"file_name": file_name}
    further_columns = {"system": SYSTEM_COLUMNS, "tools": TOOLS_COLUMNS[:1]}
    if isinstance(row_schema, Messages):
        message_tags = _tags(row_schema, selected_rows)
        has_tools = _has_tools_as_objects(row_schema, selected_rows)
        dataset_entry |= {
            "formatting": "openai" if has_tools else "sharegpt",
            "columns": {"messages": row_schema.column},
            "tags": OPENAI_ROLE_TAGS | message_tags if has_tools else message_tags,
        }
    elif isinstance(row_schema, Preference):
        columns = {"chosen": row_schema.chosen, "rejected": row_schema.rejected}
        answers = [row_values.get(name) for row_values in _iterate_rows(selected_rows) for name in columns.values()]
        message_columns = [name for name in row_schema.conversation_columns if _any_row_has(selected_rows, name)]
        if message_columns and all(isinstance(answer, dict) for answer in answers):
            has_roles = any("role" in answer for answer in answers if isinstance(answer, dict))
            return {
                **dataset_entry,
                "formatting": "sharegpt",
                "ranking": True,
                "columns": {"messages": message_columns[0], **columns},
                **({"tags": {"role_tag": "role", "content_tag": "content", **OPENAI_ROLE_TAGS}} if has_roles else {}),
            }
        if not all(isinstance(answer, str) for answer in answers):
            return None
        has_prompt = _any_row_has(selected_rows, row_schema.prompt)
        columns["prompt"] = row_schema.prompt if has_prompt else row_schema.instruction
        if not has_prompt:
            further_columns["query"] = (row_schema.input,)
        further_columns["history"] = ("history",)
        dataset_entry |= {"formatting": "alpaca", "ranking": True, "columns": columns}
    elif isinstance(row_schema, Instruction):
        dataset_entry |= {
            "formatting": "alpaca",
            "columns": {"prompt": row_schema.instruction, "response": row_schema.output},
        }
        if row_schema.input is not None:
            further_columns["query"] = (row_schema.input,)
        further_columns["history"] = ("history",)
    else:
        return {**dataset_entry, "columns": {"prompt": row_schema.fields[0]}}
    for meaning, column_names in further_columns.items():
        for column_name in column_names:
            if meaning not in dataset_entry["columns"] and _any_row_has(selected_rows, column_name):
                dataset_entry["columns"][meaning] = column_name
    return dataset_entry


def _has_tools_as_objects(row_schema: Messages, selected_rows: Dataset | JsonRows) -> bool:
    """True where calls, or tools to be called, are objects, which LLaMA-Factory reads as `openai` alone."""
    return any(
        any(message.get("tool_calls") for message in row_values.get(row_schema.column) or ())
        or isinstance(row_values.get(TOOLS_COLUMNS[0]), list)
        for row_values in _iterate_rows(selected_rows)
    )


def _any_row_has(selected_rows: Dataset | JsonRows, column_name: str) -> bool:
    return any(column_name in row_values for row_values in _iterate_rows(selected_rows))


def _tags(row_schema: Messages, selected_rows: Dataset | JsonRows) -> dict[str, str]:
    """The names that the messages have for their parts and roles, as the first rows show them."""
    message_tags: dict[str, str] = {}
    for row_values, _ in zip(_iterate_rows(selected_rows), range(READ_AT_ONCE), strict=False):
        for chat_message in row_values.get(row_schema.column) or ():
            role_key = "role" if chat_message.get("role") else "from"
            content_key = "value" if chat_message.get("content") is None and "value" in chat_message else "content"
            message_tags.setdefault("role_tag", role_key)
            message_tags.setdefault("content_tag", content_key)
            role_name = chat_message[role_key]
            role_tag = "function_tag" if role_name in CALLING_ROLES else ROLE_TAGS[CANONICAL_ROLES[role_name.lower()]]
            message_tags.setdefault(role_tag, role_name)
    return message_tags


def _iterate_rows(selected_rows: Dataset | JsonRows) -> Iterator[dict[str, Any]]:
    yield from iterate_json_rows(selected_rows)
