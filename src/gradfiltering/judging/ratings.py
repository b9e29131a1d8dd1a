"""People's ratings of pairs of answers: an SQLite file, and sheets for other tools."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from gradfiltering.errors import UserError
from gradfiltering.judging.sqlite_table import SqliteTable
from gradfiltering.runs.files import atomic_path
from gradfiltering.seeding import derive_seed

Choice = Literal["left", "right", "tie"]  # as a rater sees the pair
Label = Literal["first", "second", "tie"]  # as the pair is stored
COLUMNS = ("pair", "rater", "prompt_set", "prompt_id", "question", "left", "right", "choice")


@dataclass(frozen=True)
class AnswerPair:
    """Two answers without their models' names.

    Attributes:
        prompt_set: the prompt's set.
        prompt_id: its name within the set.
        question: the question as it was put to the models.
        first: one answer.
        second: the other answer.
    """

    prompt_set: str
    prompt_id: str
    question: str
    first: str
    second: str

    @cached_property
    def pair_id(self) -> str:
        """A digest of all fields."""
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:24]


def is_swapped(seed: int, rater: str, pair_id: str) -> bool:
    """Decide if a rater sees the second answer on the left; the same after a restart."""
    return derive_seed(seed, "side", rater, pair_id) % 2 == 1


def order_for_rater(seed: int, rater: str, pairs: Sequence[AnswerPair]) -> list[AnswerPair]:
    """Put the pairs into the order in which a rater sees them."""
    return sorted(pairs, key=lambda pair: derive_seed(seed, "order", rater, pair.pair_id))


class RatingStore:
    """Ratings by pair and rater; each is on the disk before the next pair is shown.

    Args:
        path: the SQLite file; made when it is not there.
        seed: seed of the sides and orders in which raters see the pairs.
    """

    def __init__(self, path: Path, seed: int):
        self.path = path
        self.seed = seed
        definition = (
            "ratings (pair TEXT, rater TEXT, label TEXT NOT NULL, "
            "at TEXT DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (pair, rater))"
        )
        self._table = SqliteTable(path, definition, "ratings", "Name another file of ratings")

    def add_choice(self, pair_id: str, rater: str, choice: Choice) -> None:
        """Store a rater's choice on the page."""
        label: Label = "tie"
        if choice != "tie":
            swapped = is_swapped(self.seed, rater, pair_id)
            label = "second" if (choice == "left") == swapped else "first"
        self.add_all([(pair_id, rater, label)])

    def add_all(self, ratings: Sequence[tuple[str, str, Label]]) -> None:
        """Store (pair id, rater, label) on the disk. The first rating of a pair stands."""
        self._table.insert("INSERT OR IGNORE INTO ratings (pair, rater, label) VALUES (?, ?, ?)", ratings)

    def labels_by_rater(self, pairs: Sequence[AnswerPair] | None) -> dict[str, dict[str, str]]:
        """Return labels of these pairs (None: of all) by rater and pair id."""
        pair_ids = None if pairs is None else {pair.pair_id for pair in pairs}
        labels: dict[str, dict[str, str]] = {}
        rows = self._table.select("SELECT rater, pair, label FROM ratings ORDER BY rater, rowid")
        for rater, pair_id, label in rows:
            if pair_ids is None or pair_id in pair_ids:
                labels.setdefault(rater, {})[pair_id] = label
        return labels

    def close(self) -> None:
        """Close the file."""
        self._table.close()


def majority_label(labels: Sequence[str]) -> Label:
    """Return the label most raters gave; a tie where no answer got more votes than the rest."""
    ranked = Counter(labels).most_common()
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return "tie"
    return next(label for label in get_args(Label) if label == ranked[0][0])


def write_sheet(path: Path, pairs: Sequence[AnswerPair], store: RatingStore, rater: str) -> None:
    """Write a rater's sheet for other tools: blind, in the rater's own sides and order.

    The column `choice` takes left, right or tie; choices made already stand in it.
    """
    labels = store.labels_by_rater(pairs).get(rater, {})
    with (
        atomic_path(path) as part_path,
        part_path.open("w", encoding="utf-8", errors="replace", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for pair in order_for_rater(store.seed, rater, pairs):
            left, right = ("first", pair.first), ("second", pair.second)
            if is_swapped(store.seed, rater, pair.pair_id):
                left, right = right, left
            choices = {left[0]: "left", right[0]: "right", "tie": "tie"}
            choice = choices.get(labels.get(pair.pair_id, ""), "")
            prompt = (pair.prompt_set, pair.prompt_id, pair.question)
            writer.writerow((pair.pair_id, rater, *prompt, left[1], right[1], choice))


def import_sheet(path: Path, pairs: Sequence[AnswerPair], store: RatingStore) -> int:
    """Take over the choices of a sheet.

    Which answer stood on the left is read from the sheet itself.

    Returns:
        The number of rows with a choice.

    Raises:
        UserError: a row is of no known pair, has no rater or an unknown choice; nothing of the
            sheet is taken over then.
    """
    pairs_by_id = {pair.pair_id: pair for pair in pairs}
    ratings: list[tuple[str, str, Label]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            present = rows.fieldnames or ()
            if missing := [n for n in ("pair", "rater", "left", "choice") if n not in present]:
                raise UserError(f"{path}: no column {missing[0]!r}; it needs pair, rater, left and choice")
            for row_number, row in enumerate(rows, start=1):
                if label := _read_label(f"{path}, row {row_number}", row, pairs_by_id):
                    ratings.append((row["pair"], row["rater"].strip(), label))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    store.add_all(ratings)
    return len(ratings)


def _read_label(location: str, row: Mapping[str, str | None], pairs_by_id: Mapping[str, AnswerPair]) -> Label | None:
    """Read the answer that a sheet's row prefers; None where nothing was chosen."""
    choice = (row["choice"] or "").strip().lower()
    if not choice:
        return None
    if choice not in get_args(Choice):
        raise UserError(f"{location}: choice is {choice!r}; write left, right or tie")
    pair = pairs_by_id.get(row["pair"] or "")
    if pair is None or not (row["rater"] or "").strip():
        raise UserError(f"{location}: pair {row['pair']!r} is not of this run, or the rater is missing")
    if choice == "tie":
        return "tie"
    left = _normalize_text(row["left"] or "")
    first, second = _normalize_text(pair.first), _normalize_text(pair.second)
    if left not in (first, second):
        raise UserError(f"{location}: the left answer is none of this pair's; was the sheet's text changed?")
    return "first" if (left == first) == (choice == "left") else "second"


def _normalize_text(text: str) -> str:
    """Reduce a text to what survives a spreadsheet."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
