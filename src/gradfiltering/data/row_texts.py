"""Rows as people read them, prompt and response as plain text, kept beside a run's results."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.json_rows import READ_AT_ONCE, JsonRows
from gradfiltering.data.row_contents import iterate_columns
from gradfiltering.data.schemas import Schema
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.files import atomic_path, link_file
from gradfiltering.runs.plain_text import replace_lone_surrogates

ROWS_FILE = "rows.parquet"
WRITTEN_AT_ONCE = 2000  # rows

# Characters of scripts that put no blanks between words: each counts as a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")

ROWS_SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("prompt", pa.large_string()),
        ("response", pa.large_string()),
        ("source", pa.large_string()),
    ]
)


@dataclass(frozen=True)
class RowText:
    """A row as plain text; the question is all that stands before the last answer."""

    question: str
    answer: str


def iterate_row_texts(dataset: InstructionDataset) -> Iterator[Sequence[RowText]]:
    """Yield question and answer of the rows in order, some at a time; half a surrogate pair becomes U+FFFD."""
    all_rows = iterate_columns(dataset.rows, dataset.schema.fields)
    while row_batch := list(islice(all_rows, READ_AT_ONCE)):
        texts = (prompt_and_response(dataset.schema, row_values) for row_values in row_batch)
        yield [RowText(*map(replace_lone_surrogates, question_and_answer)) for question_and_answer in texts]


def write_row_texts(run_dir: Path, dataset: InstructionDataset, cache: Cache) -> None:
    """Write `rows.parquet`: `example_id`, `prompt`, `response` and `source` (null where rows name none).

    Runs on the same rows share one copy in the cache. The file's metadata hold `fingerprint`, a digest of all of it in
    order, and `origin`, the source in words. Half a surrogate pair, which no UTF-8 file can hold, becomes U+FFFD.
    """
    with atomic_path(run_dir / ROWS_FILE) as partial_path:
        content_digest = _write_row_texts(partial_path, dataset)
        cached_result = cache.commit(
            "rows",
            {"fingerprint": content_digest},
            lambda cache_folder: link_file(partial_path, cache_folder / ROWS_FILE),
        )
    link_file(cached_result.path / ROWS_FILE, run_dir / ROWS_FILE)


def prompt_and_response(schema: Schema, row_values: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and response of a row: of a conversation its last answer and all that was said before it, of a text all.

    A single question stands without the name of its role.

    Returns:
        Prompt (empty where nothing is asked) and response.
    """
    conversation = schema.conversation(row_values)
    if conversation is None:
        return "", row_values.get(schema.fields[0]) or ""
    turn = schema.turn(row_values)
    if len(conversation.messages) == 2 and turn is not None:
        return turn.question, turn.output
    messages = conversation.messages
    answer_positions = [position for position, message in enumerate(messages) if message.role == "assistant"]
    last_answer = answer_positions[-1] if answer_positions else len(messages)
    earlier_messages = "\n\n".join(f"{message.role}: {message.text}" for message in messages[:last_answer])
    return earlier_messages, messages[last_answer].text if answer_positions else ""


def _write_row_texts(path: Path, dataset: InstructionDataset) -> str:
    """Write the file in one pass and return its fingerprint."""
    content_digest = hashlib.sha256()
    names_source = "source" in dataset.rows.column_names
    column_values: dict[str, list[Any]] = {column_name: [] for column_name in ROWS_SCHEMA.names}
    with pq.ParquetWriter(path, ROWS_SCHEMA, compression="zstd") as parquet_writer:
        for example_id, row_values in enumerate(_iterate_rows(dataset)):
            row_source = str(row_values.get("source")) if names_source else None
            row_fields = (*prompt_and_response(dataset.schema, row_values), row_source)
            content_digest.update(json.dumps(row_fields).encode())
            for column_name, field_value in zip(ROWS_SCHEMA.names, (example_id, *row_fields), strict=True):
                column_values[column_name].append(
                    replace_lone_surrogates(field_value) if isinstance(field_value, str) else field_value
                )
            if len(column_values["example_id"]) == WRITTEN_AT_ONCE:
                parquet_writer.write_table(pa.table(column_values, ROWS_SCHEMA))
                column_values = {column_name: [] for column_name in ROWS_SCHEMA.names}
        parquet_writer.write_table(pa.table(column_values, ROWS_SCHEMA))
        parquet_writer.add_key_value_metadata(
            {"fingerprint": content_digest.hexdigest()[:32], "origin": replace_lone_surrogates(dataset.origin)}
        )
    return content_digest.hexdigest()[:32]


def _iterate_rows(dataset: InstructionDataset) -> Iterator[Mapping[str, Any]]:
    if isinstance(dataset.rows, JsonRows):
        yield from dataset.rows
        return
    yield from iterate_columns(dataset.rows, [*dataset.schema.fields, "source"])
