"""Maintenance of the cache: list results, explain why one was not found again, verify, prune.

Resume points of killed runs are listed as `interrupted` and pruned as any result. Files that a killed process was
writing or deleting are no result; whatever rule is given, `prune_entries` deletes them once nobody has touched them for
a day.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gradfiltering.errors import UserError
from gradfiltering.runs.cache_record import RECORD_FILE, find_damaged_files, list_result_files, read_record
from gradfiltering.runs.files import PART_SUFFIX, discard_folder

GIB, MIB = 2**30, 2**20
IN_USE_SECONDS = 24 * 3600  # a half-written file touched since then may be in use
COMPARED_RESULTS = 3  # nearest results of its kind that a result is compared with
DIGITS = 12  # of a result's name on the screen


@dataclass(frozen=True)
class CacheEntry:
    """A finished result.

    Attributes:
        path: its folder.
        record: content of `artifact.json`.
        size_bytes: of its files.
        is_linked: whether a run folder links to one of its files.
    """

    path: Path
    record: dict[str, Any]
    size_bytes: int
    is_linked: bool

    @property
    def kind(self) -> str:
        """The kind of result, a folder of the cache."""
        return str(self.record["stage"])

    @property
    def short_name(self) -> str:
        """Kind and first digits of the name, as they are shown."""
        return f"{self.kind} {self.path.name[:DIGITS]}"

    @property
    def made_at(self) -> datetime:
        """The time it was made."""
        return datetime.fromisoformat(self.record["made"])


def list_entries(cache_folder: Path) -> list[CacheEntry]:
    """List all finished results, the oldest first, and resume points of interrupted runs."""
    entries = []
    for record_path in cache_folder.glob(f"*/*/{RECORD_FILE}"):
        result_folder = record_path.parent
        if result_folder.suffix == PART_SUFFIX:
            continue
        statuses = [(result_folder / name).stat() for name in list_result_files(result_folder)]
        size_bytes = sum(status.st_size for status in statuses)
        is_linked = any(status.st_nlink > 1 for status in statuses)
        entries.append(CacheEntry(result_folder, _read_or_guess_record(record_path), size_bytes, is_linked))
    return sorted(entries, key=lambda entry: (entry.made_at, entry.path))


def _read_or_guess_record(record_path: Path) -> dict[str, Any]:
    """Read a record; guess one from its place where it is broken."""
    modified_at = datetime.fromtimestamp(record_path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    kind = record_path.parent.parent.name
    guessed_record = {"stage": kind, "key": {}, "seconds": 0.0, "made": modified_at, "files": {}}
    try:
        return read_record(record_path.parent) or guessed_record
    except UserError:
        return guessed_record


def list_leftovers(cache_folder: Path) -> list[Path]:
    """List files and folders that a killed process was writing or deleting, if nobody has touched them for a day."""
    oldest_in_use = time.time() - IN_USE_SECONDS
    return [
        part
        for part in sorted(cache_folder.glob(f"*/*{PART_SUFFIX}"))
        if max(path.lstat().st_mtime for path in [part, *part.rglob("*")]) < oldest_in_use
    ]


def compare_keys(first_value: Any, second_value: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields in which two keys differ: (path of the field, first value, second value)."""
    if isinstance(first_value, dict) and isinstance(second_value, dict):
        for name in sorted(first_value.keys() | second_value.keys()):
            nested_field = f"{field}.{name}" if field else name
            yield from compare_keys(first_value.get(name), second_value.get(name), nested_field)
    elif first_value != second_value:
        yield field, first_value, second_value


def damaged_files_of(entry: CacheEntry) -> list[str]:
    """Name the files that are not what they were when the result was made."""
    try:
        read_record(entry.path)
    except UserError:
        return [RECORD_FILE]
    return find_damaged_files(entry.path, entry.record["files"])


def select_prunable(
    entries: Sequence[CacheEntry], older_than: float | None, larger_than: float | None, unlinked: bool
) -> list[CacheEntry]:
    """Select the results that a rule lets go: too old, the oldest beyond a size, or linked to by no run folder.

    Args:
        entries: results, the oldest first.
        older_than: days.
        larger_than: GiB the cache may hold.
        unlinked: of these, or of all if neither is given, only results that no run links to.
    """
    oldest_to_keep = None if older_than is None else datetime.now(UTC) - timedelta(days=older_than)
    any_age_and_size = oldest_to_keep is None and larger_than is None
    total_bytes = sum(entry.size_bytes for entry in entries)
    prunable = []
    for entry in entries:
        too_old = oldest_to_keep is not None and entry.made_at < oldest_to_keep
        too_large = larger_than is not None and total_bytes > larger_than * GIB
        if (too_old or too_large or any_age_and_size) and not (unlinked and entry.is_linked):
            prunable.append(entry)
            total_bytes -= entry.size_bytes
    return prunable


def show_entries(cache_folder: Path, console: Console) -> None:
    """Print one line for each result."""
    table = Table("stage", "result", "made", "seconds", "MiB", "linked")
    for entry in list_entries(cache_folder):
        table.add_row(
            entry.kind,
            entry.path.name[:DIGITS],
            entry.made_at.strftime("%Y-%m-%d %H:%M"),
            f"{entry.record['seconds']:.1f}",
            f"{entry.size_bytes / MIB:.1f}",
            "yes" if entry.is_linked else "",
        )
    console.print(table)


def explain_difference(cache_folder: Path, name_start: str, console: Console) -> None:
    """Print the fields in which a result's key differs from those nearest to it in its kind.

    Raises:
        UserError: no result, or several, have names that begin so.
    """
    entries = list_entries(cache_folder)
    matching_entries = [entry for entry in entries if entry.path.name.startswith(name_start)]
    if len(matching_entries) != 1:
        raise UserError(
            f"{len(matching_entries)} results in {cache_folder} begin with {name_start}; see: gradfiltering cache list"
        )
    (entry,) = matching_entries
    same_kind = [other_entry for other_entry in entries if other_entry.kind == entry.kind and other_entry != entry]
    if not same_kind:
        console.print(f"{entry.short_name} is the only result of its stage")
    differences = [
        (list(compare_keys(similar_entry.record["key"], entry.record["key"])), similar_entry)
        for similar_entry in same_kind
    ]
    for changed_fields, similar_entry in sorted(differences, key=lambda pair: len(pair[0]))[:COMPARED_RESULTS]:
        console.print(f"[bold]{entry.short_name}[/bold] is not {similar_entry.path.name[:DIGITS]} because:")
        for field, similar_value, value in changed_fields:
            console.print(f"  {field}: {similar_value} there, {value} here", markup=False)


def prune_entries(cache_folder: Path, entries: Sequence[CacheEntry], dry_run: bool, console: Console) -> None:
    """Delete results and what killed processes left behind, or print what would be deleted."""
    for entry in entries:
        console.print(f"{entry.short_name} {entry.size_bytes / MIB:.1f} MiB")
        if not dry_run:
            discard_folder(entry.path)
    leftovers = list_leftovers(cache_folder)
    for leftover in leftovers:
        console.print(f"half-written {leftover.relative_to(cache_folder)}")
        if not dry_run:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    outcome = "would be deleted" if dry_run else "deleted"
    total_bytes = sum(entry.size_bytes for entry in entries)
    console.print(f"{len(entries)} results, {total_bytes / GIB:.2f} GiB {outcome}")
    if leftovers:
        console.print(f"{len(leftovers)} half-written files and folders {outcome}")


def verify_entries(cache_folder: Path, console: Console) -> None:
    """Print which results are damaged; exit status 1 if any is."""
    entries = list_entries(cache_folder)
    damaged_count = 0
    for entry in entries:
        damaged_files = damaged_files_of(entry)
        if damaged_files:
            damaged_count += 1
            console.print(
                f"{entry.path}: {', '.join(damaged_files)} changed since it was made; delete the folder to make it anew"
            )
    console.print(f"{len(entries) - damaged_count} of {len(entries)} results are whole")
    if damaged_count:
        raise SystemExit(1)
