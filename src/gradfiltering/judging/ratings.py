"""What people said about pairs of answers: an SQLite file, each rating on the disk before the next pair is shown."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from gradfiltering.errors import UserError
from gradfiltering.judging.kept import KeptRows
from gradfiltering.runs.cache import atomic_path
from gradfiltering.seeding import derive_seed

Selection = Literal["left", "right", "tie"]
Label = Literal["first", "second", "tie"]
COLUMNS = ("pair", "rater", "prompt_set", "prompt_id", "question", "left", "right", "choice")


@dataclass(frozen=True)
class Pair:
    """Two answers without their models' names.

    Attributes:
        prompt_set: the prompt's set.
        prompt_id: its name within the set.
        question: as it was asked.
        first: one answer.
        second: the other.
    """

    prompt_set: str
    prompt_id: str
    question: str
    first: str
    second: str

    @property
    def name(self) -> str:
        """A digest of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]


def swapped(seed: int, rater: str, pair: str) -> bool:
    """Whether this rater sees the second answer on the left: by chance, and the same after a restart."""
    return derive_seed(seed, "side", rater, pair) % 2 == 1


def seen_order(seed: int, rater: str, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in the order this rater sees them."""
    return sorted(pairs, key=lambda pair: derive_seed(seed, "order", rater, pair.name))


class RatingStore:
    """Ratings by pair and rater.

    Args:
        path: the SQLite file; made when it is not there.
        seed: of the sides and orders in which raters see the pairs.
    """

    def __init__(self, path: Path, seed: int):
        self.path = path
        self.seed = seed
        table = (
            "ratings (pair TEXT, rater TEXT, label TEXT NOT NULL, at TEXT DEFAULT CURRENT_TIMESTAMP, "
            "PRIMARY KEY (pair, rater))"
        )
        self._rows = KeptRows(path, table, "ratings", "Name another file in judge.ratings")

    def rate(self, pair: str, rater: str, choice: Selection) -> None:
        """Keeps what a rater chose on the page."""
        label: Label = "tie"
        if choice != "tie":
            label = "second" if (choice == "left") == swapped(self.seed, rater, pair) else "first"
        self.keep([(pair, rater, label)])

    def keep(self, ratings: Sequence[tuple[str, str, Label]]) -> None:
        """Keeps (pair, rater, label); they are on the disk when this returns. The first rating of a pair stands."""
        self._rows.insert("INSERT OR IGNORE INTO ratings (pair, rater, label) VALUES (?, ?, ?)", ratings)

    def by_rater(self, pairs: Sequence[Pair] | None) -> dict[str, dict[str, str]]:
        """Labels of these pairs (None: of all) by rater and pair."""
        names = None if pairs is None else {pair.name for pair in pairs}
        table: dict[str, dict[str, str]] = {}
        for rater, pair, label in self._rows.select("SELECT rater, pair, label FROM ratings ORDER BY rater, rowid"):
            if names is None or pair in names:
                table.setdefault(rater, {})[pair] = label
        return table

    def close(self) -> None:
        """Closes the file."""
        self._rows.close()


def majority(labels: Sequence[str]) -> Label:
    """What most raters said; a tie where no answer got more votes than the rest."""
    ranked = Counter(labels).most_common()
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return "tie"
    return next(label for label in get_args(Label) if label == ranked[0][0])


def export_csv(path: Path, pairs: Sequence[Pair], store: RatingStore, rater: str) -> None:
    """A rater's sheet for other tools: blind, with the rater's own sides and order, and choices where there are some.

    The column `choice` takes left, right or tie.
    """
    known = store.by_rater(pairs).get(rater, {})
    with atomic_path(path) as part, part.open("w", encoding="utf-8", errors="replace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for pair in seen_order(store.seed, rater, pairs):
            turned = swapped(store.seed, rater, pair.name)
            sides = [pair.second, pair.first] if turned else [pair.first, pair.second]
            choices = {"first": "right" if turned else "left", "second": "left" if turned else "right", "tie": "tie"}
            choice = choices.get(known.get(pair.name, ""), "")
            writer.writerow([pair.name, rater, pair.prompt_set, pair.prompt_id, pair.question, *sides, choice])


def import_csv(path: Path, pairs: Sequence[Pair], store: RatingStore) -> int:
    """Takes the choices of a sheet over; returns how many rows had one.

    Which answer stood on the left is read from the sheet itself.

    Raises:
        UserError: a row is of no known pair, has no rater or an unknown choice; nothing is taken over then.
    """
    known = {pair.name: pair for pair in pairs}
    found: list[tuple[str, str, Label]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            if missing := [name for name in ("pair", "rater", "left", "choice") if name not in (rows.fieldnames or ())]:
                raise UserError(f"{path}: no column {missing[0]!r}; it needs pair, rater, left and choice")
            for number, row in enumerate(rows, start=1):
                if label := _label(f"{path}, row {number}", row, known):
                    found.append((row["pair"], row["rater"].strip(), label))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    store.keep(found)
    return len(found)


def _label(where: str, row: Mapping[str, str | None], known: Mapping[str, Pair]) -> Label | None:
    """Which answer a sheet's row prefers; None where nothing was chosen."""
    choice = (row["choice"] or "").strip().lower()
    if not choice:
        return None
    if choice not in get_args(Selection):
        raise UserError(f"{where}: choice is {choice!r}; write left, right or tie")
    pair = known.get(row["pair"] or "")
    if pair is None or not (row["rater"] or "").strip():
        raise UserError(f"{where}: pair {row['pair']!r} is not of this run, or the rater is missing")
    if choice == "tie":
        return "tie"
    left = _plain(row["left"] or "")
    if left not in (_plain(pair.first), _plain(pair.second)):
        raise UserError(f"{where}: the left answer is none of this pair's; was the sheet's text changed?")
    return "first" if (left == _plain(pair.first)) == (choice == "left") else "second"


def _plain(text: str) -> str:
    """A text as it survives a spreadsheet."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
