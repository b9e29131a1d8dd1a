"""A table in an SQLite file whose rows are on the disk when the call that writes them returns."""

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.runs.files import explain_failed_writes, hash_key

LOCK_SECONDS = 60.0
CHECKSUM = "checksum"  # column of a row's digest; null in rows of early versions
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

logger = logging.getLogger(__name__)


def _row_checksum(row_values: Sequence[str | int | None]) -> str:
    """Return a digest of a row, the same for values as they are written and as SQLite gives them back."""
    return hash_key([None if value is None else str(value) for value in row_values])


class SqliteTable:
    """One table of an SQLite file, for several threads and processes at once.

    Args:
        database_path: the file; made, with its folder, when it is not there.
        table_name: name of the table: the rows in words.
        column_definitions: columns and primary key, as they stand in a CREATE TABLE.
        checked_columns: columns that rows are written with; a checksum of them stands in each row.
        failure_remedy: advice for when they cannot be written.

    Raises:
        UserError: the file cannot be opened, is damaged, or is none of SQLite's.
    """

    def __init__(
        self,
        database_path: Path,
        table_name: str,
        column_definitions: str,
        checked_columns: Sequence[str],
        failure_remedy: str,
    ):
        self.path = database_path
        self._table_name = table_name
        self._checked_columns = checked_columns
        self._remedy = failure_remedy
        self._lock = threading.Lock()
        with explain_failed_writes(database_path), self._explained():
            database_path.parent.mkdir(parents=True, exist_ok=True)
            # No write-ahead log: it needs shared memory, which network file systems lack.
            self._connection = sqlite3.connect(database_path, timeout=LOCK_SECONDS, check_same_thread=False)
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table_name} ({CHECKSUM} TEXT, {column_definitions})")
            self._connection.commit()
            self._check_intact()

    def _check_intact(self) -> None:
        """Read all pages and indices: a row that a damaged index hides would be asked, and paid, for again."""
        ((first_complaint, *_),) = self._connection.execute("PRAGMA integrity_check(1)").fetchall()
        if first_complaint != "ok":
            raise self._damage_error(" ".join(str(first_complaint).split()))
        rows = self._connection.execute(f"SELECT * FROM {self._table_name}")
        column_names = [description[0] for description in rows.description]
        if CHECKSUM not in column_names:  # a file of an early version
            with suppress(sqlite3.OperationalError):  # read-only, or another process was faster
                self._connection.execute(f"ALTER TABLE {self._table_name} ADD COLUMN {CHECKSUM} TEXT")
                self._connection.commit()
            return
        for row in rows:
            row_values = dict(zip(column_names, row, strict=True))
            checksum = row_values.pop(CHECKSUM)
            if checksum is not None and checksum != _row_checksum([row_values[name] for name in self._checked_columns]):
                raise self._damage_error("a row is not what was written")

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

    def insert(self, new_rows: Sequence[Sequence[Any]]) -> None:
        """Write rows in one transaction, all of them or none; a row whose key is there already stays as it is.

        Args:
            new_rows: a value for each of the checked columns.

        Raises:
            UserError: they cannot be written.
        """
        checked_rows = [(*row, _row_checksum(row)) for row in new_rows]
        written_columns = [*self._checked_columns, CHECKSUM]
        statement = (
            f"INSERT OR IGNORE INTO {self._table_name} ({', '.join(written_columns)}) "
            f"VALUES ({', '.join('?' * len(written_columns))})"
        )
        with self._explained(), self._lock, self._connection:
            self._connection.executemany(statement, checked_rows)

    def delete(self, condition: str, query_values: Sequence[Any]) -> None:
        """Delete the rows that meet a condition of SQL, in one transaction."""
        with self._explained(), self._lock, self._connection:
            self._connection.execute(f"DELETE FROM {self._table_name} WHERE {condition}", query_values)

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
            raise UserError(f"cannot keep {self._table_name} in {self.path}: {error}. {self._remedy}") from error

    def _damage_error(self, complaint: str) -> UserError:
        return UserError(
            f"the file of {self._table_name} {self.path} is damaged, or none of SQLite's: {complaint}. Restore it from "
            f"a copy, save what can be read with `sqlite3 {self.path} .recover`, or move it away to begin anew without "
            f"its {self._table_name}"
        )
