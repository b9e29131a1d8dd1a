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


def write_rows(file_path: Path, json_rows: Iterable[Any]) -> None:
    """Write one dataclass object per line; the file appears under its name only when complete.

    Lone surrogates, which UTF-8 has not, become question marks.
    """
    with atomic_path(file_path) as part_path, part_path.open("w", encoding="utf-8", errors="replace") as file_stream:
        for json_row in json_rows:
            file_stream.write(json.dumps(asdict(json_row), ensure_ascii=False, allow_nan=False) + "\n")


def read_rows(file_path: Path, row_class: type[Row]) -> list[Row]:
    """Read a file of rows that an options class checks.

    Raises:
        UserError: the file cannot be read or a row is refused; names file, line and field.
    """
    json_rows = []
    for line_number, json_row in read_objects(file_path):
        try:
            json_rows.append(row_class(**json_row))
        except UserError as error:
            raise UserError(f"{file_path}, line {line_number}: {error}") from None
    return json_rows


def read_objects(file_path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line that is not blank.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object; names file and line.
    """
    for json_row, line_number in read_text_rows(DataFile(file_path, "jsonl", None)):
        yield line_number, json_row
