"""Signs of poor rows, each counted by a check of its own: duplicates, refusals, unfinished answers and the like.

A hit is a sign and no proof: rows are counted, and left out only where the user says so.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from gradfiltering.data.dataset import InstructionDataset, hash_content
from gradfiltering.data.row_duplicates import ExactDuplicates, NearDuplicates
from gradfiltering.data.row_texts import WORD, RowText, iterate_row_texts
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.progress import progress_bar

HYGIENE_FILE = "hygiene.npz"
HYGIENE_VERSION = 1  # raise it when a check finds other rows
EVALUATION_PROMPT = "evaluation_prompt"

HygieneName = Literal[
    "exact_duplicate", "near_duplicate", "empty_answer", "one_word_answer", "refusal", "unfinished_answer",
    "repetition", "unexpected_language", "evaluation_prompt",
]  # fmt: skip
HYGIENE_NAMES: tuple[HygieneName, ...] = get_args(HygieneName)

REFUSAL_OPENING = 250  # characters of an answer in which a refusal stands
REFUSAL = re.compile(
    r"(^|[.,;!?:]\s+|\bbut )as an? (ai|artificial intelligence|(large )?language model)\b"
    r"(?!-| (researcher|engineer|expert))"
    r"|\b(i'm|i am) (just |only )?an? (ai|artificial intelligence|(large )?language model)\b"
    r"|^((i'm|i am) )?(very |so |truly )?sorry,?( but)? i (cannot|can't|can not|am unable|am not able|do not|don't)\b"
    r"|^(unfortunately,? |i apologi[sz]e,? but )?i ((cannot|can't|can not|will not|won't|am unable to|am not able to)"
    r" (assist|help|fulfill|comply|provide|generate|create|answer|complete|perform|process|access|browse|discuss)"
    r"|do not have (access|the ability|personal))\b"
    r"|^(unfortunately,? )?i'm (unable|not able) to\b|^i'm not (comfortable|programmed)\b",
    re.IGNORECASE,
)

# Words that no sentence ends with.
OPEN_WORDS = {
    "a", "an", "the", "and", "or", "nor", "because", "although", "whereas", "unless", "my", "your", "our", "their",
    "whose", "than", "as", "into", "upon", "between", "among",
}  # fmt: skip
SENTENCE_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f\u061f\u06d4\u0964]")
EARLIER_SENTENCE = re.compile(
    r"[a-z\u00df-\u00ff\u0430-\u044f\)\"'][.!?]\s+[^\W\d_]|[\u3002\uff01\uff1f\u0964\u06d4]\s*\w"
)
LIST_ITEM = re.compile(r"\s*(?:[-*+\u2022\u2013]|\(?\d{1,3}[.):]|\(?(?:[a-zA-Z]|[ivx]+)[.)])\s+")
CODE_LINE = re.compile(
    r"[;{}]\s*$|^\s*(def|class|return|import|from \w+ import|function|var|let|const|public|private|elif|else:|#include"
    r"|SELECT|INSERT|FROM|WHERE|CREATE|UPDATE|</?\w+[^>]*>)\b|^\s*</?\w+[^>]*>|\w\([^)]*\)\s*:?\s*$"
    r"|^\s*[\w.\[\]]+ ?[-+*/]?=(?!=) ?\S"
    r"|^(\t| {2,})\S|\\(frac|sqrt|begin)|=>|->"
)
MIN_PROSE_WORDS = 8
SIGN_OFF_WORDS = 3  # "Yours sincerely,"
NO_PROSE_END = re.compile(r"([#@]|https?:|www\.|\S+\.\S+)\S*$|=[^.]*$")  # a hashtag, an address, a formula
LONGEST_SMALL_WORD = 3  # "and" in a title
SENTENCE_BREAK = re.compile(r"(?<=[.!?:\u3002])\s*")

MIN_REPEATED_WORDS = 24
REPEATED_SHARE = 0.6  # of the runs of four words, those that stand there again
LOOP = re.compile(r"([^\W\d_])\1{19,}|([^\W\d_]{2,8})\2{9,}")
LOOP_LETTERS = re.compile(r"[^\W\d_]{20}")  # every loop holds so many letters in a row, and few texts do

LANGUAGE_CHARACTERS = 400  # of an answer that are looked at
MIN_LETTERS = 60
MIN_LETTERS_OTHER_SCRIPT = 10
USUAL_SHARE = 0.05  # of the rows whose language was identified; a language of more is usual
SURE = 0.97


class HygieneCheck(Protocol):
    """A check of a dataset whose rows come batch by batch, in order; what it holds of each row is small."""

    def add_rows(self, rows: Sequence[RowText]) -> None:
        """Look at the next rows."""

    def find_hits(self) -> NDArray[np.bool_]:
        """Return [N] bool for all rows that were added: True for a row that shows the sign."""


@dataclass(frozen=True)
class RowHygiene:
    """The signs that rows show.

    Attributes:
        hits: name of a check -> [N] bool.
    """

    hits: Mapping[str, NDArray[np.bool_]]

    @property
    def counts(self) -> dict[str, int]:
        """Rows by sign, in the order of the checks."""
        return {name: int(self.hits[name].sum()) for name in HYGIENE_NAMES}

    def rows_to_drop(self, names: Sequence[str]) -> dict[int, str]:
        """Return, for each row that shows one of these signs, the first of them as a reason."""
        reasons: dict[int, str] = {}
        for name in names:
            for row_id in np.flatnonzero(self.hits[name]).tolist():
                reasons.setdefault(row_id, f"dropped: {name.replace('_', ' ')}")
        return reasons


def check_hygiene(dataset: InstructionDataset, prompt_questions: Sequence[str], cache: Cache) -> RowHygiene:
    """Check all candidate rows of a dataset, or take what is known of them from the cache.

    Args:
        dataset: its candidate rows are checked.
        prompt_questions: questions of the evaluation; a row that asks one of them shows the sign `evaluation_prompt`.
        cache: of results.
    """
    cache_key = {
        "code": HYGIENE_VERSION,
        "rows": hash_content(dataset.rows, dataset.schema.fields),
        "schema": repr(dataset.schema),
        "prompts": sorted({normalize_question(question) for question in prompt_questions}),
    }

    def check_all_rows(folder: Path) -> None:
        with TemporaryDirectory(dir=folder) as scratch_folder:
            hits = find_hits(
                iterate_row_texts(dataset), make_checks(Path(scratch_folder), prompt_questions), len(dataset)
            )
        with (folder / HYGIENE_FILE).open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **hits)

    cached_result = cache.get_or_compute_on_rank_zero("row_hygiene", cache_key, check_all_rows)
    with np.load(cached_result.path / HYGIENE_FILE) as stored_hits:
        hits: dict[str, np.ndarray] = {name: stored_hits[name] for name in HYGIENE_NAMES}
    hits[EVALUATION_PROMPT][list(dataset.set_aside)] = False  # these are the evaluation's own
    return RowHygiene(hits)


def make_checks(scratch_folder: Path, prompt_questions: Sequence[str]) -> dict[HygieneName, HygieneCheck]:
    """Make all checks, by name.

    Args:
        scratch_folder: for what is too large for memory.
        prompt_questions: questions of the evaluation.
    """
    return {
        "exact_duplicate": ExactDuplicates(),
        "near_duplicate": NearDuplicates(scratch_folder),
        "empty_answer": RowCheck(lambda row: is_empty(row.answer)),
        "one_word_answer": RowCheck(lambda row: is_one_word(row.answer)),
        "refusal": RowCheck(lambda row: is_refusal(row.answer)),
        "unfinished_answer": RowCheck(lambda row: is_unfinished(row.answer)),
        "repetition": RowCheck(lambda row: is_repetitive(row.answer)),
        "unexpected_language": UnexpectedLanguages(),
        "evaluation_prompt": asks_any_of(prompt_questions),
    }


def find_hits(
    row_batches: Iterable[Sequence[RowText]], checks: Mapping[HygieneName, HygieneCheck], row_count: int
) -> dict[str, NDArray[np.bool_]]:
    """Check rows that come in batches, and return the name of each check with [N] bool."""
    with progress_bar("looking for signs of poor rows", row_count) as bar:
        for rows in row_batches:
            for check in checks.values():
                check.add_rows(rows)
            bar.advance(len(rows))
        hits: dict[str, NDArray[np.bool_]] = {name: check.find_hits() for name, check in checks.items()}
    hits["near_duplicate"] &= ~hits["exact_duplicate"]  # these are counted by themselves
    return hits


class RowCheck:
    """A check that needs one row at a time.

    Args:
        is_hit: returns True for a row that shows the sign.
    """

    def __init__(self, is_hit: Callable[[RowText], bool]):
        self.is_hit = is_hit
        self._hits = bytearray()  # one byte a row

    def add_rows(self, rows: Sequence[RowText]) -> None:
        """Look at the next rows."""
        self._hits.extend(map(self.is_hit, rows))

    def find_hits(self) -> NDArray[np.bool_]:
        """Return [N] bool."""
        return np.frombuffer(self._hits, dtype=bool)


def asks_any_of(prompt_questions: Sequence[str]) -> RowCheck:
    """Make the check that finds rows which ask what the evaluation asks, letters' case and blanks aside."""
    asked_questions = {normalize_question(question) for question in prompt_questions} - {""}
    return RowCheck(lambda row: normalize_question(row.question) in asked_questions)


def normalize_question(question: str) -> str:
    """Return a question in lower case with single blanks."""
    return " ".join(question.casefold().split())


def is_empty(answer: str) -> bool:
    """Return True for an answer of blanks."""
    return not answer.strip()


def is_one_word(answer: str) -> bool:
    """Return True for an answer of one word, number or sign."""
    return len(answer.split()) == 1 and len(WORD.findall(answer)) <= 1


def is_refusal(answer: str) -> bool:
    """Return True for an English answer that opens by refusing."""
    return REFUSAL.search(answer.strip()[:REFUSAL_OPENING].replace("\u2019", "'")) is not None


def is_unfinished(answer: str) -> bool:
    """Return True for an answer that breaks off: in mid-sentence, in mid-list, or inside a block of code.

    A missing full stop alone is no sign, since many answers are titles, names, lists, formulas or code. One of these
    is: the answer ends in a comma or in a word that no sentence ends with; its last paragraph holds a finished sentence
    before the one that is not; the items of its list end in full stops and the last one does not.
    """
    if answer.count("```") % 2:
        return True
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    if not lines or len(WORD.findall(answer)) < MIN_PROSE_WORDS:
        return False
    last_line = lines[-1].strip()
    if any(CODE_LINE.search(line) for line in lines[-3:]) or "```" in last_line:
        return False
    last_character = last_line[-1]
    if last_character == ",":
        return len(last_line.split()) > SIGN_OFF_WORDS and EARLIER_SENTENCE.search(answer) is not None
    last_words = SENTENCE_BREAK.split(last_line)[-1].split()
    if not last_character.isalpha() or NO_PROSE_END.search(last_line):
        return False
    if len(last_words) > SIGN_OFF_WORDS and last_words[-1] in OPEN_WORDS:
        return True
    if is_title(last_words):
        return False
    list_items = [line.strip() for line in lines if LIST_ITEM.match(line)]
    if LIST_ITEM.match(lines[-1]):
        other_items = list_items[:-1]
        return len(other_items) >= 2 and all(SENTENCE_END.match(item[-1]) for item in other_items)
    return EARLIER_SENTENCE.search(last_line) is not None


def is_title(line_words: Sequence[str]) -> bool:
    """Return True for words of which most of the long ones are in capitals: a title, a name, a signature."""
    long_words = [word for word in line_words if len(word) > LONGEST_SMALL_WORD]
    return sum(word[0].isupper() for word in long_words) > len(long_words) / 2


def is_code(text: str) -> bool:
    """Return True for a text of which a third of the lines look like code."""
    lines = text.splitlines()
    return sum(CODE_LINE.search(line) is not None for line in lines) * 3 > len(lines)


def is_repetitive(answer: str) -> bool:
    """Return True for an answer that says the same over and over: most of its runs of four words stand there again.

    Numbers, single letters and code repeat by their nature and are not looked at.
    """
    if LOOP_LETTERS.search(answer) and LOOP.search(answer):
        return True
    if is_code(answer):
        return False
    answer_words = [
        word for word in WORD.findall(answer.lower()) if not word.isdigit() and (len(word) > 1 or not word.isascii())
    ]
    if len(answer_words) < MIN_REPEATED_WORDS:
        return False
    word_runs = list(zip(answer_words, answer_words[1:], answer_words[2:], answer_words[3:], strict=False))
    return 1 - len(set(word_runs)) / len(word_runs) >= REPEATED_SHARE


class UnexpectedLanguages:
    """Finds the rows whose answer is in a language that few rows are in.

    A language is usual if it is that of more than one row, and of more than 5 % of the rows whose language was
    identified. Short answers, code, and answers of which the identifier is not sure count as usual.
    """

    def __init__(self) -> None:
        self._numbers: dict[str | None, int] = {None: 0}  # of languages
        self._languages = array("H")  # number of each row's language

    def add_rows(self, rows: Sequence[RowText]) -> None:
        """Look at the next rows."""
        for row in rows:
            language = identify_language(row.answer)
            self._languages.append(self._numbers.setdefault(language, len(self._numbers)))

    def find_hits(self) -> NDArray[np.bool_]:
        """Return [N] bool; no row where no language is usual."""
        languages = np.frombuffer(self._languages, dtype=np.uint16)
        row_counts = np.bincount(languages, minlength=len(self._numbers))
        row_counts[0] = 0  # not identified
        is_usual = row_counts > max(1.0, USUAL_SHARE * row_counts.sum())
        if not is_usual.any():
            return np.zeros(len(languages), dtype=bool)
        is_usual[0] = True
        is_unusual: NDArray[np.bool_] = ~is_usual[languages]
        return is_unusual


def identify_language(text: str) -> str | None:
    """Return the ISO 639 code of a text's language; None where it is too short, code, or not clear."""
    sample = text.strip()[:LANGUAGE_CHARACTERS]
    letters = sum(map(str.isalpha, sample))
    ascii_letters = letters if sample.isascii() else sum(map(str.isalpha, filter(str.isascii, sample)))
    least_letters = MIN_LETTERS if ascii_letters > letters / 2 else MIN_LETTERS_OTHER_SCRIPT
    if letters < least_letters or letters < 0.6 * len(sample):
        return None
    if is_code(sample):
        return None
    language, confidence = _load_language_identifier().classify(sample)
    return language if confidence >= SURE else None


@lru_cache(maxsize=1)
def _load_language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
