"""JSON Lines files of typed rows, written whole or not at all."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from gradfiltering.data.data_files import DataFile
from gradfiltering.data.text_files import detect_text_file, read_text_rows
from gradfiltering.errors import UserError
from gradfiltering.runs.files import atomic_path
from gradfiltering.runs.plain_text import to_readable_json

Row = TypeVar("Row")


def write_rows(file_path: Path, json_rows: Iterable[Any]) -> None:
    """Write one dataclass object per line; the file appears under its name only when complete.

    Half a surrogate pair, which UTF-8 cannot hold, is escaped, so that reading gives it back.
    """
    with atomic_path(file_path) as part_path, part_path.open("w", encoding="utf-8") as file_stream:
        for json_row in json_rows:
            file_stream.write(to_readable_json(asdict(json_row), allow_nan=False) + "\n")


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


def read_prompt_rows(file_path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read the rows of a prompt file: JSON Lines, a JSON array, csv or tsv, also compressed.

    A file of another suffix is taken for JSON Lines, or for an array where it begins with a bracket.

    Returns:
        Place of each row in words, and the row.

    Raises:
        UserError: the file cannot be read, or holds something that is no row.
    """
    data_file = detect_text_file(file_path)
    return [
        (f"{file_path}, line {line_number}" if line_number else f"{file_path}, row {row_index}", prompt_row)
        for row_index, (prompt_row, line_number) in enumerate(read_text_rows(data_file))
    ]


def read_objects(file_path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line that is not blank.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object; names file and line.
    """
    for json_row, line_number in read_text_rows(DataFile(file_path, "jsonl", None)):
        yield line_number, json_row
