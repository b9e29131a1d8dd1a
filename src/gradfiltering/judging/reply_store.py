"""Replies that cost money or time, stored in an SQLite file the moment they arrive."""

import asyncio
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from gradfiltering.judging.sqlite_table import SqliteTable
from gradfiltering.runs.plain_text import replace_lone_surrogates


@dataclass(frozen=True)
class ReplyKey:
    """Identity of the question that a reply answers.

    Attributes:
        judge: name of the judge.
        model: name of the model.
        prompt_hash: digest of everything that was sent, and of the address.
        slot_order: 0 when the candidate's answer came first, 1 when it came second; 0 for a judge
            that always gives the same reply to the same words.
        repeat: repetition of the pair; 0 for such a judge.
        attempt: 0 for the first reply, 1 for that to being asked again, …
    """

    judge: str
    model: str
    prompt_hash: str
    slot_order: int
    repeat: int
    attempt: int


@dataclass(frozen=True)
class StoredReply:
    """A reply as it came.

    Attributes:
        text: the reply's text.
        finish_reason: why it ended, in the server's words.
        input_tokens: tokens sent, by the server's count; None when it did not count.
        output_tokens: tokens of the reply.
    """

    text: str
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None


_KEY_COLUMNS = ", ".join(field.name for field in fields(ReplyKey))
_REPLY_COLUMNS = ", ".join(field.name for field in fields(StoredReply))


class ReplyStore:
    """Replies by question. A reply stored by `put` or `put_all` survives a crash of the machine.

    Args:
        database_path: the SQLite file; made when it is not there. Several processes may use it at once.
    """

    def __init__(self, database_path: Path):
        column_definitions = (
            "judge TEXT, model TEXT, prompt_hash TEXT, slot_order INTEGER, "
            "repeat INTEGER, attempt INTEGER, text TEXT NOT NULL, finish_reason TEXT, "
            "input_tokens INTEGER, output_tokens INTEGER, "
            f"arrived TEXT DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY ({_KEY_COLUMNS})"
        )
        written_columns = [field.name for field in (*fields(ReplyKey), *fields(StoredReply))]
        failure_remedy = (
            "Free some space, or name another file of replies; nothing more is asked, since its answer would be lost"
        )
        self._table = SqliteTable(database_path, "replies", column_definitions, written_columns, failure_remedy)
        self._pending: list[tuple[ReplyKey, StoredReply]] = []
        self._write_lock = asyncio.Lock()

    def check_writable(self) -> None:
        """Raise a UserError where replies could not be stored; called before any is asked for."""
        self._table.check_writable()

    def get(self, reply_key: ReplyKey) -> StoredReply | None:
        """Look up the reply to a question; None if there was none yet."""
        key_condition = " AND ".join(f"{field.name} = ?" for field in fields(ReplyKey))
        reply_rows = self._table.select(
            f"SELECT {_REPLY_COLUMNS} FROM replies WHERE {key_condition}", astuple(reply_key)
        )
        return StoredReply(*reply_rows[0]) if reply_rows else None

    def put_all(self, keyed_replies: Sequence[tuple[ReplyKey, StoredReply]]) -> None:
        """Store replies; they are on the disk when this returns."""
        reply_rows = [
            (*astuple(reply_key), replace_lone_surrogates(reply.text), *astuple(reply)[1:])
            for reply_key, reply in keyed_replies
        ]
        self._table.insert(reply_rows)

    async def put(self, reply_key: ReplyKey, reply: StoredReply) -> None:
        """Store a reply; return when it is on the disk.

        Replies that arrive while others are being written go together in the next transaction,
        because each one costs a wait for the disk.
        """
        pending_entry = (reply_key, reply)
        self._pending.append(pending_entry)
        async with self._write_lock:
            if not any(pending_entry is pending for pending in self._pending):
                return  # written along with another
            pending_batch, self._pending = self._pending, []
            await asyncio.to_thread(self.put_all, pending_batch)

    def close(self) -> None:
        """Close the file."""
        self._table.close()
