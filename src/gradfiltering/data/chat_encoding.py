"""Conversations as tokens by the tokenizer's own chat template, which marks the assistant's words."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gradfiltering.data.conversations import ChatMessage, Conversation
from gradfiltering.data.templates import (
    TEMPLATE_ERRORS,
    contains_text,
    content_parts,
    template_messages,
    wants_parts,
)
from gradfiltering.runs.plain_text import one_line, replace_all_lone_surrogates, replace_lone_surrogates

QUESTION_LEFT_OUT = "the template leaves out the question"
ANSWER_LEFT_OUT = "the chat template leaves out an answer that is to be learnt"
TURNS_UNCLEAR = "the chat template does not mark each assistant turn, and not all of them are to be learnt"
STRETCHES_UNCLEAR = "the chat template alters an answer of which only stretches are to be learnt"

TokenPiece = tuple[list[int], bool]
LabelledToken = tuple[int, bool]  # token id, supervised or not


@dataclass(frozen=True)
class TokenizedRow:
    """A row as tokens.

    Attributes:
        pieces: tokens in order, supervised or not.
        reason: why the row cannot be used; empty where it can.
        not_shown: what the row holds and the model does not see.
    """

    pieces: Sequence[TokenPiece] = ()
    reason: str = ""
    not_shown: Sequence[str] = ()


@dataclass(frozen=True)
class _Stretch:
    """Neighbouring tokens: a stretch that the template marks as the assistant's, or one between two of them."""

    start: int
    stop: int
    is_marked: bool


def tokenize_by_chat_template(
    conversation: Conversation, tokenizer: Any, closing_token_id: int, stop_token_ids: set[int]
) -> TokenizedRow:
    """Tokenise a conversation, and learn those of its assistant turns that are to be learnt.

    Args:
        conversation: a row's.
        tokenizer: its chat template has `{% generation %}` blocks.
        closing_token_id: put after a response that the template ends in nothing but text.
        stop_token_ids: tokens that end a response.
    """
    conversation = _replace_surrogates(conversation)
    messages = conversation.messages
    if not messages:
        return TokenizedRow()
    render = _prepare_rendering(conversation, tokenizer)
    try:
        rendered_text = render(tokenize=False)
        encoded = render(tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    except TEMPLATE_ERRORS as error:
        return TokenizedRow(reason=describe_refusal(error))
    shown_text = replace_lone_surrogates(rendered_text)
    missing_roles = roles_left_out(conversation, shown_text)
    if "user" in missing_roles:
        return TokenizedRow(reason=QUESTION_LEFT_OUT)
    token_ids, marks = encoded["input_ids"], encoded["assistant_masks"]
    stretches = _stretches(marks)
    marked_stretches = [stretch for stretch in stretches if stretch.is_marked]
    turns = _match_turns(messages, len(marked_stretches))
    if turns is None and any(turn.text.strip() and _is_partly_supervised(turn) for turn in messages):
        return TokenizedRow(reason=TURNS_UNCLEAR)
    supervised = [bool(mark) for mark in marks]
    not_shown = [f"{role} turns" for role in sorted(missing_roles)]
    for stretch, turn in zip(marked_stretches, turns or (), strict=False):
        stretch_text = tokenizer.decode(token_ids[stretch.start : stretch.stop])
        if not turn.supervised:
            supervised[stretch.start : stretch.stop] = [False] * (stretch.stop - stretch.start)
        elif turn.supervised_stretches is not None:
            offsets = tokenizer(rendered_text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            supervised_tokens = _find_supervised_tokens(turn, offsets[stretch.start : stretch.stop], rendered_text)
            if supervised_tokens is None:
                return TokenizedRow(reason=STRETCHES_UNCLEAR)
            supervised[stretch.start : stretch.stop] = supervised_tokens
        if turn.content.strip() and not stretch_text.strip():
            return TokenizedRow(reason=ANSWER_LEFT_OUT)
    not_shown += parts_left_out(conversation, shown_text, tokenizer)
    supervised_turns = [turn.supervised for turn in turns] if turns else [True] * len(marked_stretches)
    pieces = _close_responses(
        list(zip(token_ids, supervised, strict=True)),
        stretches,
        supervised_turns,
        closing_token_id,
        stop_token_ids,
        tokenizer,
    )
    return TokenizedRow(pieces, not_shown=not_shown)


def _replace_surrogates(conversation: Conversation) -> Conversation:
    return Conversation(
        tuple(_without_surrogates(message) for message in conversation.messages),
        tuple(replace_all_lone_surrogates(conversation.tools)),
        replace_all_lone_surrogates(conversation.template_arguments),
    )


def _prepare_rendering(conversation: Conversation, tokenizer: Any) -> Callable[..., Any]:
    """Return `apply_chat_template` with the conversation's messages, tools and arguments filled in."""
    rendered_messages = template_messages(conversation.messages, names_calls="tool_calls" in tokenizer.chat_template)
    if wants_parts(tokenizer):
        rendered_messages = content_parts(rendered_messages)
    return partial(
        tokenizer.apply_chat_template,
        rendered_messages,
        **{**conversation.template_arguments, "tools": list(conversation.tools) or None},
    )


def describe_refusal(error: Exception) -> str:
    """Put an error of a chat template into words, on one line."""
    return f"the tokenizer's chat template refuses it: {one_line(error, 200)}"


def roles_left_out(conversation: Conversation, whole_text: str) -> set[str]:
    """Find the roles, the assistant's aside, of which a message's text is missing from the text of the row."""
    return {
        message.role
        for message in conversation.messages
        if message.role != "assistant" and not contains_text(whole_text, message.content)
    }


def shows_tools(conversation: Conversation, whole_text: str) -> bool:
    """Return True where each tool is named in the text of the row."""
    names = [tool.get("function", tool).get("name") for tool in conversation.tools if _has_name(tool)]
    return all(str(name) in whole_text for name in names)


def _has_name(tool: Any) -> bool:
    function = tool.get("function", tool)
    return isinstance(function, dict) and "name" in function


def _without_surrogates(message: ChatMessage) -> ChatMessage:
    return replace(
        message,
        content=replace_lone_surrogates(message.content),
        reasoning=replace_lone_surrogates(message.reasoning),
        tool_calls=tuple(replace_all_lone_surrogates(message.tool_calls)),
        further_fields=replace_all_lone_surrogates(message.further_fields),
    )


def _stretches(marks: Sequence[int]) -> list[_Stretch]:
    stretches: list[_Stretch] = []
    for position, mark in enumerate(marks):
        if stretches and stretches[-1].is_marked == bool(mark):
            stretches[-1] = replace(stretches[-1], stop=position + 1)
        else:
            stretches.append(_Stretch(position, position + 1, bool(mark)))
    return stretches


def _match_turns(messages: Sequence[ChatMessage], marked_count: int) -> list[ChatMessage] | None:
    """The assistant turns that the marked stretches stand for; None where their numbers differ."""
    turns = [message for message in messages if message.role == "assistant"]
    for candidates in ([turn for turn in turns if turn.text.strip()], turns):
        if len(candidates) == marked_count:
            return candidates
    return None


def _is_partly_supervised(message: ChatMessage) -> bool:
    return message.role == "assistant" and (not message.supervised or message.supervised_stretches is not None)


def _find_supervised_tokens(
    turn: ChatMessage, offsets: Sequence[tuple[int, int]], rendered_text: str
) -> list[bool] | None:
    """Find the tokens of a turn that touch a stretch to learn; None where its content is not in the text as it is."""
    content_start = rendered_text.find(turn.content, offsets[0][0], offsets[-1][1])
    if content_start < 0:
        return None
    supervised_ranges = [
        (content_start + start, content_start + stop) for start, stop in turn.supervised_stretches or ()
    ]
    return [
        any(token_start < stop and token_stop > start for start, stop in supervised_ranges)
        for token_start, token_stop in offsets
    ]


def parts_left_out(conversation: Conversation, shown_text: str, tokenizer: Any) -> list[str]:
    """Name the parts of a conversation, beside the words of the others, that the chat template does not show."""
    chat_template = str(tokenizer.chat_template)
    answers = [message for message in conversation.messages if message.role == "assistant"]
    call_names = [call["function"]["name"] for message in answers for call in message.tool_calls]
    parts_shown = {
        "the whole of an answer": all(contains_text(shown_text, message.content) for message in answers),
        "reasoning": all(contains_text(shown_text, message.reasoning) for message in answers),
        "tool calls": all(name in shown_text for name in call_names),
        "tools": shows_tools(conversation, shown_text),
    }
    further_names = {name for message in conversation.messages for name in message.further_fields}
    unnamed_fields = [
        f"message field {name}"
        for name in sorted(further_names)
        if not re.search(rf"\b{re.escape(name)}\b", chat_template)
    ]
    unnamed_arguments = [
        f"chat_template_kwargs {name}"
        for name in sorted(conversation.template_arguments)
        if not re.search(rf"\b{re.escape(name)}\b", chat_template)
    ]
    return [*(name for name, is_shown in parts_shown.items() if not is_shown), *unnamed_fields, *unnamed_arguments]


def _close_responses(
    tokens: Sequence[LabelledToken],
    stretches: Sequence[_Stretch],
    supervised_turns: Sequence[bool],
    closing_token_id: int,
    stop_token_ids: set[int],
    tokenizer: Any,
) -> list[TokenPiece]:
    """Supervise each response of a chat template up to the token that ends it, and no further.

    Templates differ in what they mark: the words alone, the end of the turn as well, or also the line break after it.
    A template that ends a turn in nothing but text gets the end of sequence put in. The end of a response is learnt
    where anything of the response is.
    """

    def is_blank(part: Sequence[LabelledToken]) -> bool:
        return not tokenizer.decode([token_id for token_id, _ in part]).strip()

    def stop_ends(part: Sequence[LabelledToken]) -> list[int]:
        return [index + 1 for index, (token_id, _) in enumerate(part) if token_id in stop_token_ids]

    closed_tokens: list[LabelledToken] = []
    remaining_supervised = iter(supervised_turns)
    parts = [list(tokens[stretch.start : stretch.stop]) for stretch in stretches]
    for index, (stretch, part) in enumerate(zip(stretches, parts, strict=True)):
        if not stretch.is_marked:
            closed_tokens += [(token_id, False) for token_id, _ in part]
            continue
        is_supervised = next(remaining_supervised)
        stops_inside = stop_ends(part)
        if stops_inside and is_blank(part[stops_inside[-1] :]):
            response_end = stops_inside[-1]
            closed_tokens += [*part[: response_end - 1], (part[response_end - 1][0], is_supervised)]
            closed_tokens += [(token_id, False) for token_id, _ in part[response_end:]]
            continue
        closed_tokens += part
        following_part = parts[index + 1] if index + 1 < len(parts) else []
        stops_after = stop_ends(following_part)
        if stops_after and is_blank(following_part[: stops_after[0] - 1]):
            closed_tokens += [(token_id, is_supervised) for token_id, _ in following_part[: stops_after[0]]]
            parts[index + 1] = following_part[stops_after[0] :]
        else:
            closed_tokens.append((closing_token_id, is_supervised))
    return _as_pieces(closed_tokens)


def _as_pieces(tokens: Sequence[LabelledToken]) -> list[TokenPiece]:
    pieces: list[TokenPiece] = []
    for token_id, supervised in tokens:
        if pieces and pieces[-1][1] == supervised:
            pieces[-1][0].append(token_id)
        else:
            pieces.append(([token_id], supervised))
    return pieces
