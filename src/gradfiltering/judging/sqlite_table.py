"""A table in an SQLite file whose rows are on the disk when the call that writes them returns."""

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.runs.files import explain_failed_writes

LOCK_SECONDS = 60.0
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

logger = logging.getLogger(__name__)


class SqliteTable:
    """One table of an SQLite file, for several threads and processes at once.

    Args:
        database_path: the file; made, with its folder, when it is not there.
        table_definition: name and columns, as they stand in a CREATE TABLE.
        row_noun: the rows in words, for errors.
        failure_remedy: advice for when they cannot be written.

    Raises:
        UserError: the file cannot be opened, is damaged, or is none of SQLite's.
    """

    def __init__(self, database_path: Path, table_definition: str, row_noun: str, failure_remedy: str):
        self.path = database_path
        self._row_noun = row_noun
        self._remedy = failure_remedy
        self._lock = threading.Lock()
        with explain_failed_writes(database_path), self._explained():
            database_path.parent.mkdir(parents=True, exist_ok=True)
            # No write-ahead log: it needs shared memory, which network file systems lack.
            self._connection = sqlite3.connect(database_path, timeout=LOCK_SECONDS, check_same_thread=False)
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table_definition}")
            self._connection.commit()
            self._check_intact()

    def _check_intact(self) -> None:
        """Read all pages and indices: a row that a damaged index hides would be asked, and paid, for again."""
        ((first_complaint, *_),) = self._connection.execute("PRAGMA integrity_check(1)").fetchall()
        if first_complaint != "ok":
            raise self._damage_error(" ".join(str(first_complaint).split()))

    def check_writable(self) -> None:
        """Make sure, before anything is asked that costs money or time, that the answers can be stored.

        Raises:
            UserError: the file cannot be written.
        """
        with self._explained(), self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute("PRAGMA user_version = 1")
            finally:
                self._connection.rollback()

    def select(self, select_query: str, query_values: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a query."""
        with self._explained(), self._lock:
            return self._connection.execute(select_query, query_values).fetchall()

    def insert(self, insert_statement: str, new_rows: Sequence[Sequence[Any]]) -> None:
        """Write rows in one transaction, all of them or none.

        Raises:
            UserError: they cannot be written.
        """
        with self._explained(), self._lock, self._connection:
            self._connection.executemany(insert_statement, new_rows)

    def close(self) -> None:
        """Close the file; a failure is logged, since it must not hide why the work ended."""
        try:
            self._connection.close()
        except sqlite3.Error as close_error:
            logger.warning("cannot close %s: %s", self.path, close_error)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            is_damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE or "decode to UTF-8" in str(error)
            if is_damaged:
                raise self._damage_error(str(error)) from error
            raise UserError(f"cannot keep {self._row_noun} in {self.path}: {error}. {self._remedy}") from error

    def _damage_error(self, complaint: str) -> UserError:
        return UserError(
            f"the file of {self._row_noun} {self.path} is damaged, or none of SQLite's: {complaint}. Restore it from a "
            f"copy, save what can be read with `sqlite3 {self.path} .recover`, or move it away to begin anew without "
            f"its {self._row_noun}"
        )
