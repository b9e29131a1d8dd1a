"""Scores from the text of a judge's reply: tolerant of how two numbers are written, strict about which two they are.

A reply must open with its scores. What is not certain is not read: a guess would become a verdict nobody gave.
"""

import json
import re
from typing import Any, Literal

from gradfiltering.judging.verdicts import Scores

ReplyFormat = Literal["text", "json"]
LOWEST, HIGHEST = 0.0, 10.0  # asked for are 1 to 10; GPT-4 gives a 0 to an empty answer
JSON_KEYS = ("score_1", "score_2")

_SCORE = r"(?<![\d.+\-−/])(\d{1,2}(?:\.\d{1,2})?)(?![\d%])"
_OF_TEN = r"\s*(?:/|out\s+of)\s*10(?:\.0)?(?![\d.,]*\d)"
_BETWEEN = r"(?:\s*[,;|&]\s*|\s+(?:and\s+|vs\.?\s+)?)"
# What may follow on the same line. Without punctuation "5 10 year olds" would be two scores.
_REST = r"(?:\s*[.;:,]?$|(?:[.;:,]\s|\s+[-–—(]|\s+(?=(?:Assistant|Answer|Response|Both)\b))(?P<rest>.*)$)"
_WHO = (
    r"(?:(?:the\s+)?(?:scores?|ratings?)(?:\s+(?:for|of))?\s+)?"
    r"(?:(?:(?:ai\s+)?(?:assistant|answer|response|model|score)\s*#?\s*)(?P<{0}>[12ab])|(?P<{0}_bare>[ab])|(?P<{0}_word>first|second)"
    r"(?:\s+(?:assistant|answer|response|model))?)(?:['’]s)?(?:\s+(?:score|rating))?\s*(?:[:=]|\s[-–]\s|\bis\b)\s*"
)
_PREFIX = r"^(?:(?:my\s+)?(?:scores?|ratings?)(?:\s+(?:are|is))?\s*[:=]?\s*)?"


def _pattern(between: str, before: tuple[str, str], score: str) -> re.Pattern[str]:
    text = _PREFIX + before[0] + score + between + before[1] + score + _REST
    return re.compile(text, flags=re.ASCII | re.IGNORECASE)


_PLAIN = [_pattern(_BETWEEN, ("", ""), _SCORE + unit) for unit in ("", _OF_TEN)]
_LABELLED = [_pattern(_BETWEEN, (_WHO.format("one"), _WHO.format("two")), _SCORE + unit) for unit in ("", _OF_TEN)]
_ONE_LABELLED = re.compile(r"^[-•]?\s*" + _WHO.format("one") + _SCORE + rf"(?:{_OF_TEN})?\s*[.,;]?$", re.ASCII | re.I)
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", flags=re.DOTALL)
_HEADING = re.compile(r"^(?:scores?|ratings?|evaluation|verdict)\s*:?$|^```\w*$", flags=re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})([^*]+)\1(?![\w*])|(?<!\w)(_{2})([^_]+)_{2}(?!\w)|`([^`]+)`")
_MENTION = re.compile(r"\b(?:assistants?|answers?|responses?|models?)\s*#?\s*[12]\b(?:\s*(?:and|or|&)\s*[12]\b)?", re.I)


def parse_scores(reply: str, reply_format: ReplyFormat = "text") -> Scores | None:
    """The two scores a reply opens with, that of the first answer first; None when it does not say them beyond doubt.

    Args:
        reply: the judge's words. A leading `<think>…</think>` of a reasoning model is passed over.
        reply_format: "text" looks at the first line that is not blank (or two lines, one for each answer); "json"
            takes one object with the numbers `score_1` and `score_2`.
    """
    said = _THOUGHT.sub("", reply.replace("\ufeff", ""), count=1)
    if "</think>" in said:
        return None  # where the thinking began is not known, so what was thought may stand first
    scores = _from_json(said) if reply_format == "json" else _from_text(said)
    return scores if scores is not None and all(LOWEST <= score <= HIGHEST for score in scores) else None


def _from_text(reply: str) -> Scores | None:
    lines = [line for line in map(_undecorated, reply.splitlines()) if line]
    while lines and _HEADING.match(lines[0]):
        lines = lines[1:]
    if not lines:
        return None
    candidates = [lines[0]]
    # One line for each answer, as in "Assistant 1: 8" and below it "Assistant 2: 7".
    if len(lines) > 1 and _ONE_LABELLED.match(lines[0]) and _ONE_LABELLED.match(lines[1]):
        candidates = [" ".join(line.lstrip("-•").strip().rstrip(".,;") for line in lines[:2])]
    for line in candidates:
        for pattern in _PLAIN:
            if (found := pattern.match(line)) and _silent(found["rest"]):
                return float(found[1]), float(found[2])
        for pattern in _LABELLED:
            if (found := pattern.match(line)) and _silent(found["rest"]):
                return _ordered(found)
    return None


def _undecorated(line: str) -> str:
    """A line without Markdown's emphasis, heading marks and one pair of brackets around all of it."""
    line = line.replace("\u00a0", " ").strip().lstrip("#").strip()
    # Blanks stay in place of the marks, so that two numbers never grow into one.
    line = _EMPHASIS.sub(lambda found: f" {found[2] or found[4] or found[5]} ", line).strip()
    if re.fullmatch(r"\[[^\[\]]*\]|\([^()]*\)", line):
        line = line[1:-1].strip()
    return line


def _silent(rest: str | None) -> bool:
    """Whether what follows the scores names no further number, which could be the one that is meant."""
    return not re.search(r"\d", _MENTION.sub("", rest or ""))


def _ordered(found: re.Match[str]) -> Scores | None:
    groups = found.groupdict()
    names = [
        next(value.lower() for kind in ("", "_bare", "_word") if (value := groups[which + kind]))
        for which in ("one", "two")
    ]
    numbers = [float(value) for value in re.findall(r"\d+(?:\.\d+)?", _numbers_only(found))]
    if names in (["1", "2"], ["a", "b"], ["first", "second"]):
        return numbers[0], numbers[1]
    if names in (["2", "1"], ["b", "a"], ["second", "first"]):
        return numbers[1], numbers[0]
    return None  # the same answer twice, or two ways of naming them


def _numbers_only(found: re.Match[str]) -> str:
    named = set(found.re.groupindex.values())
    values = [value for place, value in enumerate(found.groups(), start=1) if place not in named]
    return " ".join(value for value in values if value)


def _from_json(reply: str) -> Scores | None:
    text = reply.strip()
    if fenced := re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text, flags=re.DOTALL):
        text = fenced[1]
    try:
        found: Any = json.loads(text, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError):
        return None
    first: Any
    second: Any
    first, second = (found.get(key) for key in JSON_KEYS) if isinstance(found, dict) else (None, None)
    if type(first) not in (int, float) or type(second) not in (int, float):
        return None
    # Compared before it is converted: a whole number may be too large for a float.
    return (float(first), float(second)) if max(abs(first), abs(second)) <= HIGHEST else None


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that stands twice makes it ambiguous."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
