"""Looking after the store: what is in it, why a result was not found again, is it whole, what can go.

What a killed run would go on from is listed as `interrupted` and pruned as any result. What a killed process was
writing or deleting is no result; whatever rule is given, `prune` deletes it once nobody has touched it for a day.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gradfiltering.errors import UserError
from gradfiltering.runs.cache_record import RECORD_FILE as RECORD
from gradfiltering.runs.cache_record import find_damaged_files as damaged_files
from gradfiltering.runs.cache_record import list_result_files as files_of
from gradfiltering.runs.cache_record import read_record
from gradfiltering.runs.files import PART_SUFFIX as PART
from gradfiltering.runs.files import discard_folder as discard

GIB = 2**30
IN_USE_SECONDS = 24 * 3600  # a half-written file touched since then may be somebody's


@dataclass(frozen=True)
class Entry:
    """A finished result.

    Attributes:
        path: its folder.
        about: what `artifact.json` says.
        bytes: of its files.
        linked: whether a run folder links to one of its files.
    """

    path: Path
    about: dict[str, Any]
    bytes: int
    linked: bool

    @property
    def made(self) -> datetime:
        """When it was made."""
        return datetime.fromisoformat(self.about["made"])


def entries(root: Path) -> list[Entry]:
    """All finished results, the oldest first, and what interrupted runs left to go on from."""
    found = []
    for record in root.glob(f"*/*/{RECORD}"):
        folder = record.parent
        if folder.suffix == PART:
            continue
        stats = [(folder / name).stat() for name in files_of(folder)]
        size, linked = sum(stat.st_size for stat in stats), any(stat.st_nlink > 1 for stat in stats)
        found.append(Entry(folder, _about(record), size, linked))
    return sorted(found, key=lambda entry: (entry.made, entry.path))


def _about(record: Path) -> dict[str, Any]:
    """What a record says; of a broken one, what its place does."""
    made = datetime.fromtimestamp(record.stat().st_mtime, UTC).isoformat(timespec="seconds")
    known = {"stage": record.parent.parent.name, "key": {}, "seconds": 0.0, "made": made, "files": {}}
    try:
        return read_record(record.parent) or known
    except UserError:
        return known


def leftovers(root: Path) -> list[Path]:
    """Files and folders that a killed process was writing or deleting, and nobody has touched for long."""
    limit = time.time() - IN_USE_SECONDS
    parts = sorted(root.glob(f"*/*{PART}"))
    return [part for part in parts if max(one.lstat().st_mtime for one in [part, *part.rglob("*")]) < limit]


def differences(one: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Fields in which two keys differ: (path of the field, value, other value)."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            yield from differences(one.get(name), other.get(name), f"{place}.{name}" if place else name)
    elif one != other:
        yield place, one, other


def damaged(entry: Entry) -> list[str]:
    """Files that are not what they were when the result was made."""
    try:
        read_record(entry.path)
    except UserError:
        return [RECORD]
    return damaged_files(entry.path, entry.about["files"])


def to_prune(found: list[Entry], older_than: float | None, larger_than: float | None, unlinked: bool) -> list[Entry]:
    """What a rule lets go: too old; the oldest beyond a size; no run folder links to it.

    Args:
        found: results, the oldest first.
        older_than: days.
        larger_than: GiB the store may hold.
        unlinked: of these, or of all if neither is given, only results that no run links to.
    """
    limit = None if older_than is None else datetime.now(UTC) - timedelta(days=older_than)
    total, chosen = sum(entry.bytes for entry in found), []
    for entry in found:
        old = limit is not None and entry.made < limit
        big = larger_than is not None and total > larger_than * GIB
        if (old or big or (limit is None and larger_than is None)) and not (unlinked and entry.linked):
            chosen.append(entry)
            total -= entry.bytes
    return chosen


def show_list(root: Path, console: Console) -> None:
    """One line a result."""
    table = Table("stage", "result", "made", "seconds", "MiB", "linked")
    for entry in entries(root):
        size, seconds = f"{entry.bytes / 2**20:.1f}", f"{entry.about['seconds']:.1f}"
        made = entry.made.strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.about["stage"], entry.path.name[:12], made, seconds, size, "yes" if entry.linked else "")
    console.print(table)


def show_why(root: Path, result: str, console: Console) -> None:
    """How a result's key differs from those nearest to it in its stage."""
    found = entries(root)
    named = [entry for entry in found if entry.path.name.startswith(result)]
    if len(named) != 1:
        raise SystemExit(f"{len(named)} results in {root} begin with {result}; see: gradfiltering cache list")
    (entry,) = named
    others = [one for one in found if one.about["stage"] == entry.about["stage"] and one.path != entry.path]
    compared = [(list(differences(one.about["key"], entry.about["key"])), one) for one in others]
    for changed, one in sorted(compared, key=lambda pair: len(pair[0]))[:3]:
        console.print(
            f"[bold]{entry.about['stage']} {entry.path.name[:12]}[/bold] is not {one.path.name[:12]} because:"
        )
        for field, before, after in changed:
            console.print(f"  {field}: {before} there, {after} here", markup=False)
    if not compared:
        console.print(f"{entry.about['stage']} {entry.path.name[:12]} is the only result of its stage")


def prune_all(root: Path, found: list[Entry], dry_run: bool, console: Console) -> None:
    """Deletes results and what killed processes left behind, or says what would go."""
    for entry in found:
        console.print(f"{entry.about['stage']} {entry.path.name[:12]} {entry.bytes / 2**20:.1f} MiB")
        if not dry_run:
            discard(entry.path)
    left = leftovers(root)
    for path in left:
        console.print(f"half-written {path.relative_to(root)}")
        if not dry_run:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = "would be deleted" if dry_run else "deleted"
    console.print(f"{len(found)} results, {sum(entry.bytes for entry in found) / GIB:.2f} GiB {done}")
    if left:
        console.print(f"{len(left)} half-written files and folders {done}")


def verify(root: Path, console: Console) -> None:
    """Says which results are damaged; exit status 1 if any is."""
    found = entries(root)
    bad = {entry.path: damaged(entry) for entry in found}
    for path, files in bad.items():
        if files:
            console.print(f"{path}: {', '.join(files)} changed since it was made; delete the folder to make it anew")
    count = sum(1 for files in bad.values() if files)
    console.print(f"{len(found) - count} of {len(found)} results are whole")
    if count:
        raise SystemExit(1)
