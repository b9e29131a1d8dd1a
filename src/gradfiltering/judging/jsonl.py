"""JSON Lines out, written whole or not at all, and in, by the reader of data files."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gradfiltering.data.file_formats import DataFile, read_text_rows
from gradfiltering.runs.cache import atomic_path


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line; the file appears under its name only when it is complete."""
    with atomic_path(path) as part, part.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line that is not blank.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object; the message names file and line.
    """
    for row, line in read_text_rows(DataFile(path, "jsonl", None)):
        yield line, row
