"""From a row's segments to token ids and the spans of them that are supervised, cut to a length."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from gradfiltering.data.schemas import EMPTY_RESPONSE, NO_ASSISTANT, Messages, Row, Schema, Segment
from gradfiltering.data.templates import closing_token, marks_assistant, stop_tokens

NO_RESPONSE = "no response token: the chat template marks none, or nothing precedes it"
NO_RESPONSE_LEFT = "no response token left in max_tokens"
UNSUPERVISED_SHARE = 4  # a piece of prompt longer than max_tokens over this gives way before the response does

TokenPiece = tuple[list[int], bool]


def replace_lone_surrogates(text: str) -> str:
    """The text with each lone surrogate, which no tokenizer takes, as the replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def tokenize_rows(
    dataset_rows: Sequence[Row], schema: Schema, template: str, tokenizer: Any
) -> list[list[TokenPiece] | str]:
    """Tokenise rows; each becomes pieces of tokens, supervised or not, or the reason why it cannot.

    Segments are tokenised apart, so the boundary between them never depends on how they would merge. A conversation
    takes the tokenizer's own chat template where that marks the assistant's tokens. Either way each response ends in
    the one token that `closing_token` names, or in an end of sequence that the template itself writes.
    """
    closing_token_id = closing_token(template, tokenizer)
    if isinstance(schema, Messages) and marks_assistant(tokenizer):
        stop_token_ids = set(stop_tokens(tokenizer))
        return [
            _tokenize_by_chat_template(schema.conversation(row_values), tokenizer, closing_token_id, stop_token_ids)
            for row_values in dataset_rows
        ]
    segments_of_rows = [schema.segments(row_values, template, tokenizer) for row_values in dataset_rows]
    if not segments_of_rows:
        return []
    # The first segment of a row carries the tokenizer's start token, the others none.
    first_texts = [replace_lone_surrogates(segments[0].text) if segments else "" for segments in segments_of_rows]
    first_token_ids = tokenizer(first_texts)["input_ids"]
    later_texts = [replace_lone_surrogates(segment.text) for segments in segments_of_rows for segment in segments[1:]]
    later_token_ids = iter(tokenizer(later_texts, add_special_tokens=False)["input_ids"] if later_texts else [])
    tokenized_rows: list[list[TokenPiece] | str] = []
    for segments, token_ids in zip(segments_of_rows, first_token_ids, strict=True):
        later_pieces = [_make_piece(segment, next(later_token_ids), closing_token_id) for segment in segments[1:]]
        tokenized_rows.append([(token_ids, False), *later_pieces])
    return tokenized_rows


def find_reason(row_values: Row, schema: Schema) -> str:
    """Return the reason why a row teaches nothing, before any token is counted; empty where it teaches."""
    if isinstance(schema, Messages):
        chat_messages = schema.conversation(row_values)
        answers = [message["content"].strip() for message in chat_messages if message["role"] == "assistant"]
        return "" if any(answers) else NO_ASSISTANT
    return "" if (row_values.get(schema.fields[-1]) or "").strip() else EMPTY_RESPONSE


def cut_to_length(text_pieces: Sequence[TokenPiece], max_tokens: int) -> tuple[list[int], list[int], bool]:
    """Cut a row to `max_tokens` from the side that costs least.

    What follows the last supervised token goes first, since it teaches nothing. Then each long piece of prompt gives
    up its middle, down to a share of `max_tokens`, so that its opening and its end (where a template's markers stand)
    and the response stay. A row that is still too long loses its end.

    Args:
        text_pieces: the row's tokens in pieces.
        max_tokens: longest row.

    Returns:
        Token ids; the supervised spans as start, stop, start, stop, …; True if anything was cut. Position 0 is in no
        span, since nothing precedes it to predict it from.
    """
    merged_pieces = _merge_prompt_pieces(text_pieces)
    total_tokens = sum(len(token_ids) for token_ids, _ in merged_pieces)
    was_cut = total_tokens > max_tokens
    if was_cut:
        if merged_pieces and not merged_pieces[-1][1]:
            total_tokens -= len(merged_pieces.pop()[0])
        merged_pieces = _shorten_prompts(
            merged_pieces, total_tokens - max_tokens, max(1, max_tokens // UNSUPERVISED_SHARE)
        )
    kept_tokens: list[int] = []
    supervised_spans: list[int] = []
    for token_ids, supervised in merged_pieces:
        span_start = max(len(kept_tokens), 1)
        kept_tokens += token_ids
        if supervised and min(len(kept_tokens), max_tokens) > span_start:
            supervised_spans += [span_start, min(len(kept_tokens), max_tokens)]
    return kept_tokens[:max_tokens], supervised_spans, was_cut


def _merge_prompt_pieces(text_pieces: Sequence[TokenPiece]) -> list[TokenPiece]:
    """Neighbouring unsupervised pieces as one; empty ones left out."""
    merged_pieces: list[TokenPiece] = []
    for token_ids, supervised in text_pieces:
        if merged_pieces and not supervised and not merged_pieces[-1][1]:
            merged_pieces[-1] = (merged_pieces[-1][0] + token_ids, False)
        elif token_ids:
            merged_pieces.append((token_ids, supervised))
    return merged_pieces


def _shorten_prompts(text_pieces: list[TokenPiece], excess_tokens: int, minimum_size: int) -> list[TokenPiece]:
    """Take up to `excess_tokens` from the middle of unsupervised pieces, the longest first.

    No piece becomes shorter than `minimum_size`.
    """
    piece_sizes = [len(token_ids) for token_ids, _ in text_pieces]
    prompt_indices = [index for index, (_, supervised) in enumerate(text_pieces) if not supervised]
    for piece_index in sorted(prompt_indices, key=lambda index: -piece_sizes[index]):
        removed_tokens = min(max(excess_tokens, 0), max(piece_sizes[piece_index] - minimum_size, 0))
        piece_sizes[piece_index] -= removed_tokens
        excess_tokens -= removed_tokens
    shortened_pieces = []
    for (token_ids, supervised), piece_size in zip(text_pieces, piece_sizes, strict=True):
        if piece_size < len(token_ids):
            tail_size = piece_size // 2
            token_ids = token_ids[: piece_size - tail_size] + token_ids[len(token_ids) - tail_size :]
        shortened_pieces.append((token_ids, supervised))
    return shortened_pieces


def _make_piece(text_segment: Segment, token_ids: list[int], closing_token_id: int) -> TokenPiece:
    return ([*token_ids, closing_token_id], True) if text_segment.supervised else (token_ids, False)


def _tokenize_by_chat_template(
    conversation: list[dict[str, str]], tokenizer: Any, closing_token_id: int, stop_token_ids: set[int]
) -> list[TokenPiece] | str:
    chat_messages = [{**message, "content": replace_lone_surrogates(message["content"])} for message in conversation]
    if not chat_messages:
        return []
    try:
        encoded_messages = tokenizer.apply_chat_template(
            chat_messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except TemplateError as error:
        return f"the tokenizer's chat template refuses it: {error}"
    text_pieces: list[TokenPiece] = []
    for token_id, assistant_mark in zip(
        encoded_messages["input_ids"], encoded_messages["assistant_masks"], strict=True
    ):
        if not text_pieces or text_pieces[-1][1] != bool(assistant_mark):
            text_pieces.append(([], bool(assistant_mark)))
        text_pieces[-1][0].append(token_id)
    return _close_responses(text_pieces, closing_token_id, stop_token_ids, tokenizer)


def _close_responses(
    text_pieces: list[TokenPiece], closing_token_id: int, stop_token_ids: set[int], tokenizer: Any
) -> list[TokenPiece]:
    """Supervise each response of a chat template up to the token that ends it, and no further.

    Templates differ in what they mark: the words alone, the end of the turn as well, or also the line break after it.
    A template that ends a turn in nothing but text gets the end of sequence put in.
    """

    def is_blank(token_ids: list[int]) -> bool:
        return not tokenizer.decode(token_ids).strip()

    closed_pieces: list[TokenPiece] = []
    remaining_pieces = list(text_pieces)
    while remaining_pieces:
        token_ids, supervised = remaining_pieces.pop(0)
        if not supervised:
            closed_pieces.append((token_ids, False))
            continue
        stops_inside = [index + 1 for index, token_id in enumerate(token_ids) if token_id in stop_token_ids]
        if stops_inside and is_blank(token_ids[stops_inside[-1] :]):
            response_end = stops_inside[-1]
            closed_pieces += [(token_ids[:response_end], True), (token_ids[response_end:], False)]
            continue
        next_token_ids = remaining_pieces[0][0] if remaining_pieces else []
        stops_after = [index + 1 for index, token_id in enumerate(next_token_ids) if token_id in stop_token_ids]
        if stops_after and is_blank(next_token_ids[: stops_after[0] - 1]):
            closed_pieces.append((token_ids + next_token_ids[: stops_after[0]], True))
            remaining_pieces[0] = (next_token_ids[stops_after[0] :], False)
        else:
            closed_pieces.append(([*token_ids, closing_token_id], True))
    return closed_pieces
