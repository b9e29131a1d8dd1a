"""From a row's segments to token ids and the spans of them that are supervised, cut to a length."""

from collections.abc import Sequence
from typing import Any

from gradfiltering.data.chat_encoding import (
    QUESTION_LEFT_OUT,
    TokenizedRow,
    TokenPiece,
    describe_refusal,
    roles_left_out,
    shows_tools,
    tokenize_by_chat_template,
)
from gradfiltering.data.conversations import Conversation
from gradfiltering.data.schemas import (
    EMPTY_RESPONSE,
    NO_ASSISTANT,
    NO_SCHEMA,
    NOT_TRAINED,
    Instruction,
    Row,
    Schema,
    Segment,
)
from gradfiltering.data.templates import (
    TEMPLATE_ERRORS,
    closing_token,
    marks_assistant,
    stop_tokens,
    tokenize_prompts,
)
from gradfiltering.runs.plain_text import replace_lone_surrogates

NO_RESPONSE = "no response token: the chat template marks none, or nothing precedes it"
NO_RESPONSE_LEFT = "no response token left in max_tokens"
UNSUPERVISED_SHARE = 4  # a piece of prompt longer than max_tokens over this gives way before the response does


def tokenize_rows(dataset_rows: Sequence[Row], schema: Schema, template: str, tokenizer: Any) -> list[TokenizedRow]:
    """Tokenise rows.

    Segments are tokenised apart, so the boundary between them never depends on how they would merge. A conversation
    takes the tokenizer's own chat template where that marks the assistant's tokens. Either way each response ends in
    the one token that `closing_token` names, or in an end of sequence that the template itself writes. What the model
    would see is held against what the row says: a row whose question is left out is refused, and other parts that
    are left out are named.
    """
    closing_token_id = closing_token(template, tokenizer)
    uses_chat_template = marks_assistant(tokenizer) and (schema.is_conversational or template == "conversation")
    stop_token_ids = set(stop_tokens(tokenizer)) if uses_chat_template else set()
    tokenized_rows: list[TokenizedRow | None] = []
    segments_of_rows: list[list[Segment]] = []
    for row_values in dataset_rows:
        conversation = schema.conversation(row_values)
        if uses_chat_template and conversation is not None:
            tokenized_rows.append(tokenize_by_chat_template(conversation, tokenizer, closing_token_id, stop_token_ids))
            continue
        try:
            segments = schema.segments(row_values, template, tokenizer)
        except TEMPLATE_ERRORS as error:
            tokenized_rows.append(TokenizedRow(reason=describe_refusal(error)))
            continue
        tokenized_rows.append(None)
        segments_of_rows.append(segments)
    pieces_of_rows = iter(_tokenize_segments(segments_of_rows, closing_token_id, tokenizer))
    segments_in_order = iter(segments_of_rows)
    return [
        _check_segments(schema.conversation(row_values), next(segments_in_order), next(pieces_of_rows))
        if tokenized_row is None
        else tokenized_row
        for row_values, tokenized_row in zip(dataset_rows, tokenized_rows, strict=True)
    ]


def _tokenize_segments(
    segments_of_rows: Sequence[Sequence[Segment]], closing_token_id: int, tokenizer: Any
) -> list[list[TokenPiece]]:
    # The first segment of a row carries the tokenizer's start token, the others none.
    first_texts = [replace_lone_surrogates(segments[0].text) if segments else "" for segments in segments_of_rows]
    first_token_ids = tokenize_prompts(first_texts, tokenizer)
    later_texts = [replace_lone_surrogates(segment.text) for segments in segments_of_rows for segment in segments[1:]]
    later_token_ids = iter(tokenizer(later_texts, add_special_tokens=False)["input_ids"] if later_texts else [])
    pieces_of_rows = []
    for segments, token_ids in zip(segments_of_rows, first_token_ids, strict=True):
        text_pieces: list[TokenPiece] = [(token_ids, False)]
        for segment in segments[1:]:
            segment_ids = next(later_token_ids)
            closing_ids = [closing_token_id] if segment.ends_turn else []
            text_pieces.append(([*segment_ids, *closing_ids], segment.supervised))
        pieces_of_rows.append(_merge_answers(text_pieces))
    return pieces_of_rows


def _merge_answers(text_pieces: Sequence[TokenPiece]) -> list[TokenPiece]:
    """Join neighbouring supervised pieces: the words of an answer and the token that ends it."""
    merged_pieces: list[TokenPiece] = []
    for token_ids, supervised in text_pieces:
        if merged_pieces and supervised and merged_pieces[-1][1]:
            merged_pieces[-1] = ([*merged_pieces[-1][0], *token_ids], True)
        else:
            merged_pieces.append((token_ids, supervised))
    return merged_pieces


def _check_segments(
    conversation: Conversation | None, segments: Sequence[Segment], text_pieces: Sequence[TokenPiece]
) -> TokenizedRow:
    """Hold the text of segments against what the row says."""
    if conversation is None:
        return TokenizedRow(text_pieces)
    whole_text = "".join(segment.text for segment in segments)
    missing_roles = roles_left_out(conversation, whole_text)
    if "user" in missing_roles:
        return TokenizedRow(reason=QUESTION_LEFT_OUT)
    not_shown = [f"{role} turns" for role in sorted(missing_roles)]
    if not shows_tools(conversation, whole_text):
        not_shown.append("tools")
    if conversation.template_arguments:
        not_shown.append("chat_template_kwargs")
    further_names = {name for message in conversation.messages for name in message.further_fields}
    not_shown += [f"message field {name}" for name in sorted(further_names)]
    return TokenizedRow(text_pieces, not_shown=not_shown)


def find_reason(row_values: Row, schema: Schema) -> str:
    """Return the reason why a row teaches nothing, before any token is counted; empty where it teaches."""
    row_schema = schema.of_row(row_values)
    if row_schema is None:
        return NO_SCHEMA
    conversation = row_schema.conversation(row_values)
    if conversation is None:
        return "" if (row_values.get(row_schema.fields[0]) or "").strip() else EMPTY_RESPONSE
    if not conversation.answers:
        return EMPTY_RESPONSE if isinstance(row_schema, Instruction) else NO_ASSISTANT
    if not any(answer.trained for answer in conversation.answers):
        return NOT_TRAINED
    return ""


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
