"""Parsing of two scores from a judge's reply: tolerant of notation, strict about which numbers count.

A reply must open with its scores. An uncertain reply is left unread: a guess would become a verdict
that nobody gave.
"""

import json
import re
from typing import Any, Literal

from gradfiltering.judging.verdicts import Scores

ReplyFormat = Literal["text", "json"]
LOWEST, HIGHEST = 0.0, 10.0  # the prompt names 1 to 10; GPT-4 gives a 0 to an empty answer
JSON_KEYS = ("score_1", "score_2")

_SCORE = r"(?<![\d.+\-−/])(\d{1,2}(?:\.\d{1,2})?)(?![\d%])"
_OF_TEN = r"\s*(?:/|out\s+of)\s*10(?:\.0)?(?![\d.,]*\d)"
_BETWEEN = r"(?:\s*[,;|&]\s*|\s+(?:and\s+|vs\.?\s+)?)"
# What may follow on the same line. Without punctuation "5 10 year olds" would be two scores.
_REST = (
    r"(?:\s*[.;:,]?$"
    r"|(?:[.;:,]\s|\s+[-–—(]|\s+(?=(?:Assistant|Answer|Response|Both)\b))(?P<rest>.*)$)"
)
_ANSWER_NAME = (
    r"(?:(?:the\s+)?(?:scores?|ratings?)(?:\s+(?:for|of))?\s+)?"
    r"(?:(?:(?:ai\s+)?(?:assistant|answer|response|model|score)\s*#?\s*)(?P<{0}>[12ab])"
    r"|(?P<{0}_bare>[ab])|(?P<{0}_word>first|second)"
    r"(?:\s+(?:assistant|answer|response|model))?)(?:['’]s)?(?:\s+(?:score|rating))?"
    r"\s*(?:[:=]|\s[-–]\s|\bis\b)\s*"
)
_PREFIX = r"(?:(?:my\s+)?(?:scores?|ratings?)(?:\s+(?:are|is))?\s*[:=]?\s*)?"

# "Score 1 0" may be the score of answer 1: without names, "score" and 1 or 2 must stand apart.
_NO_NAME = r"(?!scores?[\s#]*[12](?![\d.]))"


def _compile_pair(first_name: str, second_name: str, score: str) -> re.Pattern[str]:
    opening = "^" if first_name else "^" + _NO_NAME
    pattern = opening + _PREFIX + first_name + score + _BETWEEN + second_name + score + _REST
    return re.compile(pattern, flags=re.ASCII | re.IGNORECASE)


_SCORE_FORMS = (_SCORE, _SCORE + _OF_TEN)
_FIRST_NAME, _SECOND_NAME = _ANSWER_NAME.format("one"), _ANSWER_NAME.format("two")
_PLAIN_PAIRS = [_compile_pair("", "", score) for score in _SCORE_FORMS]
_LABELLED_PAIRS = [_compile_pair(_FIRST_NAME, _SECOND_NAME, score) for score in _SCORE_FORMS]
_LABELLED_SCORE = re.compile(r"^[-•]?\s*" + _FIRST_NAME + _SCORE + rf"(?:{_OF_TEN})?\s*[.,;]?$", re.ASCII | re.I)
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", flags=re.DOTALL)
_HEADING = re.compile(r"^(?:scores?|ratings?|evaluation|verdict)\s*:?$|^```\w*$", flags=re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})([^*]+)\1(?![\w*])|(?<!\w)(_{2})([^_]+)_{2}(?!\w)|`([^`]+)`")
_ANSWER_MENTION = re.compile(
    r"\b(?:assistants?|answers?|responses?|models?)\s*#?\s*[12]\b(?:\s*(?:and|or|&)\s*[12]\b)?", re.I
)


def parse_scores(reply: str, reply_format: ReplyFormat = "text") -> Scores | None:
    """Read the two scores a reply opens with; None when it does not state them beyond doubt.

    Args:
        reply: the judge's words. A leading `<think>…</think>` of a reasoning model is skipped.
        reply_format: "text" reads the first line that is not blank (or two lines, one for each
            answer); "json" takes one object with the numbers `score_1` and `score_2`.

    Returns:
        (first answer's score, second answer's score).
    """
    stated = _THOUGHT.sub("", reply.replace("\ufeff", ""), count=1)
    if "</think>" in stated:
        return None  # where the thinking began is unknown, so a thought may stand first
    scores = _read_json(stated) if reply_format == "json" else _read_text(stated)
    if scores is None or not all(LOWEST <= score <= HIGHEST for score in scores):
        return None
    return scores


def _read_text(reply: str) -> Scores | None:
    lines = [line for line in map(_strip_markdown, reply.splitlines()) if line]
    while lines and _HEADING.match(lines[0]):
        lines = lines[1:]
    if not lines:
        return None
    opening = lines[0]
    # One line for each answer, as in "Assistant 1: 8" and below it "Assistant 2: 7".
    if all(_LABELLED_SCORE.match(line) for line in lines[:2]) and len(lines) > 1:
        opening = " ".join(line.lstrip("-•").strip().rstrip(".,;") for line in lines[:2])
    for pattern in _PLAIN_PAIRS:
        match = pattern.match(opening)
        if match and not _names_a_number(match["rest"]):
            return float(match[1]), float(match[2])
    for pattern in _LABELLED_PAIRS:
        match = pattern.match(opening)
        if match and not _names_a_number(match["rest"]):
            return _order_by_labels(match)
    return None


def _strip_markdown(line: str) -> str:
    """Remove Markdown emphasis, heading marks and one pair of brackets around all of a line."""
    line = line.replace("\u00a0", " ").strip().lstrip("#").strip()
    # Blanks stay in place of the marks, so that two numbers never grow into one.
    line = _EMPHASIS.sub(lambda match: f" {match[2] or match[4] or match[5]} ", line).strip()
    if re.fullmatch(r"\[[^\[\]]*\]|\([^()]*\)", line):
        line = line[1:-1].strip()
    return line


def _names_a_number(remaining_text: str | None) -> bool:
    """Tell if the text after the scores names a further number, which could be the one meant."""
    return re.search(r"\d", _ANSWER_MENTION.sub("", remaining_text or "")) is not None


def _order_by_labels(match: re.Match[str]) -> Scores | None:
    groups = match.groupdict()
    labels = [
        next(value.lower() for kind in ("", "_bare", "_word") if (value := groups[name + kind]))
        for name in ("one", "two")
    ]
    named_indexes = set(match.re.groupindex.values())
    first_score, second_score = (
        float(value) for index, value in enumerate(match.groups(), start=1) if index not in named_indexes
    )
    if labels in (["1", "2"], ["a", "b"], ["first", "second"]):
        return first_score, second_score
    if labels in (["2", "1"], ["b", "a"], ["second", "first"]):
        return second_score, first_score
    return None  # the same answer twice, or two different kinds of names


def _read_json(reply: str) -> Scores | None:
    text = reply.strip()
    if fenced := re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text, flags=re.DOTALL):
        text = fenced[1]
    try:
        content: Any = json.loads(text, object_pairs_hook=_refuse_repeated_keys)
    except (ValueError, RecursionError):
        return None
    values: list[Any] = [content.get(key) for key in JSON_KEYS] if isinstance(content, dict) else [None]
    if not all(type(value) in (int, float) for value in values):
        return None
    # Compared before it is converted: a whole number may be too large for a float.
    if max(abs(value) for value in values) > HIGHEST:
        return None
    return float(values[0]), float(values[1])


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; a repeated key makes it ambiguous."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)
