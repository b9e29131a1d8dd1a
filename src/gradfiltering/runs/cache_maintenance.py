"""Maintenance of the cache: list results, explain why one was not found again, verify, prune.

Resume points of killed runs are listed as `interrupted` and pruned as any result. Files that a killed process was
writing or deleting are no result; whatever rule is given, `prune_entries` deletes them: at once where the process was
this machine's, else once nobody has touched them for a day.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gradfiltering.errors import UserError
from gradfiltering.runs.cache import RESUME_KIND, ROWS_KIND
from gradfiltering.runs.cache_record import RECORD_FILE, find_damaged_files, list_result_files, read_record
from gradfiltering.runs.files import PART_SUFFIX, delete_path, discard_folder, is_long_untouched, list_leftovers

GIB, MIB = 2**30, 2**20
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
    cache_entries = []
    for record_path in cache_folder.glob(f"*/*/{RECORD_FILE}"):
        result_folder = record_path.parent
        if result_folder.suffix == PART_SUFFIX:
            continue
        file_statuses = [(result_folder / file_name).stat() for file_name in list_result_files(result_folder)]
        size_bytes = sum(file_status.st_size for file_status in file_statuses)
        is_linked = any(file_status.st_nlink > 1 for file_status in file_statuses)
        cache_entries.append(CacheEntry(result_folder, _read_or_guess_record(record_path), size_bytes, is_linked))
    return sorted(cache_entries, key=lambda cache_entry: (cache_entry.made_at, cache_entry.path))


def _read_or_guess_record(record_path: Path) -> dict[str, Any]:
    """Read a record; guess one from its place where it is broken."""
    modified_at = datetime.fromtimestamp(record_path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    kind = record_path.parent.parent.name
    guessed_record = {"stage": kind, "key": {}, "seconds": 0.0, "made": modified_at, "files": {}}
    try:
        return read_record(record_path.parent) or guessed_record
    except UserError:
        return guessed_record


def list_cache_leftovers(cache_folder: Path) -> list[Path]:
    """List files and folders that killed processes were writing or deleting, and rows that no checkpoint names."""
    kind_folders = sorted(path for path in cache_folder.glob("*") if path.is_dir())
    half_written = [leftover_path for kind_folder in kind_folders for leftover_path in list_leftovers(kind_folder)]
    lost_rows = [
        rows_folder
        for rows_folder in sorted((cache_folder / ROWS_KIND).glob("*"))
        if rows_folder.suffix != PART_SUFFIX
        and not (cache_folder / RESUME_KIND / rows_folder.name).is_dir()
        and is_long_untouched(rows_folder)  # else a run may be writing there, and has no checkpoint yet
    ]
    return half_written + lost_rows


def compare_keys(first_value: Any, second_value: Any, field_path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields in which two keys differ: (path of the field, first value, second value)."""
    if isinstance(first_value, dict) and isinstance(second_value, dict):
        for field_name in sorted(first_value.keys() | second_value.keys()):
            nested_field = f"{field_path}.{field_name}" if field_path else field_name
            yield from compare_keys(first_value.get(field_name), second_value.get(field_name), nested_field)
    elif first_value != second_value:
        yield field_path, first_value, second_value


def damaged_files_of(cache_entry: CacheEntry) -> list[str]:
    """Name the files that are not what they were when the result was made."""
    try:
        read_record(cache_entry.path)
    except UserError:
        return [RECORD_FILE]
    return find_damaged_files(cache_entry.path, cache_entry.record["files"])


def select_prunable(
    cache_entries: Sequence[CacheEntry], older_than: float | None, larger_than: float | None, unlinked: bool
) -> list[CacheEntry]:
    """Select the results that a rule lets go: too old, the oldest beyond a size, or linked to by no run folder.

    Args:
        cache_entries: results, the oldest first.
        older_than: days.
        larger_than: GiB the cache may hold.
        unlinked: of these, or of all if neither is given, only results that no run links to.
    """
    oldest_to_keep = None if older_than is None else datetime.now(UTC) - timedelta(days=older_than)
    any_age_and_size = oldest_to_keep is None and larger_than is None
    total_bytes = sum(cache_entry.size_bytes for cache_entry in cache_entries)
    prunable_entries = []
    for cache_entry in cache_entries:
        too_old = oldest_to_keep is not None and cache_entry.made_at < oldest_to_keep
        too_large = larger_than is not None and total_bytes > larger_than * GIB
        if (too_old or too_large or any_age_and_size) and not (unlinked and cache_entry.is_linked):
            prunable_entries.append(cache_entry)
            total_bytes -= cache_entry.size_bytes
    return prunable_entries


def show_entries(cache_folder: Path, output_console: Console) -> None:
    """Print one line for each result."""
    result_table = Table("kind", "result", "made", "seconds", "MiB", "linked")
    for cache_entry in list_entries(cache_folder):
        result_table.add_row(
            cache_entry.kind,
            cache_entry.path.name[:DIGITS],
            cache_entry.made_at.strftime("%Y-%m-%d %H:%M"),
            f"{cache_entry.record['seconds']:.1f}",
            f"{cache_entry.size_bytes / MIB:.1f}",
            "yes" if cache_entry.is_linked else "",
        )
    output_console.print(result_table)


def explain_difference(cache_folder: Path, name_start: str, output_console: Console) -> None:
    """Print the fields in which a result's key differs from those nearest to it in its kind.

    Raises:
        UserError: no result, or several, have names that begin so.
    """
    cache_entries = list_entries(cache_folder)
    matching_entries = [cache_entry for cache_entry in cache_entries if cache_entry.path.name.startswith(name_start)]
    if len(matching_entries) != 1:
        raise UserError(
            f"{len(matching_entries)} results in {cache_folder} begin with {name_start}; see: gradfiltering cache list"
        )
    (cache_entry,) = matching_entries
    same_kind = [
        other_entry
        for other_entry in cache_entries
        if other_entry.kind == cache_entry.kind and other_entry != cache_entry
    ]
    if not same_kind:
        output_console.print(f"{cache_entry.short_name} is the only result of its kind")
    key_differences = [
        (list(compare_keys(similar_entry.record["key"], cache_entry.record["key"])), similar_entry)
        for similar_entry in same_kind
    ]
    for changed_fields, similar_entry in sorted(key_differences, key=lambda pair: len(pair[0]))[:COMPARED_RESULTS]:
        output_console.print(
            f"[bold]{cache_entry.short_name}[/bold] is not {similar_entry.path.name[:DIGITS]} because:"
        )
        for field_path, similar_value, own_value in changed_fields:
            output_console.print(f"  {field_path}: {similar_value} there, {own_value} here", markup=False)


def prune_entries(
    cache_folder: Path, cache_entries: Sequence[CacheEntry], dry_run: bool, output_console: Console
) -> None:
    """Delete results and what killed processes left behind, or print what would be deleted."""
    for cache_entry in cache_entries:
        output_console.print(f"{cache_entry.short_name} {cache_entry.size_bytes / MIB:.1f} MiB")
        if not dry_run:
            discard_folder(cache_entry.path)
    leftover_paths = list_cache_leftovers(cache_folder)
    for leftover_path in leftover_paths:
        output_console.print(f"half-written {leftover_path.relative_to(cache_folder)}")
        if not dry_run:
            delete_path(leftover_path)
    outcome_words = "would be deleted" if dry_run else "deleted"
    total_bytes = sum(cache_entry.size_bytes for cache_entry in cache_entries)
    output_console.print(f"{len(cache_entries)} results, {total_bytes / GIB:.2f} GiB {outcome_words}")
    if leftover_paths:
        output_console.print(f"{len(leftover_paths)} half-written files and folders {outcome_words}")


def verify_entries(cache_folder: Path, output_console: Console) -> None:
    """Print which results are damaged; exit status 1 if any is."""
    cache_entries = list_entries(cache_folder)
    damaged_count = 0
    for cache_entry in cache_entries:
        damaged_files = damaged_files_of(cache_entry)
        if damaged_files:
            damaged_count += 1
            output_console.print(
                f"{cache_entry.path}: {', '.join(damaged_files)} changed since it was made; "
                "delete the folder to make it anew"
            )
    output_console.print(f"{len(cache_entries) - damaged_count} of {len(cache_entries)} results are whole")
    if damaged_count:
        raise SystemExit(1)
