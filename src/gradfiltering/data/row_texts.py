"""Rows as people read them, prompt and response as plain text, kept beside a run's results."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.json_rows import JsonRows, rows_of
from gradfiltering.data.schemas import Messages, Schema
from gradfiltering.runs.cache import Cache, atomic_path, link

FILE = "rows.parquet"
WRITTEN_AT_ONCE = 2000  # rows
SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("prompt", pa.large_string()),
        ("response", pa.large_string()),
        ("source", pa.large_string()),
    ]
)


def keep_rows(run_dir: Path, records: InstructionDataset, cache: Cache) -> None:
    """Writes `rows.parquet`: `example_id`, `prompt`, `response` and `source` (null where rows name none).

    Runs on the same rows share one copy in the store. The file's metadata hold `fingerprint`, a digest of all of it in
    order, and `origin`, the source in words. Half a surrogate pair, which no UTF-8 file can hold, becomes U+FFFD.
    """
    with atomic_path(run_dir / FILE) as part:
        content_digest = _write(part, records)
        made = cache.make("rows", {"fingerprint": content_digest}, lambda folder: link(part, folder / FILE))
    link(made.path / FILE, run_dir / FILE)


def readable(schema: Schema, row: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and response of a row: of a conversation its last answer and all that was said before it, of a text all.

    Returns:
        Prompt (empty where nothing is asked) and response.
    """
    if isinstance(schema, Messages):
        said = schema.conversation(row)
        answers = [place for place, message in enumerate(said) if message["role"] == "assistant"]
        last = answers[-1] if answers else len(said)
        before = "\n\n".join(f"{message['role']}: {message['content']}" for message in said[:last])
        return before, said[last]["content"] if answers else ""
    turn = schema.turn(row)
    return (turn.question, turn.output) if turn is not None else ("", row.get(schema.fields[0]) or "")


def _write(path: Path, records: InstructionDataset) -> str:
    """Writes the file in one pass and returns its fingerprint."""
    digest = hashlib.sha256()
    names_source = "source" in records.rows.column_names
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for example_id, row in enumerate(_each(records)):
            source = str(row.get("source")) if names_source else None
            found = (*readable(records.schema, row), source)
            digest.update(json.dumps(found).encode())
            for name, value in zip(SCHEMA.names, (example_id, *found), strict=True):
                columns[name].append(whole(value) if isinstance(value, str) else value)
            if len(columns["example_id"]) == WRITTEN_AT_ONCE:
                writer.write_table(pa.table(columns, SCHEMA))
                columns = {name: [] for name in SCHEMA.names}
        writer.write_table(pa.table(columns, SCHEMA))
        writer.add_key_value_metadata({"fingerprint": digest.hexdigest()[:32], "origin": whole(records.origin)})
    return digest.hexdigest()[:32]


def _each(records: InstructionDataset) -> Iterator[Mapping[str, Any]]:
    if isinstance(records.rows, JsonRows):
        yield from records.rows
        return
    for batch in records.rows.iter(WRITTEN_AT_ONCE):
        yield from rows_of(batch)


def whole(text: str) -> str:
    """Text that a UTF-8 file can hold: half a surrogate pair becomes the replacement character, as browsers show it."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
