"""From a row's segments to token ids and the spans of them that are supervised, cut to a length."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gradfiltering.data.chat_encoding import (
    QUESTION_LEFT_OUT,
    TokenizedRow,
    TokenPiece,
    describe_refusal,
    parts_left_out,
    roles_left_out,
    shows_tools,
    tokenize_by_chat_template,
)
from gradfiltering.data.conversation_layout import Segment, chat_segments
from gradfiltering.data.conversations import Conversation
from gradfiltering.data.row_columns import Row
from gradfiltering.data.row_cutting import QuestionPart, merge_prompt_pieces, shorten_questions
from gradfiltering.data.schemas import EMPTY_RESPONSE, NO_ASSISTANT, NO_SCHEMA, NOT_TRAINED, Instruction, Schema
from gradfiltering.data.templates import (
    TEMPLATE_ERRORS,
    closing_token,
    has_chat_template,
    marks_assistant,
    stop_tokens,
    tokenize_prompts,
)
from gradfiltering.runs.plain_text import replace_lone_surrogates

NO_RESPONSE = "no response token: the chat template marks none, or nothing precedes it"
NO_RESPONSE_LEFT = "no response token left in max_tokens"


def tokenize_rows(dataset_rows: Sequence[Row], schema: Schema, template: str, tokenizer: Any) -> list[TokenizedRow]:
    """Tokenise rows.

    Segments are tokenised apart, so the boundary between them never depends on how they would merge. A conversation
    takes the tokenizer's own chat template where that marks the assistant's tokens. Either way each response ends in
    the one token that `closing_token` names, or in an end of sequence that the template itself writes. What the model
    would see is compared with what the row says: a row whose question is left out is refused, and other parts that
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
            segments = _lay_out(row_values, schema, template, tokenizer)
        except TEMPLATE_ERRORS as error:
            tokenized_rows.append(TokenizedRow(reason=describe_refusal(error)))
            continue
        tokenized_rows.append(None)
        segments_of_rows.append(segments)
    pieces_of_rows = iter(_tokenize_segments(segments_of_rows, closing_token_id, tokenizer))
    segments_in_order = iter(segments_of_rows)
    return [
        _check_segments(
            schema.conversation(row_values),
            next(segments_in_order),
            next(pieces_of_rows),
            tokenizer if _takes_whole_chat_template(row_values, schema, template, tokenizer) else None,
        )
        if tokenized_row is None
        else tokenized_row
        for row_values, tokenized_row in zip(dataset_rows, tokenized_rows, strict=True)
    ]


def _takes_whole_chat_template(row_values: Row, schema: Schema, template: str, tokenizer: Any) -> bool:
    """Return True where the chat template lays out all turns at once, though it does not mark the assistant's."""
    return template == "chat" and has_chat_template(tokenizer) and schema.is_multi_turn(row_values)


def _lay_out(row_values: Row, schema: Schema, template: str, tokenizer: Any) -> list[Segment]:
    conversation = schema.conversation(row_values)
    if conversation is not None and _takes_whole_chat_template(row_values, schema, template, tokenizer):
        return chat_segments(conversation, tokenizer)
    return schema.segments(row_values, template, tokenizer)


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
    conversation: Conversation | None,
    segments: Sequence[Segment],
    text_pieces: Sequence[TokenPiece],
    chat_tokenizer: Any | None,
) -> TokenizedRow:
    """Compare the text of segments with what the row says.

    Args:
        conversation: the row as messages; None for a text.
        segments: the row as text.
        text_pieces: the row as tokens.
        chat_tokenizer: the tokenizer whose chat template laid out the whole conversation; None for another layout.
    """
    if conversation is None:
        return TokenizedRow(text_pieces)
    whole_text = "".join(segment.text for segment in segments)
    missing_roles = roles_left_out(conversation, whole_text)
    if "user" in missing_roles:
        return TokenizedRow(reason=QUESTION_LEFT_OUT)
    not_shown = [f"{role} turns" for role in sorted(missing_roles)]
    if chat_tokenizer is not None:
        not_shown += parts_left_out(conversation, whole_text, chat_tokenizer)
        return TokenizedRow(text_pieces, not_shown=not_shown)
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
    if not any(answer.supervised for answer in conversation.answers):
        return NOT_TRAINED
    return ""


def shorten_row(
    row_values: Row, schema: Schema, template: str, tokenizer: Any, text_pieces: Sequence[TokenPiece], max_tokens: int
) -> Sequence[TokenPiece]:
    """Tokenise a row that is too long once more, with its questions shortened by as much as they can give.

    Questions, system turns, and answers that are not learnt lose their middle, and a mark stands in its place; the
    template is written around what is left, whole.

    Args:
        row_values: the row.
        schema: of the dataset.
        template: name of the template.
        tokenizer: of the model.
        text_pieces: the whole row as `tokenize_rows` made it.
        max_tokens: longest row.

    Returns:
        Pieces, for `cut_to_length`; its answers are whole.
    """
    conversation = schema.conversation(row_values)
    if conversation is None:  # a text asks nothing
        return text_pieces
    closing_token_id = closing_token(template, tokenizer)
    if marks_assistant(tokenizer) and (schema.is_conversational or template == "conversation"):
        stop_token_ids = set(stop_tokens(tokenizer))
        parts = _shortenable_messages(conversation)

        def tokenize_messages(texts: Sequence[str]) -> Sequence[TokenPiece]:
            messages = list(conversation.messages)
            for part, text in zip(parts, texts, strict=True):
                messages[part.position] = replace(messages[part.position], content=text)
            shortened = replace(conversation, messages=tuple(messages))
            return tokenize_by_chat_template(shortened, tokenizer, closing_token_id, stop_token_ids).pieces

        return shorten_questions(text_pieces, parts, tokenize_messages, tokenizer, max_tokens)
    segments = _lay_out(row_values, schema, template, tokenizer)
    parts = _shortenable_stretches(segments, _question_texts(row_values, schema, conversation))

    def tokenize_segments(texts: Sequence[str]) -> Sequence[TokenPiece]:
        segment_texts = [segment.text for segment in segments]
        for part, text in reversed(list(zip(parts, texts, strict=True))):
            earlier_text = segment_texts[part.position]
            text_after = earlier_text[part.start + len(part.text) :]
            segment_texts[part.position] = earlier_text[: part.start] + text + text_after
        shortened = [replace(segment, text=text) for segment, text in zip(segments, segment_texts, strict=True)]
        return _tokenize_segments([shortened], closing_token_id, tokenizer)[0]

    return shorten_questions(text_pieces, parts, tokenize_segments, tokenizer, max_tokens)


def _shortenable_messages(conversation: Conversation) -> list[QuestionPart]:
    parts, answers_before = [], 0
    for position, message in enumerate(conversation.messages):
        if message.role == "assistant" and message.supervised:
            answers_before += 1
        else:
            parts.append(QuestionPart(message.content, position, 0, answers_before))
    return parts


def _question_texts(row_values: Row, schema: Schema, conversation: Conversation) -> list[str]:
    """List what a person or a system wrote, in the order of the templates, and answers that are not learnt."""
    row_schema = schema.of_row(row_values)
    messages = [message for message in conversation.messages if message.role != "assistant" or not message.supervised]
    texts = [message.content for message in messages]
    if isinstance(row_schema, Instruction) and row_schema.input is not None:
        # The question of the conversation is instruction and input in one, and templates put them apart.
        texts[-1:] = [row_values.get(row_schema.instruction) or "", row_values.get(row_schema.input) or ""]
    return [text.strip() for text in texts if text.strip()]


def _shortenable_stretches(segments: Sequence[Segment], question_texts: Sequence[str]) -> list[QuestionPart]:
    """Find the questions in the segments, one after the other."""
    parts = []
    position, start, answers_before = 0, 0, [0]
    for segment in segments:
        answers_before.append(answers_before[-1] + (segment.supervised and bool(segment.text)))
    for question_text in question_texts:
        for later_position in range(position, len(segments)):
            segment = segments[later_position]
            search_start = start if later_position == position else 0
            question_start = -1 if segment.supervised else segment.text.find(question_text, search_start)
            if question_start >= 0:
                parts.append(
                    QuestionPart(question_text, later_position, question_start, answers_before[later_position])
                )
                position, start = later_position, question_start + len(question_text)
                break
    return parts


def cut_to_length(text_pieces: Sequence[TokenPiece], max_tokens: int) -> tuple[list[int], list[int]]:
    """Cut the end off a row that is longer than `max_tokens`; it then ends in an answer, or in a part of one.

    What follows the last answer goes too, since it teaches nothing; an answer that lost its end has no end token, so
    that nobody learns to stop there.

    Args:
        text_pieces: the row's tokens in pieces, its questions shortened as far as they go.
        max_tokens: longest row.

    Returns:
        Token ids; the supervised spans as start, stop, start, stop, …. Position 0 is in no span, since nothing
        precedes it to predict it from.
    """
    merged_pieces = merge_prompt_pieces(text_pieces)
    is_long = sum(len(token_ids) for token_ids, _ in merged_pieces) > max_tokens
    left_tokens: list[int] = []
    supervised_spans: list[int] = []
    for token_ids, supervised in merged_pieces:
        span_start = max(len(left_tokens), 1)
        left_tokens += token_ids
        span_stop = min(len(left_tokens), max_tokens)
        if supervised and span_stop > span_start:
            supervised_spans += [span_start, span_stop]
    if is_long:
        left_tokens = left_tokens[: supervised_spans[-1] if supervised_spans else max_tokens]
    return left_tokens, supervised_spans
