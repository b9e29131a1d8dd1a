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

Choice = Literal["left", "right", "tie", "bad"]  # as a rater sees the pair; bad: both answers are
Label = Literal["first", "second", "tie"]  # as the pair is stored
# A spreadsheet takes a cell that begins with one of these for a formula; an apostrophe before it makes it text.
FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
BOTH_BAD: Literal["both_bad"] = "both_bad"  # as a rating is stored; for every comparison it is a tie
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
        pair_content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(pair_content.encode()).hexdigest()[:24]


def is_swapped(seed: int, rater: str, pair_id: str) -> bool:
    """Decide if a rater sees the second answer on the left; the same after a restart."""
    return derive_seed(seed, "side", rater, pair_id) % 2 == 1


def order_for_rater(seed: int, rater: str, answer_pairs: Sequence[AnswerPair]) -> list[AnswerPair]:
    """Put the pairs into the order in which a rater sees them."""
    return sorted(answer_pairs, key=lambda answer_pair: derive_seed(seed, "order", rater, answer_pair.pair_id))


class RatingStore:
    """Ratings by pair and rater; each is on the disk before the next pair is shown.

    Args:
        database_path: the SQLite file; made when it is not there.
        seed: seed of the sides and orders in which raters see the pairs.
    """

    def __init__(self, database_path: Path, seed: int):
        self.path = database_path
        self.seed = seed
        column_definitions = (
            "pair TEXT, rater TEXT, label TEXT NOT NULL, at TEXT DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (pair, rater)"
        )
        remedy = "Name another file of ratings"
        self._table = SqliteTable(database_path, "ratings", column_definitions, ["pair", "rater", "label"], remedy)

    def check_writable(self) -> None:
        """Raise a UserError where ratings could not be stored; called before any is asked for."""
        self._table.check_writable()

    def add_choice(self, pair_id: str, rater: str, rater_choice: Choice) -> None:
        """Store a rater's choice on the page."""
        pair_label: Label | Literal["both_bad"] = BOTH_BAD if rater_choice == "bad" else "tie"
        if rater_choice in ("left", "right"):
            sides_swapped = is_swapped(self.seed, rater, pair_id)
            pair_label = "second" if (rater_choice == "left") == sides_swapped else "first"
        self.add_all([(pair_id, rater, pair_label)])

    def take_back(self, pair_id: str, rater: str) -> None:
        """Delete a rater's rating of a pair."""
        self._table.delete("pair = ? AND rater = ?", [pair_id, rater])

    def count_both_bad(self, answer_pairs: Sequence[AnswerPair]) -> int:
        """Count the ratings by which both answers of one of these pairs are bad."""
        pair_ids = {answer_pair.pair_id for answer_pair in answer_pairs}
        rating_rows = self._table.select("SELECT pair FROM ratings WHERE label = ?", [BOTH_BAD])
        return sum(pair_id in pair_ids for (pair_id,) in rating_rows)

    def add_all(self, new_ratings: Sequence[tuple[str, str, Label | Literal["both_bad"]]]) -> None:
        """Store (pair id, rater, label) on the disk. The first rating of a pair stands."""
        self._table.insert(new_ratings)

    def labels_by_rater(self, answer_pairs: Sequence[AnswerPair] | None) -> dict[str, dict[str, str]]:
        """Return labels of these pairs (None: of all) by rater and pair id, in the order of the ratings.

        Two bad answers are a tie.
        """
        pair_ids = None if answer_pairs is None else {answer_pair.pair_id for answer_pair in answer_pairs}
        pair_labels: dict[str, dict[str, str]] = {}
        rating_rows = self._table.select("SELECT rater, pair, label FROM ratings ORDER BY rater, rowid")
        for rater, pair_id, pair_label in rating_rows:
            if pair_ids is None or pair_id in pair_ids:
                pair_labels.setdefault(rater, {})[pair_id] = "tie" if pair_label == BOTH_BAD else pair_label
        return pair_labels

    def close(self) -> None:
        """Close the file."""
        self._table.close()


def majority_label(pair_labels: Sequence[str]) -> Label:
    """Return the label most raters gave; a tie where no answer got more votes than the rest."""
    ranked_labels = Counter(pair_labels).most_common()
    if not ranked_labels or (len(ranked_labels) > 1 and ranked_labels[0][1] == ranked_labels[1][1]):
        return "tie"
    return next(pair_label for pair_label in get_args(Label) if pair_label == ranked_labels[0][0])


def write_sheet(sheet_path: Path, answer_pairs: Sequence[AnswerPair], rating_store: RatingStore, rater: str) -> None:
    """Write a rater's sheet for other tools: blind, in the rater's own sides and order.

    The column `choice` takes left, right, tie or bad (both are, which counts as a tie); choices made already stand in
    it, of two bad answers as a tie. Texts that a spreadsheet would run as formulas have an apostrophe before them (see
    `escape_formula`).
    """
    pair_labels = rating_store.labels_by_rater(answer_pairs).get(rater, {})
    with (
        atomic_path(sheet_path) as part_path,
        part_path.open("w", encoding="utf-8", errors="replace", newline="") as sheet_stream,
    ):
        sheet_writer = csv.writer(sheet_stream)
        sheet_writer.writerow(COLUMNS)
        for answer_pair in order_for_rater(rating_store.seed, rater, answer_pairs):
            left_side, right_side = ("first", answer_pair.first), ("second", answer_pair.second)
            if is_swapped(rating_store.seed, rater, answer_pair.pair_id):
                left_side, right_side = right_side, left_side
            side_choices = {left_side[0]: "left", right_side[0]: "right", "tie": "tie"}
            rater_choice = side_choices.get(pair_labels.get(answer_pair.pair_id, ""), "")
            prompt_cells = (answer_pair.prompt_set, answer_pair.prompt_id, answer_pair.question)
            text_cells = (rater, *prompt_cells, left_side[1], right_side[1])
            sheet_writer.writerow((answer_pair.pair_id, *map(escape_formula, text_cells), rater_choice))


def import_sheet(sheet_path: Path, answer_pairs: Sequence[AnswerPair], rating_store: RatingStore) -> int:
    """Take over the choices of a sheet.

    Which answer stood on the left is read from the sheet itself.

    Returns:
        The number of rows with a choice.

    Raises:
        UserError: a row is of no known pair, has no rater or an unknown choice; nothing of the
            sheet is taken over then.
    """
    pairs_by_id = {answer_pair.pair_id: answer_pair for answer_pair in answer_pairs}
    new_ratings: list[tuple[str, str, Label | Literal["both_bad"]]] = []
    try:
        with sheet_path.open(encoding="utf-8-sig", newline="") as sheet_stream:
            sheet_rows = csv.DictReader(sheet_stream)
            present_columns = sheet_rows.fieldnames or ()
            if missing_columns := [n for n in ("pair", "rater", "left", "choice") if n not in present_columns]:
                raise UserError(
                    f"{sheet_path}: no column {missing_columns[0]!r}; it needs pair, rater, left and choice"
                )
            for row_number, sheet_row in enumerate(sheet_rows, start=1):
                if pair_label := _read_label(f"{sheet_path}, row {row_number}", sheet_row, pairs_by_id):
                    rater = restore_formula(sheet_row["rater"]).strip()
                    new_ratings.append((sheet_row["pair"], rater, pair_label))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{sheet_path}: cannot be read ({error})") from error
    rating_store.add_all(new_ratings)
    return len(new_ratings)


def escape_formula(cell_text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would run, and before one that begins like an escaped one."""
    return f"'{cell_text}" if cell_text.lstrip("' ").startswith(FORMULA_STARTS) else cell_text


def restore_formula(cell_text: str) -> str:
    """Return the text that `escape_formula` was given, or that a spreadsheet without the apostrophe saved."""
    return cell_text[1:] if cell_text.startswith("'") and escape_formula(cell_text) != cell_text else cell_text


def _read_label(
    row_location: str, sheet_row: Mapping[str, str | None], pairs_by_id: Mapping[str, AnswerPair]
) -> Label | Literal["both_bad"] | None:
    """Read the answer that a sheet's row prefers; None where nothing was chosen."""
    rater_choice = (sheet_row["choice"] or "").strip().lower()
    if not rater_choice:
        return None
    if rater_choice not in get_args(Choice):
        raise UserError(f"{row_location}: choice is {rater_choice!r}; write left, right, tie or bad")
    answer_pair = pairs_by_id.get(sheet_row["pair"] or "")
    if answer_pair is None or not (sheet_row["rater"] or "").strip():
        raise UserError(f"{row_location}: pair {sheet_row['pair']!r} is not of this run, or the rater is missing")
    if rater_choice in ("tie", "bad"):
        return "tie" if rater_choice == "tie" else BOTH_BAD
    left_side = _normalize_text(restore_formula(sheet_row["left"] or ""))
    first_text, second_text = _normalize_text(answer_pair.first), _normalize_text(answer_pair.second)
    if left_side not in (first_text, second_text):
        raise UserError(f"{row_location}: the left answer is none of this pair's; was the sheet's text changed?")
    return "first" if (left_side == first_text) == (rater_choice == "left") else "second"


def _normalize_text(text: str) -> str:
    """Reduce a text to what survives a spreadsheet."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
