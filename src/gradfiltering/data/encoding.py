"""From a row's segments to token ids and the spans of them that are supervised, cut to a length."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from gradfiltering.data.schemas import EMPTY_RESPONSE, NO_ASSISTANT, Messages, Row, Schema, Segment
from gradfiltering.models.templates import closing, marks_assistant, stop_tokens

NO_RESPONSE = "no response token: the chat template marks none, or nothing precedes it"
NO_RESPONSE_LEFT = "no response token left in max_tokens"
UNSUPERVISED_SHARE = 4  # a stretch of prompt longer than max_tokens over this gives way before the response does

Piece = tuple[list[int], bool]


def clean(text: str) -> str:
    """The text with each lone surrogate, which no tokenizer takes, as the replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def pieces_of_rows(rows: Sequence[Row], schema: Schema, template: str, tokenizer: Any) -> list[list[Piece] | str]:
    """Tokenises rows; each becomes its tokens in stretches, supervised or not, or the reason why it cannot.

    Segments are tokenised apart, so the boundary between them never depends on how they would merge. A conversation
    takes the tokenizer's own chat template where that marks the assistant's tokens. Either way each response ends in
    the one token that `closing` names, or in an end of sequence that the template itself writes.
    """
    end = closing(template, tokenizer)
    if isinstance(schema, Messages) and marks_assistant(tokenizer):
        stops = set(stop_tokens(tokenizer))
        return [_by_chat_template(schema.conversation(row), tokenizer, end, stops) for row in rows]
    segments = [schema.segments(row, template, tokenizer) for row in rows]
    # The first segment of a row carries the tokenizer's start token, the others none.
    opening = tokenizer([clean(row[0].text) if row else "" for row in segments])["input_ids"] if segments else []
    rest = [clean(segment.text) for row in segments for segment in row[1:]]
    following = iter(tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else [])
    return [
        [(first, False), *(_piece(segment, next(following), end) for segment in row[1:])]
        for row, first in zip(segments, opening, strict=True)
    ]


def reason_of(row: Row, schema: Schema) -> str:
    """Why the row teaches nothing, before any token is counted; empty where it teaches."""
    if isinstance(schema, Messages):
        turns = schema.conversation(row)
        return "" if any(m["role"] == "assistant" and m["content"].strip() for m in turns) else NO_ASSISTANT
    return "" if (row.get(schema.fields[-1]) or "").strip() else EMPTY_RESPONSE


def fit(pieces: Sequence[Piece], max_tokens: int) -> tuple[list[int], list[int], bool]:
    """Cuts a row to `max_tokens` from the side that costs least.

    What follows the last supervised token goes first, since it teaches nothing. Then each long stretch of prompt gives
    up its middle, down to a share of `max_tokens`, so that its opening and its end (where a template's markers stand)
    and the response stay. What is still too long loses its end.

    Args:
        pieces: the row's tokens in stretches.
        max_tokens: longest row.

    Returns:
        Token ids; the supervised spans as start, stop, start, stop, …; whether anything was cut. Position 0 is in no
        span, since nothing precedes it to predict it from.
    """
    merged = _merged(pieces)
    total = sum(len(ids) for ids, _ in merged)
    cut = total > max_tokens
    if cut:
        if merged and not merged[-1][1]:
            total -= len(merged.pop()[0])
        merged = _shorten(merged, total - max_tokens, max(1, max_tokens // UNSUPERVISED_SHARE))
    tokens: list[int] = []
    spans: list[int] = []
    for ids, supervised in merged:
        start = max(len(tokens), 1)
        tokens += ids
        if supervised and min(len(tokens), max_tokens) > start:
            spans += [start, min(len(tokens), max_tokens)]
    return tokens[:max_tokens], spans, cut


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring unsupervised stretches as one; empty ones left out."""
    merged: list[Piece] = []
    for ids, supervised in pieces:
        if merged and not supervised and not merged[-1][1]:
            merged[-1] = (merged[-1][0] + ids, False)
        elif ids:
            merged.append((ids, supervised))
    return merged


def _shorten(pieces: list[Piece], over: int, floor: int) -> list[Piece]:
    """Takes up to `over` tokens from the middle of unsupervised stretches, the longest first, none below `floor`."""
    sizes = [len(ids) for ids, _ in pieces]
    for describe_row in sorted((p for p, piece in enumerate(pieces) if not piece[1]), key=lambda p: -sizes[p]):
        taken = min(max(over, 0), max(sizes[describe_row] - floor, 0))
        sizes[describe_row] -= taken
        over -= taken
    shortened = []
    for (ids, supervised), size in zip(pieces, sizes, strict=True):
        tail = size // 2
        shortened.append((ids if size == len(ids) else ids[: size - tail] + ids[len(ids) - tail :], supervised))
    return shortened


def _piece(segment: Segment, ids: list[int], end: int) -> Piece:
    return ([*ids, end], True) if segment.supervised else (ids, False)


def _by_chat_template(
    conversation: list[dict[str, str]], tokenizer: Any, end: int, stops: set[int]
) -> list[Piece] | str:
    messages = [{**message, "content": clean(message["content"])} for message in conversation]
    if not messages:
        return []
    try:
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except TemplateError as error:
        return f"the tokenizer's chat template refuses it: {error}"
    pieces: list[Piece] = []
    for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
        if not pieces or pieces[-1][1] != bool(mark):
            pieces.append(([], bool(mark)))
        pieces[-1][0].append(token)
    return _closed(pieces, end, stops, tokenizer)


def _closed(pieces: list[Piece], end: int, stops: set[int], tokenizer: Any) -> list[Piece]:
    """The pieces of a chat template with each response supervised up to the token that ends it, and no further.

    Templates differ in what they mark: the words alone, the end of the turn as well, or also the line break after it.
    A template that ends a turn in nothing but text gets the end of sequence put in.
    """

    def blank(ids: list[int]) -> bool:
        return not tokenizer.decode(ids).strip()

    closed: list[Piece] = []
    rest = list(pieces)
    while rest:
        ids, supervised = rest.pop(0)
        if not supervised:
            closed.append((ids, False))
            continue
        inside = max((describe_row + 1 for describe_row, token in enumerate(ids) if token in stops), default=0)
        if inside and blank(ids[inside:]):
            closed += [(ids[:inside], True), (ids[inside:], False)]
            continue
        following = rest[0][0] if rest else []
        after = next((describe_row + 1 for describe_row, token in enumerate(following) if token in stops), 0)
        if after and blank(following[: after - 1]):
            closed.append((ids + following[:after], True))
            rest[0] = (following[after:], False)
        else:
            closed.append(([*ids, end], True))
    return closed
