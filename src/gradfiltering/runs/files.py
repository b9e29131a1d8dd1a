"""Files that appear whole or not at all, and their checksums."""

import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError, is_disk_full
from gradfiltering.runs.plain_text import to_readable_json

NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}
WRITE_FAILURES = {*NOT_PERMITTED, errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
PART_SUFFIX = ".part"  # of a name that is being written or deleted, or was when its process was killed
IN_USE_SECONDS = 24 * 3600  # a half-written file of an unknown process touched since then may be in use
_ADDRESS = re.compile(r"(?:^|/)[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # of `s3://`, paths leave `s3:/`
# `name.HOST-PROCESS-START-DIGITS.part`; early versions had the digits alone.
_PART_NAME = re.compile(
    r".+\.(?:(?P<host>[0-9a-f]{8})-(?P<process>[0-9]+)-(?P<start>[0-9]+)-)?[0-9a-f]{8}\.part", re.DOTALL
)

logger = logging.getLogger(__name__)


def hash_key(value: Any) -> str:
    """Return the hex digest (32 characters) of a JSON-serialisable value; the order of mapping keys does not matter."""
    json_text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(json_text.encode()).hexdigest()[:32]


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explain_failed_writes(path: Path) -> Iterator[None]:
    """Explain a write that fails; other errors of the system (a file not found, no network) pass as they are.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except Exception as write_error:
        if not is_disk_full(write_error) and not (
            isinstance(write_error, OSError) and write_error.errno in WRITE_FAILURES
        ):
            raise
        failure_reason = (write_error.strerror if isinstance(write_error, OSError) else None) or write_error
        raise UserError(
            f"cannot write {path}: {failure_reason}. Free some space or permit writing there, "
            "or place the run elsewhere with run_dir=, the cache with cache.path= and the cache of read files with the "
            "environment variable HF_DATASETS_CACHE"
        ) from write_error


def refuse_address(folder: Path | str) -> None:
    """Refuse an address of another machine as a folder for results, which would become a folder called `s3:`.

    Raises:
        UserError: it is such an address.
    """
    if _ADDRESS.search(str(folder)):
        raise UserError(
            f"{folder} is an address, and results are written to a folder of this machine; give a folder, such as that "
            "where the store is mounted, and copy the results from there"
        )


def temporary_path(path: Path) -> Path:
    """Return a name beside `path` that nobody else uses, and nobody reads; it tells which process made it."""
    owner = f"{_host_digest()}-{os.getpid()}-{_start_of_process(os.getpid()) or 0}"
    return path.with_name(f"{path.name}.{owner}-{uuid.uuid4().hex[:8]}{PART_SUFFIX}")


@cache
def _host_digest() -> str:
    """Return eight hex digits of what shares its process numbers: a machine since its start, or a container."""
    host_facts = [platform.node()]
    with suppress(OSError):
        host_facts += [
            Path("/proc/sys/kernel/random/boot_id").read_text("utf-8"),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    return hashlib.sha256("\n".join(host_facts).encode()).hexdigest()[:8]


def _start_of_process(process_id: int) -> int | None:
    """Return when a process of this machine started, in the system's ticks; None where it has ended.

    Zero where the system does not say when: then a number that is in use counts as the process that had it.
    """
    if Path("/proc/self/stat").is_file():
        try:
            status_fields = Path(f"/proc/{process_id}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if status_fields[0] in (b"Z", b"X") else int(status_fields[19])
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return 0
    return 0


def list_leftovers(folder: Path) -> list[Path]:
    """List files and folders directly in `folder` that a killed process was writing or deleting.

    Those of a process that still runs are no leftovers. Where the process is another machine's, or unknown, they are
    once nobody has touched them for a day.
    """
    try:
        part_paths = sorted(path for path in folder.iterdir() if path.suffix == PART_SUFFIX)
    except OSError:
        return []
    return [part_path for part_path in part_paths if _is_leftover(part_path)]


def _is_leftover(part_path: Path) -> bool:
    name_match = _PART_NAME.fullmatch(part_path.name)
    if name_match is None:
        return False
    if name_match["host"] == _host_digest():
        return _start_of_process(int(name_match["process"])) != int(name_match["start"])
    return is_long_untouched(part_path)


def is_long_untouched(path: Path) -> bool:
    """Return True where a file, or a folder and all that is in it, was written more than a day ago."""
    try:
        last_touched = max(file_path.lstat().st_mtime for file_path in [path, *path.rglob("*")])
    except OSError:  # somebody is deleting it
        return False
    return last_touched < time.time() - IN_USE_SECONDS


def clear_leftovers(folder: Path) -> None:
    """Delete what killed processes left half written, or half deleted, directly in `folder`."""
    for leftover_path in list_leftovers(folder):
        logger.info("deleting %s, which a killed process left", leftover_path)
        _delete_quietly(leftover_path)


def delete_symbolic_link(path: Path) -> None:
    """Delete a symbolic link, so that nothing is written where it leads; anything else stays."""
    if path.is_symlink():
        with explain_failed_writes(path):
            path.unlink(missing_ok=True)


def delete_path(path: Path) -> None:
    """Delete a file, a folder, or a symbolic link itself and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _delete_quietly(path: Path) -> None:
    """Delete what is at a temporary name; a failure is logged, since it must not hide why the work ended."""
    try:
        delete_path(path)
    except OSError as delete_error:
        logger.warning("cannot delete %s: %s", path, delete_error)


def discard_folder(folder: Path) -> None:
    """Delete a folder that others may look at; it is gone at once, not file by file.

    A symbolic link is deleted itself, not what it leads to.
    """
    if not os.path.lexists(folder):  # a read-only file system would refuse even to rename nothing
        return
    discarded_path = temporary_path(folder)
    try:
        folder.rename(discarded_path)
    except FileNotFoundError:
        return
    _delete_quietly(discarded_path)


def discard_quietly(folder: Path) -> None:
    """Delete a folder as `discard_folder` does; a failure is logged, since it must not hide why the work ended."""
    try:
        discard_folder(folder)
    except OSError as delete_error:
        logger.warning("cannot delete %s: %s", folder, delete_error)


@contextmanager
def atomic_path(path: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` (file or folder) and rename it into place when the block succeeds.

    Args:
        path: where the result will stand.
        keep_existing: leave a folder that is there by then as it is; another process made it and may be reading it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    part_path = temporary_path(path)
    try:
        with explain_failed_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(path.parent)
            yield part_path
            if path.is_dir() and keep_existing:
                return
            if path.is_dir() or path.is_symlink():
                discard_folder(path)
            part_path.replace(path)
    finally:
        if os.path.lexists(part_path):
            _delete_quietly(part_path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, whole or not at all."""
    with atomic_path(path) as part_path:
        part_path.write_text(to_readable_json(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def link_file(source_path: Path, target_path: Path) -> None:
    """Put a file at a second place, without a second copy where the file system can.

    A hard link, so that the run folder keeps its file whatever becomes of the cache.
    """
    with atomic_path(target_path) as part_path:
        try:
            os.link(source_path, part_path)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source_path, part_path)
