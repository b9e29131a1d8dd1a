"""A file format: rows from TOML, one table `[[rows]]` each."""

import tomllib
from collections.abc import Iterator
from typing import Any, BinaryIO


def read_rows(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Read the rows of an open file."""
    yield from tomllib.load(file)["rows"]
