"""JSON Lines files of typed rows, written whole or not at all."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from gradfiltering.data.file_formats import DataFile, read_text_rows
from gradfiltering.errors import UserError
from gradfiltering.runs.files import atomic_path

Row = TypeVar("Row")


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write one dataclass object per line; the file appears under its name only when complete."""
    with atomic_path(path) as part_path, part_path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n")


def read_rows(path: Path, row_class: type[Row]) -> list[Row]:
    """Read a file of rows that an options class checks.

    Raises:
        UserError: the file cannot be read or a row is refused; names file, line and field.
    """
    rows = []
    for line_number, row in read_objects(path):
        try:
            rows.append(row_class(**row))
        except UserError as error:
            raise UserError(f"{path}, line {line_number}: {error}") from None
    return rows


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line that is not blank.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object; names file and line.
    """
    for row, line_number in read_text_rows(DataFile(path, "jsonl", None)):
        yield line_number, row
