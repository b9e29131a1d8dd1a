"""Stored replies and ratings in a damaged file: one line with the remedy, and nothing is asked again in silence."""

import asyncio
import os
import sqlite3
from contextlib import closing
from dataclasses import astuple

import pytest

from gradfiltering.errors import UserError
from gradfiltering.judging.ratings import RatingStore
from gradfiltering.judging.reply_store import ReplyKey, ReplyStore, StoredReply

REPLY = StoredReply("The first is better. " * 20, "stop", 300, 100)


def reply_key(number):
    return ReplyKey("openai", "m", f"{number:064d}", 0, 0, 0)


def store_replies(path):
    replies = ReplyStore(path)
    replies.put_all([(reply_key(number), REPLY) for number in range(60)])
    replies.close()


def store_ratings(path):
    ratings = RatingStore(path, seed=0)
    ratings.add_all([(f"pair {number}", "ann", "first") for number in range(600)])
    ratings.close()


def read_all(path):
    """What either store holds, read through its own class."""
    if path.name.startswith("ratings"):
        with closing(RatingStore(path, seed=0)) as ratings:
            return ratings.labels_by_rater(None)
    with closing(ReplyStore(path)) as replies:
        return [replies.get(reply_key(number)) for number in range(60)]


@pytest.fixture(params=["replies", "ratings"])
def stored(request, tmp_path):
    path = tmp_path / f"{request.param}.sqlite"
    (store_replies if request.param == "replies" else store_ratings)(path)
    return path


def overwrite(path, start, content):
    with path.open("r+b") as stream:
        stream.seek(start, os.SEEK_SET if start >= 0 else os.SEEK_END)
        stream.write(content)


DAMAGES = {
    "no SQLite file": lambda path: path.write_text("replies\n" * 1000),
    "header": lambda path: overwrite(path, 0, b"SQLite forma\0"),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut to a page": lambda path: os.truncate(path, 4096),
    "cut within the header": lambda path: os.truncate(path, 50),
    "zeros in the schema": lambda path: overwrite(path, 100, bytes(3000)),
    "zeros in a page": lambda path: overwrite(path, 2 * 4096, bytes(4096)),
    "noise in the last page": lambda path: overwrite(path, -4096, bytes(range(256)) * 16),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_with_the_remedy(damage, stored):
    DAMAGES[damage](stored)
    content = stored.read_bytes()
    with pytest.raises(UserError) as refused:
        read_all(stored)
    noun = stored.stem
    assert f"the file of {noun} {stored} is damaged, or none of SQLite's" in str(refused.value)
    assert "Restore it from a copy" in str(refused.value) and "\n" not in str(refused.value)
    assert stored.read_bytes() == content, "what can still be saved from the file must stay"


@pytest.mark.parametrize("flipped_bit", range(0, 8, 3))
def test_a_flipped_bit_is_refused_or_changes_no_row(flipped_bit, stored):
    whole, rows = stored.read_bytes(), read_all(stored)
    changed = []
    for start in range(105, len(whole), 997):
        overwrite(stored, start, bytes([whole[start] ^ (1 << flipped_bit)]))
        try:
            if read_all(stored) != rows:
                changed.append(start)
        except UserError as refused:
            assert "\n" not in str(refused)
        stored.write_bytes(whole)
    assert changed == []


def test_a_row_that_an_index_lost_is_not_asked_for_again(tmp_path):
    store_replies(tmp_path / "replies.sqlite")
    with closing(sqlite3.connect(tmp_path / "replies.sqlite")) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        root_page = connection.execute("SELECT rootpage FROM sqlite_master WHERE type = 'index'").fetchone()[0]
    overwrite(tmp_path / "replies.sqlite", (root_page - 1) * 4096 + 3, b"\0\0")  # no cells
    with pytest.raises(UserError, match="is damaged"):
        read_all(tmp_path / "replies.sqlite")


def test_a_file_of_an_early_version_is_read_and_gets_checksums(tmp_path):
    columns = "judge, model, prompt_hash, slot_order, repeat, attempt"
    path = tmp_path / "replies.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            f"CREATE TABLE replies ({columns}, text TEXT NOT NULL, finish_reason TEXT, input_tokens INTEGER, "
            f"output_tokens INTEGER, arrived TEXT DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY ({columns}))"
        )
        values = ("openai", "m", f"{0:064d}", 0, 0, 0, *astuple(REPLY))
        connection.execute(f"INSERT INTO replies VALUES ({', '.join('?' * 10)}, '2026-01-01')", values)
    with closing(ReplyStore(path)) as replies:
        replies.put_all([(reply_key(1), REPLY)])
    assert read_all(path)[:3] == [REPLY, REPLY, None]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE replies SET text = 'other' WHERE checksum IS NOT NULL")
    with pytest.raises(UserError, match=r"is damaged.*a row is not what was written"):
        read_all(path)


def test_an_empty_file_is_begun_anew(tmp_path):
    for name in ("replies.sqlite", "ratings.sqlite"):
        (tmp_path / name).touch()
        assert not any(read_all(tmp_path / name))


def test_a_full_disk_is_no_damage(stored, monkeypatch):
    with closing(ReplyStore(stored.with_name("other"))) as replies:
        connection = replies._table._connection
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
        with pytest.raises(UserError, match=r"database or disk is full\. Free some space") as refused:
            asyncio.run(replies.put(reply_key(1), StoredReply("a" * 20000, None, None, None)))
    assert "damaged" not in str(refused.value)
