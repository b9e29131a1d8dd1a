"""What cannot be had again, in an SQLite file: a row is on the disk when the call that writes it returns."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.runs.cache import writing

LOCK_SECONDS = 60.0


class KeptRows:
    """One table of an SQLite file, for several threads and processes at once.

    Args:
        path: the file; made, with its folder, when it is not there.
        table: name and columns, as they stand in a CREATE TABLE.
        what: the rows in words, for errors.
        remedy: what to do when they cannot be kept.
    """

    def __init__(self, path: Path, table: str, what: str, remedy: str):
        self.path = path
        self._words = (what, remedy)
        self._lock = threading.Lock()
        with writing(path), self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            # No write-ahead log: it needs shared memory, which network file systems lack.
            self._file = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
            self._file.execute("PRAGMA synchronous = FULL")
            self._file.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            self._file.commit()

    def select(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query."""
        with self._explained(), self._lock:
            return self._file.execute(query, values).fetchall()

    def insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Writes rows in one transaction: all of them are kept, or none.

        Raises:
            UserError: they cannot be kept.
        """
        with self._explained(), self._lock, self._file:
            self._file.executemany(statement, rows)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        what, remedy = self._words
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise UserError(f"cannot keep {what} in {self.path}: {error}. {remedy}") from error
