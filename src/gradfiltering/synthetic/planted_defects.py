"""Planted defects: rows spoilt on purpose, so that a selection can be checked against a known truth."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Self

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.options import Probability, model_validator, options
from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.rounding import share_of_count

DEFECT_KINDS = ("clean", "wrong_answer", "mismatched_response", "gibberish", "truncated", "duplicate", "ambiguous")

DatasetRow = Mapping[str, Any]
WrongAnswerRule = Callable[[DatasetRow, np.random.Generator], str]

MAX_PLANTED_SHARE = 0.9  # beyond this there is hardly a clean row left to find
MIN_CUT_CHARACTERS = 2  # the shortest response that has a non-empty proper prefix
CUT_RANGE = (0.2, 0.6)
SWAPPED_SHARE = 1 / 3
CONTENT_WORD_CHARACTERS = 4
POOL_ROWS = 2000  # enough vocabulary for swaps, and bounded work on large data

# Scripts written without spaces: Thai to Burmese, Khmer, kana and Chinese characters. Two characters stand for a word.
_SPACELESS_SCRIPTS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
# Vowel signs that `\w` leaves out would otherwise cut Indic, Arabic and Hebrew words in pieces.
_VOWEL_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0971-\u0dff"
_WORD_PATTERN = re.compile(rf"[{_SPACELESS_SCRIPTS}]{{1,2}}|(?:(?![{_SPACELESS_SCRIPTS}])[^\W\d_]|[{_VOWEL_MARKS}])+")
_SPACELESS_START = re.compile(rf"[{_SPACELESS_SCRIPTS}]")
_LIST_MARKER = re.compile(r"^[ \t]*\d+[.)](?=\s)", re.MULTILINE)
_NUMBER_PATTERN = re.compile(r"\d+")
_YES_NO_OPENING = re.compile(r"^(\W*)(yes|no|true|false)\b", re.IGNORECASE)
_CHOICE_LETTER = re.compile(r"^(\W*)([A-Da-d])(\W*)$")
_OPPOSITE_WORDS = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_NOISE_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789#%&*;:?!     "


@options
class PlantedDefects:
    """Shares of the rows to spoil, for each kind of defect.

    Attributes:
        wrong_answer: a fluent response of the right form whose content is wrong.
        mismatched_response: the response of another row.
        gibberish: random characters or scrambled pieces of words.
        truncated: a response cut off mid-way.
        duplicate: the whole row replaced with a copy of a clean row.
        ambiguous: rows in pairs that ask the same and answer differently.
    """

    wrong_answer: Probability = 0.0
    mismatched_response: Probability = 0.0
    gibberish: Probability = 0.0
    truncated: Probability = 0.0
    duplicate: Probability = 0.0
    ambiguous: Probability = 0.0

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        total_share = sum(asdict(self).values())
        if total_share > MAX_PLANTED_SHARE + 1e-9:
            raise UserError(
                f"corruption shares sum to {total_share:.3g} ({asdict(self)}), more than {MAX_PLANTED_SHARE}; "
                "lower some of them so that clean rows remain"
            )
        return self

    @property
    def any_planted(self) -> bool:
        """True if any share is above 0."""
        return any(asdict(self).values())

    def plant(
        self,
        rows: Sequence[DatasetRow],
        seed: int,
        prompt_fields: Sequence[str],
        output_field: str,
        wrong_answer: WrongAnswerRule | None,
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Spoil some rows.

        Args:
            rows: the data; left as it is.
            seed: rows, seed and shares decide the result.
            prompt_fields: the columns that make the prompt.
            output_field: the column with the response; rows where it is empty are left alone.
            wrong_answer: gives a wrong answer to a row where the data's maker knows the truth; None takes a generic
                rule that works on the response's text.

        Returns:
            The rows in the same order and number, and the kind of each.

        Raises:
            UserError: the data is too small for the shares asked for.
        """
        responses = [row[output_field] if isinstance(row.get(output_field), str) else "" for row in rows]
        rows_by_defect = self._assign_rows(responses, numpy_rng(seed, "corruption", "places"))
        spoiler = ResponseSpoiler(rows, responses, wrong_answer, numpy_rng(seed, "corruption", "content"))
        planted_rows = [dict(row) for row in rows]
        defect_kinds = ["clean"] * len(rows)
        for defect_kind, row_indices in rows_by_defect.items():
            for row_index in row_indices:
                defect_kinds[row_index] = defect_kind

        for defect_kind in ("wrong_answer", "mismatched_response", "gibberish", "truncated"):
            for row_index in rows_by_defect[defect_kind]:
                planted_rows[row_index][output_field] = getattr(spoiler, defect_kind)(row_index)
        duplicate_rows, ambiguous_rows = rows_by_defect["duplicate"], rows_by_defect["ambiguous"]
        source_rows = spoiler.choose_source_rows(defect_kinds, len(duplicate_rows))
        for row_index, source_row in zip(duplicate_rows, source_rows, strict=True):
            planted_rows[row_index] = dict(rows[source_row])
        for first_row, second_row in zip(ambiguous_rows[::2], ambiguous_rows[1::2], strict=True):
            for field_name in prompt_fields:
                if field_name in rows[first_row]:
                    planted_rows[second_row][field_name] = rows[first_row][field_name]
                else:
                    planted_rows[second_row].pop(field_name, None)
            planted_rows[second_row][output_field] = spoiler.wrong_answer(first_row)
        return planted_rows, defect_kinds

    def _assign_rows(self, responses: list[str], generator: np.random.Generator) -> dict[str, list[int]]:
        """Deal out rows to each kind of defect."""
        defect_counts = {kind: share_of_count(share, len(responses)) for kind, share in asdict(self).items()}
        defect_counts["ambiguous"] = 2 * share_of_count(self.ambiguous / 2, len(responses))
        free_rows = [int(row) for row in generator.permutation(len(responses)) if responses[row].strip()]
        if sum(defect_counts.values()) > len(free_rows):
            raise UserError(
                f"{sum(defect_counts.values())} rows are to be corrupted but only {len(free_rows)} of "
                f"{len(responses)} have a response; lower the corruption shares"
            )
        rows_by_defect = {}
        # First the kind that cannot use every row, so that the others leave it enough.
        for defect_kind in sorted(defect_counts, key=lambda kind: kind != "truncated"):
            minimum_length = MIN_CUT_CHARACTERS if defect_kind == "truncated" else 1
            usable_rows = [row for row in free_rows if len(responses[row].strip()) >= minimum_length]
            rows_by_defect[defect_kind] = usable_rows[: defect_counts[defect_kind]]
            if len(usable_rows) < defect_counts[defect_kind]:
                raise UserError(
                    f"{defect_counts[defect_kind]} responses are to be cut but only {len(usable_rows)} have "
                    f"{minimum_length} characters or more; lower the corruption share {defect_kind}={self.truncated}"
                )
            taken_rows = set(rows_by_defect[defect_kind])
            free_rows = [row for row in free_rows if row not in taken_rows]
        return rows_by_defect


class ResponseSpoiler:
    """Makes the spoilt responses of one data set."""

    def __init__(
        self,
        rows: Sequence[DatasetRow],
        responses: list[str],
        known_wrong_answer: WrongAnswerRule | None,
        generator: np.random.Generator,
    ) -> None:
        self.rows = rows
        self.responses = responses
        self.known_wrong_answer = known_wrong_answer
        self.generator = generator
        # By stripped text, so that two responses that differ by blanks alone count as one.
        self.distinct_responses = list({text.strip(): text for text in responses if text.strip()}.items())
        self._word_pool: list[str] | None = None

    def wrong_answer(self, row_index: int) -> str:
        """A wrong answer to the row's question."""
        original_response = self.responses[row_index]
        if self.known_wrong_answer is not None:
            wrong_response = self.known_wrong_answer(self.rows[row_index], self.generator)
            if wrong_response == original_response:
                raise RuntimeError(
                    f"the data's own rule gave the right answer {wrong_response!r} as the wrong one, row {row_index}"
                )
            return wrong_response
        for alteration_rule in (_alter_numbers, _flip_opening, _other_choice, self._swap_words):
            wrong_response = alteration_rule(original_response, self.generator)
            if wrong_response.strip() != original_response.strip():
                return wrong_response
        return _swap_segments(original_response, self.generator)

    def mismatched_response(self, row_index: int) -> str:
        """The response of another row."""
        if len(self.distinct_responses) < 2:
            raise UserError(
                "mismatched responses need at least two different responses in the data; "
                "set the corruption share mismatched_response to 0"
            )
        response_index = int(self.generator.integers(len(self.distinct_responses)))
        if self.distinct_responses[response_index][0] == self.responses[row_index].strip():
            response_index = (response_index + 1) % len(self.distinct_responses)
        return self.distinct_responses[response_index][1]

    def gibberish(self, row_index: int) -> str:
        """Nonsense about as long as the row's response."""
        original_response = self.responses[row_index].strip()
        if self.generator.random() < 0.5:
            scrambled_text = self._scramble_text(original_response)
            if scrambled_text.strip() and scrambled_text != original_response:
                return scrambled_text
        while True:
            character_indices = self.generator.integers(len(_NOISE_CHARACTERS), size=len(original_response))
            noise = "".join(_NOISE_CHARACTERS[index] for index in character_indices).strip()
            if noise and noise != original_response:
                return noise

    def truncated(self, row_index: int) -> str:
        """The beginning of the row's response."""
        response = self.responses[row_index]
        length = len(response.strip())
        shortest = int(np.ceil(CUT_RANGE[0] * length))
        longest = max(shortest, int(CUT_RANGE[1] * length))
        leading_blanks = len(response) - len(response.lstrip())  # a cut inside them would leave nothing
        return response[: leading_blanks + int(self.generator.integers(shortest, longest + 1))]

    def choose_source_rows(self, defect_kinds: list[str], row_count: int) -> list[int]:
        """Clean rows to copy, each once as long as there are enough."""
        if row_count == 0:
            return []
        clean_rows = [row for row, kind in enumerate(defect_kinds) if kind == "clean" and self.responses[row].strip()]
        if not clean_rows:
            raise UserError(
                "duplicates need a clean row with a response to copy, and none is left; "
                "lower the corruption shares or set duplicate to 0"
            )
        copy_order = self.generator.permutation(clean_rows)
        return [int(copy_order[position % len(copy_order)]) for position in range(row_count)]

    def _scramble_text(self, response: str) -> str:
        other_response = self.distinct_responses[int(self.generator.integers(len(self.distinct_responses)))][0]
        text = response + other_response[: len(response)]
        piece_ends = np.cumsum(self.generator.integers(2, 5, size=len(text) // 2 + 1))
        bounds = [0, *piece_ends[piece_ends < len(text)].tolist(), len(text)]
        pieces = [text[start:end] for start, end in pairwise(bounds)]
        scrambled_text = "".join(pieces[index] for index in self.generator.permutation(len(pieces)))
        return scrambled_text[: len(response)]

    def _swap_words(self, response: str, generator: np.random.Generator) -> str:
        """About a third of the content words replaced with content words of other responses."""
        word_matches = list(_WORD_PATTERN.finditer(response))
        if not word_matches:
            return response
        content_matches = [match for match in word_matches if _is_content(match.group())] or word_matches
        own_words = {match.group().casefold() for match in word_matches}
        swap_count = max(1, share_of_count(SWAPPED_SHARE, len(content_matches)))
        borrowed_words = self._foreign_words(own_words, swap_count, generator)
        if len(borrowed_words) < swap_count:
            return response
        # From the end, so that earlier positions stay valid.
        swapped_indices = sorted(generator.permutation(len(content_matches))[:swap_count], reverse=True)
        for match_index, word in zip(swapped_indices, borrowed_words, strict=True):
            match = content_matches[match_index]
            word = word[0].upper() + word[1:] if match.group()[0].isupper() else word
            response = response[: match.start()] + word + response[match.end() :]
        return response

    def _foreign_words(self, own_words: set[str], word_count: int, generator: np.random.Generator) -> list[str]:
        """Content words of other responses; fewer than asked for where the data has hardly any."""
        if self._word_pool is None:
            sampled_indices = generator.permutation(len(self.distinct_responses))[:POOL_ROWS]
            pool_words = [
                word for index in sampled_indices for word in _WORD_PATTERN.findall(self.distinct_responses[index][0])
            ]
            self._word_pool = [word for word in pool_words if _is_content(word)] or pool_words
        if not self._word_pool:
            return []
        word_indices = generator.integers(len(self._word_pool), size=4 * word_count + 50)
        drawn_words = (self._word_pool[index] for index in word_indices)
        return [word for word in drawn_words if word.casefold() not in own_words][:word_count]


def _is_content(word: str) -> bool:
    return len(word) >= CONTENT_WORD_CHARACTERS or _SPACELESS_START.match(word) is not None


def _alter_numbers(response: str, generator: np.random.Generator) -> str:
    """One digit of every number changed; the numbering of a list stays."""
    marker_spans = [match.span() for match in _LIST_MARKER.finditer(response)]

    def alter(match: re.Match[str]) -> str:
        digits = match.group()
        if any(start <= match.start() < end for start, end in marker_spans):
            return digits
        position = int(generator.integers(len(digits)))
        old_digit = int(digits[position])
        shift = int(generator.integers(1, 9 if old_digit else 10))
        new_digit = (old_digit - 1 + shift) % 9 + 1 if old_digit else shift
        # The decimal digits of every script stand in a row, so a shift stays within the script.
        altered_digit = chr(ord(digits[position]) + new_digit - old_digit)
        return digits[:position] + altered_digit + digits[position + 1 :]

    return _NUMBER_PATTERN.sub(alter, response)


def _flip_opening(response: str, generator: np.random.Generator) -> str:
    """Yes for no and true for false at the beginning."""

    def flip(match: re.Match[str]) -> str:
        opening = match.group(2)
        opposite_word = _OPPOSITE_WORDS[opening.casefold()]
        if opening.isupper():
            opposite_word = opposite_word.upper()
        elif opening[0].isupper():
            opposite_word = opposite_word.capitalize()
        return match.group(1) + opposite_word

    return _YES_NO_OPENING.sub(flip, response)


def _other_choice(response: str, generator: np.random.Generator) -> str:
    """Another letter, where the response is the letter of a multiple-choice answer."""

    def alter(match: re.Match[str]) -> str:
        choice_letters = "ABCD" if match.group(2).isupper() else "abcd"
        other_letter = choice_letters.replace(match.group(2), "")[int(generator.integers(3))]
        return match.group(1) + other_letter + match.group(3)

    return _CHOICE_LETTER.sub(alter, response)


def _swap_segments(response_text: str, generator: np.random.Generator) -> str:
    """The last resort for text without other words to borrow: turn it round at some point, or change a character."""
    stripped_text = response_text.strip()
    # Unless all characters are the same, turning by one character changes the text.
    for cut_index in (int(generator.integers(len(stripped_text))), 1):
        rotated_text = (stripped_text[cut_index:] + stripped_text[:cut_index]).strip()
        if rotated_text != stripped_text:
            return rotated_text
    last_character = stripped_text[-1]
    if last_character.isascii() and last_character.isalpha():
        return stripped_text[:-1] + ("b" if last_character in "aA" else "a")
    return stripped_text[:-1] + ("!" if last_character == "?" else "?")
