"""The record beside a cached result, `artifact.json`: its key, the versions that made it, and its files' checksums."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.runs.files import file_checksum, hash_key, link_file

RECORD_FILE, CHECKSUM = "artifact.json", "checksum"
RECORDED_PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets", "sacrebleu", "numpy", "pyarrow")


@cache
def _installed_versions() -> dict[str, str]:
    return {package_name: version(package_name) for package_name in RECORDED_PACKAGES}


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result's bits."""
    return dict(_installed_versions())


def write_record(result_folder: Path, result_kind: str, cache_key: Mapping[str, Any], seconds: float) -> None:
    """Write the record of a result, with checksums of its files and of the record itself."""
    result_record = {
        "stage": result_kind,
        "key": cache_key,
        "versions": package_versions(),
        "seconds": seconds,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {
            file_name: file_checksum(result_folder / file_name) for file_name in list_result_files(result_folder)
        },
    }
    signed_record = {**result_record, CHECKSUM: hash_key(result_record)}
    (result_folder / RECORD_FILE).write_text(json.dumps(signed_record, indent=2), encoding="utf-8")


def read_record(result_folder: Path) -> dict[str, Any] | None:
    """Read the record of a result; None where there is none, or one of an early version without its checksum.

    Raises:
        UserError: the record is not what was written.
    """
    record_path = result_folder / RECORD_FILE
    try:
        result_record: dict[str, Any] = json.loads(record_path.read_bytes())
        file_digest = result_record.pop(CHECKSUM, None)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        raise damage_error(record_path) from None
    if file_digest is None:
        return None
    if file_digest != hash_key(result_record):
        raise damage_error(record_path)
    return result_record


def list_result_files(result_folder: Path) -> list[str]:
    """List the files of a result, relative to its folder, without the record."""
    file_paths = sorted(
        file_path for file_path in result_folder.rglob("*") if file_path.is_file() and file_path.name != RECORD_FILE
    )
    return [file_path.relative_to(result_folder).as_posix() for file_path in file_paths]


def find_damaged_files(
    result_folder: Path, checksums: Mapping[str, str], file_digest: Callable[[Path], str] = file_checksum
) -> list[str]:
    """Name the files that are gone, or are not what they were when `checksums` (name -> checksum) was recorded."""
    present_files = set(list_result_files(result_folder))
    return sorted(
        file_name
        for file_name, recorded_checksum in checksums.items()
        if file_name not in present_files or file_digest(result_folder / file_name) != recorded_checksum
    )


def checksum_once(file_path: Path) -> str:
    """Return the checksum of a file, computed once a process as long as nobody writes to the file."""
    file_status = file_path.stat()
    return _checksum_of_state(file_path, file_status.st_ino, file_status.st_size, file_status.st_mtime_ns)


@cache
def _checksum_of_state(file_path: Path, *state: int) -> str:
    return file_checksum(file_path)


def damage_error(file_path: Path) -> UserError:
    """Return the error for a file of a result that is not what was written."""
    result_folder = next(
        (result_folder for result_folder in file_path.parents if (result_folder / RECORD_FILE).is_file()),
        file_path.parent,
    )
    return UserError(
        f"{file_path} is not what was written there: the disk is failing, or somebody changed the file (a run "
        f"folder may link to it). `gradfiltering cache verify` looks for more in {result_folder.parent}"
    )


def link_result(source_path: Path, target_path: Path) -> None:
    """Put a cached file, or the files of a cached folder, at a place in a run folder."""
    if source_path.is_dir():
        for file_name in list_result_files(source_path):
            link_file(source_path / file_name, target_path / file_name)
    else:
        link_file(source_path, target_path)
