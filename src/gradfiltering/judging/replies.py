"""Replies that were paid for, in money or in time, kept in an SQLite file the moment they arrive."""

import asyncio
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from gradfiltering.judging.kept import KeptRows


@dataclass(frozen=True)
class ReplyKey:
    """Which question a reply answers.

    Attributes:
        judge: name of the judge.
        model: the model asked.
        prompt_hash: digest of everything that was sent, and of where.
        slot_order: 0 when the candidate's answer came first, 1 when it came second; 0 for a judge that always says
            the same to the same words.
        repeat: which repetition of the pair; 0 for such a judge.
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
        text: what was said.
        finish_reason: why it ended, in the server's words.
        input_tokens: as the server counted; None when it did not say.
        output_tokens: the same of the reply.
    """

    text: str
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None


_KEYS = ", ".join(field.name for field in fields(ReplyKey))
_VALUES = ", ".join(field.name for field in fields(StoredReply))


class ReplyStore:
    """Replies by question. A reply that `put` or `keep` has returned for survives a crash of process and machine.

    Args:
        path: the SQLite file; made when it is not there. Several processes may use it at once.
    """

    def __init__(self, path: Path):
        table = (
            "replies (judge TEXT, model TEXT, prompt_hash TEXT, slot_order INTEGER, repeat INTEGER, attempt INTEGER, "
            "text TEXT NOT NULL, finish_reason TEXT, input_tokens INTEGER, output_tokens INTEGER, "
            f"arrived TEXT DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY ({_KEYS}))"
        )
        remedy = (
            "Free some space, or name another file in judge.replies; nothing more is asked, since its answer would be "
            "lost"
        )
        self._rows = KeptRows(path, table, "replies", remedy)
        self._waiting: list[tuple[ReplyKey, StoredReply]] = []
        self._writing = asyncio.Lock()

    def get(self, key: ReplyKey) -> StoredReply | None:
        """The reply to a question, None if there was none yet."""
        where = " AND ".join(f"{field.name} = ?" for field in fields(ReplyKey))
        rows = self._rows.select(f"SELECT {_VALUES} FROM replies WHERE {where}", astuple(key))
        return StoredReply(*rows[0]) if rows else None

    def keep(self, replies: Sequence[tuple[ReplyKey, StoredReply]]) -> None:
        """Keeps replies; they are on the disk when this returns."""
        rows = [(*astuple(key), *_storable(reply)) for key, reply in replies]
        places = ", ".join("?" * (len(fields(ReplyKey)) + len(fields(StoredReply))))
        self._rows.insert(f"INSERT OR IGNORE INTO replies ({_KEYS}, {_VALUES}) VALUES ({places})", rows)

    async def put(self, key: ReplyKey, reply: StoredReply) -> None:
        """Keeps a reply; returns when it is on the disk.

        Replies that arrive while others are being written go together in the next transaction, because each one costs
        a wait for the disk.
        """
        entry = (key, reply)
        self._waiting.append(entry)
        async with self._writing:
            if not any(entry is other for other in self._waiting):
                return  # written along with another
            batch, self._waiting = self._waiting, []
            await asyncio.to_thread(self.keep, batch)

    def close(self) -> None:
        """Closes the file."""
        self._rows.close()


def _storable(reply: StoredReply) -> tuple[str | int | None, ...]:
    # A lone surrogate is no text that a file could hold.
    return (reply.text.encode("utf-8", "replace").decode("utf-8"), *astuple(reply)[1:])
