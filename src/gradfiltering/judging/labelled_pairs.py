"""Pairs of answers with a known preference, to hold a judge against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gradfiltering.data.data_files import DataFile
from gradfiltering.data.text_files import detect_text_file, read_json, read_text_rows
from gradfiltering.errors import UserError
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.ratings import Choice, Label, majority_label, restore_formula
from gradfiltering.judging.responses import read_responses
from gradfiltering.judging.stored_reviews import read_reviews_with_answers

BUNDLED = "bundled"
BUNDLED_FILE = Path(__file__).parent / "labelled_pairs.json"
ANNOTATOR_LABELS: dict[int, Label] = {0: "tie", 1: "first", 2: "second"}  # PandaLM's
SHEET_COLUMNS = {"question", "left", "right", "choice"}
PLAIN_FIELDS = "question (or instruction and input), first, second and preference"
REMEDY = (
    f"Give JSON Lines with {PLAIN_FIELDS}, PandaLM's test set, a sheet of ratings (.csv), or a run's verdicts.jsonl "
    "beside its responses"
)


@dataclass(frozen=True)
class LabelledPair:
    """Two answers to a question, and which of them is the better.

    Attributes:
        prompt: the question.
        first: an answer.
        second: another answer.
        preference: the better answer, or "tie".
    """

    prompt: Prompt
    first: str
    second: str
    preference: Label


@dataclass(frozen=True)
class LabelledSet:
    """Labelled pairs of a file.

    Attributes:
        pairs: the pairs.
        labelled_by: where the labels come from, in words.
    """

    pairs: Sequence[LabelledPair]
    labelled_by: str


def read_labelled_pairs(name: str) -> LabelledSet:
    """Read labelled pairs.

    Args:
        name: `bundled` for the set that comes along, or a file: JSON Lines (or JSON, csv) of objects with `question`
            (or `instruction` and, where there is one, `input`), `first`, `second` and `preference`, which is first,
            second or tie; PandaLM's human test set, labelled by the majority of its annotators; a sheet of ratings
            that `judge.export` wrote, filled in; or `verdicts.jsonl` of a run, its `responses/` beside it.

    Raises:
        UserError: the file cannot be read, is of none of these kinds, or holds no label; names file, row and field.
    """
    if name == BUNDLED:
        pair_records = read_json(BUNDLED_FILE, "Install gradfiltering again")["pairs"]
        labelled = [
            _read_plain_record(f"{BUNDLED_FILE}, pair {number}", number, record)
            for number, record in enumerate(pair_records)
        ]
        return LabelledSet(labelled, "construction: one answer is right, or both are alike")
    path = Path(name).expanduser()
    rows = _read_rows(detect_text_file(path))
    if not rows:
        raise UserError(f"{path}: holds no pair. {REMEDY}")
    fields = set(rows[0][1])
    if "annotator1" in fields:
        labelled_set = _read_pandalm(rows)
    elif fields >= SHEET_COLUMNS:
        labelled_set = _read_sheet(rows)
    elif "verdict" in fields:
        labelled_set = _read_verdicts(path)
    else:
        labelled_set = LabelledSet(
            [_read_plain_record(location, number, row) for number, (location, row) in enumerate(rows)], "the file"
        )
    if not labelled_set.pairs:
        raise UserError(f"{path}: no pair in it has a label yet. {REMEDY}")
    return labelled_set


def _read_rows(data_file: DataFile) -> list[tuple[str, dict[str, Any]]]:
    """Read (location in words, row)."""
    return [
        (f"{data_file.path}, line {line_number}" if line_number else f"{data_file.path}, row {row_number}", row)
        for row_number, (row, line_number) in enumerate(read_text_rows(data_file))
    ]


def _read_plain_record(location: str, number: int, record: Mapping[str, Any]) -> LabelledPair:
    question_field = "question" if "question" in record else "instruction"
    input_text = _read_text(location, record, "input") if record.get("input") else ""
    preference = record.get("preference")
    for label in get_args(Label):
        if preference == label:
            prompt = _make_prompt(number, _read_text(location, record, question_field), input_text)
            first, second = _read_text(location, record, "first"), _read_text(location, record, "second")
            return LabelledPair(prompt, first, second, label)
    raise UserError(f"{location}: preference is {preference!r}; expected {', '.join(get_args(Label))}. {REMEDY}")


def _read_pandalm(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> LabelledSet:
    pairs = []
    for number, (location, row) in enumerate(rows):
        labels = []
        for field in [name for name in row if name.startswith("annotator")]:
            # JSON's true and 1.0 are equal to 1 in Python.
            if not isinstance(row[field], int) or isinstance(row[field], bool) or row[field] not in ANNOTATOR_LABELS:
                raise UserError(f"{location}: {field} is {row[field]!r}; expected 0 for a tie, 1 or 2")
            labels.append(ANNOTATOR_LABELS[row[field]])
        prompt = _make_prompt(
            number,
            _read_text(location, row, "instruction"),
            _read_text(location, row, "input") if "input" in row else "",
        )
        # The published file holds answers such as True and 42 without quotation marks.
        first, second = (
            str(row[name]) if isinstance(row.get(name), int | float) else _read_text(location, row, name)
            for name in ("response1", "response2")
        )
        pairs.append(LabelledPair(prompt, first, second, majority_label(labels)))
    return LabelledSet(pairs, "the majority of its annotators")


def _read_sheet(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> LabelledSet:
    """Read a filled sheet; what several raters said of the same answers is taken together, by their majority."""
    labels_by_pair: dict[tuple[str, str, str], list[Label]] = {}
    for location, row in rows:
        question, left_answer, right_answer = (
            restore_formula(_read_text(location, row, name)) for name in ("question", "left", "right")
        )
        choice = _read_text(location, row, "choice").strip().lower()
        if not choice:
            continue
        if choice not in get_args(Choice):  # two bad answers count as a tie
            raise UserError(f"{location}: choice is {choice!r}; write left, right, tie or bad")
        # Raters see the sides in orders of their own.
        first, second = sorted((left_answer, right_answer))
        preferred_text = {"left": left_answer, "right": right_answer}.get(choice)
        label: Label = "tie" if preferred_text is None else "first" if preferred_text == first else "second"
        labels_by_pair.setdefault((question, first, second), []).append(label)
    pairs = [
        LabelledPair(_make_prompt(number, question, ""), first, second, majority_label(labels))
        for number, ((question, first, second), labels) in enumerate(labels_by_pair.items())
    ]
    return LabelledSet(pairs, "the raters of the sheet")


def _read_verdicts(path: Path) -> LabelledSet:
    """Read a run's verdicts, first judgings only; a question is the prompt as the models saw it."""
    label_of_verdict: dict[str, Label] = {"win": "first", "loss": "second", "tie": "tie"}
    pairs: list[LabelledPair] = []
    judge_names: set[str] = set()
    prompt_texts: dict[str, dict[tuple[str, str], str]] = {}  # by candidate
    for first, second, review in read_reviews_with_answers(path):
        verdict = review.verdict
        if verdict.repeat or verdict.verdict not in label_of_verdict:
            continue
        if verdict.candidate not in prompt_texts:
            responses = read_responses(path.parent / "responses" / f"{verdict.candidate}.jsonl")
            prompt_texts[verdict.candidate] = {
                (response.prompt_set, response.prompt_id): response.prompt for response in responses
            }
        prompt_text = prompt_texts[verdict.candidate][verdict.prompt_set, verdict.prompt_id]
        prompt = _make_prompt(len(pairs), prompt_text, "")
        pairs.append(LabelledPair(prompt, first, second, label_of_verdict[verdict.verdict]))
        judge_names.add(verdict.judge)
    return LabelledSet(pairs, f"judge {', '.join(sorted(judge_names))}")


def _make_prompt(number: int, instruction: str, input_text: str) -> Prompt:
    return Prompt("labelled", str(number), instruction, input_text, None)


def _read_text(location: str, record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise UserError(f"{location}: {field} is {value!r}; expected a text. {REMEDY}")
    return value
