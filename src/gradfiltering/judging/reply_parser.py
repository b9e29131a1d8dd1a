"""Parsing of two scores from a judge's reply: tolerant of notation, strict about which numbers count.

A reply must open with its scores. An uncertain reply is left unread: a guess would become a verdict
that nobody gave.

The work grows linearly with a reply's length and has an end: of what follows a thought, at most
`LONGEST_STATEMENT` characters are looked at. The patterns for scores hold no repetition without a
bound but for the rest of the line, since blanks are reduced to single ones first; so none can be
made to try the same characters in many ways.
"""

import json
import re
from typing import Any, Literal

from gradfiltering.judging.verdicts import Scores

ReplyFormat = Literal["text", "json"]
LOWEST, HIGHEST = 0.0, 10.0  # the prompt names 1 to 10; GPT-4 gives a 0 to an empty answer
JSON_KEYS = ("score_1", "score_2")
LONGEST_STATEMENT = 50_000  # characters; a text's first line, or a JSON object, must end within them

_SCORE = r"(?<![\d.+\-−/])(\d{1,2}(?:\.\d{1,2})?)(?![\d%])"
_OF_TEN = r" ?(?:/|out of) ?10(?:\.0)?(?![.,]{0,2}\d)"
_BETWEEN = r"(?: ?[,;|&] ?| (?:and |vs\.? )?)"
# What may follow on the same line. Without punctuation "5 10 year olds" would be two scores.
_REST = (
    r"(?: ?[.;:,]?$"
    r"|(?:[.;:,] | [-–—(]| (?=(?:Assistant|Answer|Response|Both)\b))(?P<rest>.*)$)"
)
_ANSWER_NAME = (
    r"(?:(?:the )?(?:scores?|ratings?)(?: (?:for|of))? )?"
    r"(?:(?:(?:ai )?(?:assistant|answer|response|model|score) ?#? ?)(?P<{0}>[12ab])"
    r"|(?P<{0}_bare>[ab])|(?P<{0}_word>first|second)"
    r"(?: (?:assistant|answer|response|model))?)(?:['’]s)?(?: (?:score|rating))?"
    r"(?: ?[:=]| [-–](?= )| ?\bis\b) ?"
)
_PREFIX = r"(?:(?:my )?(?:scores?|ratings?)(?: (?:are|is))? ?[:=]? ?)?"

# "Score 1 0" may be the score of answer 1: without names, "score" and 1 or 2 must stand apart.
_NO_NAME = r"(?!scores? ?#? ?[12](?![\d.]))"


def _compile_pair(first_name: str, second_name: str, score: str) -> re.Pattern[str]:
    opening = "^" if first_name else "^" + _NO_NAME
    pattern = opening + _PREFIX + first_name + score + _BETWEEN + second_name + score + _REST
    return re.compile(pattern, flags=re.ASCII | re.IGNORECASE)


_SCORE_FORMS = (_SCORE, _SCORE + _OF_TEN)
_FIRST_NAME, _SECOND_NAME = _ANSWER_NAME.format("one"), _ANSWER_NAME.format("two")
_PLAIN_PAIRS = [_compile_pair("", "", score) for score in _SCORE_FORMS]
_LABELLED_PAIRS = [_compile_pair(_FIRST_NAME, _SECOND_NAME, score) for score in _SCORE_FORMS]
_LABELLED_SCORE = re.compile(r"^[-•]? ?" + _FIRST_NAME + _SCORE + rf"(?:{_OF_TEN})? ?[.,;]?$", re.ASCII | re.I)
_THOUGHT_START, _THOUGHT_END = "<think>", "</think>"
_HEADING = re.compile(r"^(?:scores?|ratings?|evaluation|verdict) ?:?$|^```\w*$", flags=re.IGNORECASE)
_BLANKS = re.compile(r"[ \t]+")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})([^*]+)\1(?![\w*])|(?<!\w)(_{2})([^_]+)_{2}(?!\w)|`([^`]+)`")
_ANSWER_MENTION = re.compile(
    r"\b(?:assistants?|answers?|responses?|models?) ?#? ?[12]\b(?: ?(?:and|or|&) ?[12]\b)?", re.I
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
    stated = reply.replace("\ufeff", "").lstrip()
    if stated.startswith(_THOUGHT_START):
        stated = stated.partition(_THOUGHT_END)[2]
    if _THOUGHT_END in stated:
        return None  # where the thinking began is unknown, so a thought may stand first
    scores = _read_json(stated) if reply_format == "json" else _read_text(stated)
    if scores is None or not all(LOWEST <= score <= HIGHEST for score in scores):
        return None
    return scores


def _read_text(reply: str) -> Scores | None:
    visible_lines = reply[:LONGEST_STATEMENT].splitlines()
    if len(reply) > LONGEST_STATEMENT:
        visible_lines = visible_lines[:-1]  # its end is unknown
    lines = filter(None, map(_strip_markdown, visible_lines))
    opening = next((line for line in lines if not _HEADING.match(line)), None)
    if opening is None:
        return None
    # One line for each answer, as in "Assistant 1: 8" and below it "Assistant 2: 7".
    if _LABELLED_SCORE.match(opening) and _LABELLED_SCORE.match(second_line := next(lines, "")):
        opening = " ".join(line.lstrip("-•").strip().rstrip(".,;") for line in (opening, second_line))
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
    line = _EMPHASIS.sub(lambda match: f" {match[2] or match[4] or match[5]} ", line)
    line = _BLANKS.sub(" ", line).strip()
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
    if len(text) > LONGEST_STATEMENT:
        return None
    opening_line, _, body = text.partition("\n")
    if opening_line.rstrip() in ("```", "```json") and body.endswith("```"):
        text = body.removesuffix("```")
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
