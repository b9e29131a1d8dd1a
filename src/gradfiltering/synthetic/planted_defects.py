"""Planted corruption: rows spoilt on purpose, so that a selection can be checked against a known truth."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.seeding import numpy_rng

KINDS = ("clean", "wrong_answer", "mismatched_response", "gibberish", "truncated", "duplicate", "ambiguous")

Row = Mapping[str, Any]
WrongAnswer = Callable[[Row, np.random.Generator], str]

MAX_PLANTED_SHARE = 0.9  # beyond this there is hardly a clean row left to find
MIN_CUT_CHARACTERS = 2  # the shortest response that has a non-empty proper prefix
CUT_RANGE = (0.2, 0.6)
SWAPPED_SHARE = 1 / 3
CONTENT_WORD_CHARACTERS = 4
POOL_ROWS = 2000  # enough vocabulary for swaps, and bounded work on large data

# Scripts written without spaces: Thai to Burmese, Khmer, kana and Chinese characters. Two characters stand for a word.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
# Vowel signs that `\w` leaves out would otherwise cut Indic, Arabic and Hebrew words in pieces.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0971-\u0dff"
_WORD = re.compile(rf"[{_SPACELESS}]{{1,2}}|(?:(?![{_SPACELESS}])[^\W\d_]|[{_MARKS}])+")
_SPACELESS_START = re.compile(rf"[{_SPACELESS}]")
_LIST_MARKER = re.compile(r"^[ \t]*\d+[.)](?=\s)", re.MULTILINE)
_NUMBER = re.compile(r"\d+")
_OPENING = re.compile(r"^(\W*)(yes|no|true|false)\b", re.IGNORECASE)
_CHOICE = re.compile(r"^(\W*)([A-Da-d])(\W*)$")
_FLIPPED = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_NOISE = "abcdefghijklmnopqrstuvwxyz0123456789#%&*;:?!     "


@dataclass(frozen=True)
class Corruption:
    """Which share of the rows to spoil, per kind of damage.

    Attributes:
        wrong_answer: a fluent response of the right form whose content is wrong.
        mismatched_response: the response of another row.
        gibberish: random characters or scrambled pieces of words.
        truncated: a response cut off mid-way.
        duplicate: the whole row replaced with a copy of a clean row.
        ambiguous: rows in pairs that ask the same and answer differently.
    """

    wrong_answer: float
    mismatched_response: float
    gibberish: float
    truncated: float
    duplicate: float
    ambiguous: float

    def __post_init__(self) -> None:
        for kind, share in asdict(self).items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise UserError(
                    f"corruption share {kind}={share!r} is not a number from 0 to 1; give the share of rows"
                )
        total = sum(asdict(self).values())
        if total > MAX_PLANTED_SHARE + 1e-9:
            raise UserError(
                f"corruption shares sum to {total:.3g} ({asdict(self)}), more than {MAX_PLANTED_SHARE}; "
                "lower some of them so that clean rows remain"
            )

    @property
    def active(self) -> bool:
        """Whether anything is to be planted."""
        return any(asdict(self).values())

    def plant(
        self,
        rows: Sequence[Row],
        seed: int,
        prompt_fields: Sequence[str],
        output_field: str,
        wrong_answer: WrongAnswer | None,
    ) -> tuple[list[dict], list[str]]:
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
        outputs = [_text(row.get(output_field)) for row in rows]
        places = self._places(outputs, numpy_rng(seed, "corruption", "places"))
        spoiler = _Spoiler(rows, outputs, output_field, wrong_answer, numpy_rng(seed, "corruption", "content"))
        planted = [dict(row) for row in rows]
        kinds = ["clean"] * len(rows)
        for kind, chosen in places.items():
            for index in chosen:
                kinds[index] = kind

        for kind in ("wrong_answer", "mismatched_response", "gibberish", "truncated"):
            for index in places[kind]:
                planted[index][output_field] = getattr(spoiler, kind)(index)
        originals = spoiler.originals(kinds, len(places["duplicate"]))
        for index, original in zip(places["duplicate"], originals, strict=True):
            planted[index] = dict(rows[original])
        for first, second in zip(places["ambiguous"][::2], places["ambiguous"][1::2], strict=True):
            for field in prompt_fields:
                if field in rows[first]:
                    planted[second][field] = rows[first][field]
                else:
                    planted[second].pop(field, None)
            planted[second][output_field] = spoiler.wrong_answer(first)
        return planted, kinds

    def _places(self, outputs: list[str], rng: np.random.Generator) -> dict[str, list[int]]:
        """The rows that each kind takes."""
        counts = {kind: round(share * len(outputs)) for kind, share in asdict(self).items()}
        counts["ambiguous"] = 2 * round(self.ambiguous * len(outputs) / 2)
        free = [int(index) for index in rng.permutation(len(outputs)) if outputs[index].strip()]
        if sum(counts.values()) > len(free):
            raise UserError(
                f"{sum(counts.values())} rows are to be corrupted but only {len(free)} of {len(outputs)} have a "
                "response; lower the corruption shares"
            )
        places = {}
        # First the kind that cannot use every row, so that the others leave it enough.
        for kind in sorted(counts, key=lambda kind: kind != "truncated"):
            least = MIN_CUT_CHARACTERS if kind == "truncated" else 1
            chosen = [index for index in free if len(outputs[index].strip()) >= least][: counts[kind]]
            if len(chosen) < counts[kind]:
                raise UserError(
                    f"{counts[kind]} responses are to be cut but only {len(chosen)} have {least} characters or more; "
                    f"lower the corruption share {kind}={self.truncated}"
                )
            places[kind] = chosen
            taken = set(chosen)
            free = [index for index in free if index not in taken]
        return places


class _Spoiler:
    """Makes the spoilt responses of one data set."""

    def __init__(
        self,
        rows: Sequence[Row],
        outputs: list[str],
        output_field: str,
        truth: WrongAnswer | None,
        rng: np.random.Generator,
    ) -> None:
        self.rows, self.outputs, self.output_field, self.truth, self.rng = rows, outputs, output_field, truth, rng
        # By stripped text, so that two responses that differ by blanks alone count as one.
        self.distinct = list({text.strip(): text for text in outputs if text.strip()}.items())
        self._pool: list[str] | None = None

    def wrong_answer(self, index: int) -> str:
        """A wrong answer to the row's question."""
        original = self.outputs[index]
        if self.truth is not None:
            answer = self.truth(self.rows[index], self.rng)
            if answer == original:
                raise RuntimeError(
                    f"the data's own rule gave the right answer {answer!r} as the wrong one, row {index}"
                )
            return answer
        for rule in (_alter_numbers, _flip_opening, _other_choice, self._swap_words):
            answer = rule(original, self.rng)
            if answer.strip() != original.strip():
                return answer
        return _swap_segments(original, self.rng)

    def mismatched_response(self, index: int) -> str:
        """The response of another row."""
        if len(self.distinct) < 2:
            raise UserError(
                "mismatched responses need at least two different responses in the data; "
                "set the corruption share mismatched_response to 0"
            )
        choice = int(self.rng.integers(len(self.distinct)))
        if self.distinct[choice][0] == self.outputs[index].strip():
            choice = (choice + 1) % len(self.distinct)
        return self.distinct[choice][1]

    def gibberish(self, index: int) -> str:
        """Nonsense about as long as the row's response."""
        original = self.outputs[index].strip()
        if self.rng.random() < 0.5:
            soup = self._soup(original)
            if soup.strip() and soup != original:
                return soup
        while True:
            noise = "".join(_NOISE[place] for place in self.rng.integers(len(_NOISE), size=len(original))).strip()
            if noise and noise != original:
                return noise

    def truncated(self, index: int) -> str:
        """The beginning of the row's response."""
        original = self.outputs[index]
        start = len(original) - len(original.lstrip())  # a cut inside leading blanks would leave nothing
        length = len(original.strip())
        least = int(np.ceil(CUT_RANGE[0] * length))
        most = max(least, int(CUT_RANGE[1] * length))
        return original[: start + int(self.rng.integers(least, most + 1))]

    def originals(self, kinds: list[str], count: int) -> list[int]:
        """Clean rows to copy, each once as long as there are enough."""
        if count == 0:
            return []
        clean = [index for index, kind in enumerate(kinds) if kind == "clean" and self.outputs[index].strip()]
        if not clean:
            raise UserError(
                "duplicates need a clean row with a response to copy, and none is left; "
                "lower the corruption shares or set duplicate to 0"
            )
        order = self.rng.permutation(clean)
        return [int(order[place % len(order)]) for place in range(count)]

    def _soup(self, original: str) -> str:
        other = self.distinct[int(self.rng.integers(len(self.distinct)))][0]
        pieces = _pieces(original + other[: len(original)], self.rng)
        return "".join(pieces[place] for place in self.rng.permutation(len(pieces)))[: len(original)]

    def _swap_words(self, text: str, rng: np.random.Generator) -> str:
        """About a third of the content words replaced with content words of other responses."""
        matches = list(_WORD.finditer(text))
        content = [match for match in matches if _is_content(match.group())] or matches
        own = {match.group().casefold() for match in matches}
        if not content:
            return text
        count = max(1, round(SWAPPED_SHARE * len(content)))
        foreign = self._foreign_words(own, count, rng)
        if len(foreign) < count:
            return text
        chosen = sorted(
            rng.permutation(len(content))[:count], reverse=True
        )  # from the end: earlier positions stay valid
        for place, word in zip(chosen, foreign, strict=True):
            match = content[place]
            word = word[0].upper() + word[1:] if match.group()[0].isupper() else word
            text = text[: match.start()] + word + text[match.end() :]
        return text

    def _foreign_words(self, own: set[str], count: int, rng: np.random.Generator) -> list[str]:
        """Content words of other responses; fewer than asked for where the data has hardly any."""
        if self._pool is None:
            some = rng.permutation(len(self.distinct))[:POOL_ROWS]
            words = [word for place in some for word in _WORD.findall(self.distinct[place][0])]
            self._pool = [word for word in words if _is_content(word)] or words
        if not self._pool:
            return []
        drawn = (self._pool[place] for place in rng.integers(len(self._pool), size=4 * count + 50))
        return [word for word in drawn if word.casefold() not in own][:count]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_content(word: str) -> bool:
    return len(word) >= CONTENT_WORD_CHARACTERS or _SPACELESS_START.match(word) is not None


def _alter_numbers(text: str, rng: np.random.Generator) -> str:
    """One digit of every number changed; the numbering of a list stays."""
    markers = {match.start(): match.end() for match in _LIST_MARKER.finditer(text)}

    def alter(match: re.Match[str]) -> str:
        if any(start <= match.start() < end for start, end in markers.items()):
            return match.group()
        digits = match.group()
        place = int(rng.integers(len(digits)))
        old = int(digits[place])
        new = (old - 1 + int(rng.integers(1, 9))) % 9 + 1 if old else int(rng.integers(1, 10))
        # The decimal digits of every script stand in a row, so a shift stays within the script.
        return digits[:place] + chr(ord(digits[place]) + new - old) + digits[place + 1 :]

    return _NUMBER.sub(alter, text)


def _flip_opening(text: str, rng: np.random.Generator) -> str:
    """Yes for no and true for false at the beginning."""

    def flip(match: re.Match[str]) -> str:
        word = match.group(2)
        flipped = _FLIPPED[word.casefold()]
        return match.group(1) + (
            flipped.upper() if word.isupper() else flipped.capitalize() if word[0].isupper() else flipped
        )

    return _OPENING.sub(flip, text)


def _other_choice(text: str, rng: np.random.Generator) -> str:
    """Another letter, where the response is the letter of a multiple-choice answer."""

    def alter(match: re.Match[str]) -> str:
        letters = "ABCD" if match.group(2).isupper() else "abcd"
        other = letters.replace(match.group(2), "")[int(rng.integers(3))]
        return match.group(1) + other + match.group(3)

    return _CHOICE.sub(alter, text)


def _pieces(text: str, rng: np.random.Generator) -> list[str]:
    """The text cut into pieces of two to four characters."""
    ends = np.cumsum(rng.integers(2, 5, size=len(text) // 2 + 1))
    starts = [0, *(int(end) for end in ends if end < len(text))]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _swap_segments(text: str, rng: np.random.Generator) -> str:
    """The last resort for text without other words to borrow: turn it round at some point, or change a character."""
    body = text.strip()
    # Unless all characters are the same, turning by one character changes the text.
    for cut in (int(rng.integers(len(body))), 1):
        turned = (body[cut:] + body[:cut]).strip()
        if turned != body:
            return turned
    last = body[-1]
    if last.isascii() and last.isalpha():
        return body[:-1] + ("b" if last in "aA" else "a")
    return body[:-1] + ("!" if last == "?" else "?")
