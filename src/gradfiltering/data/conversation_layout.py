"""A conversation as text: segments that are learnt and segments that are not, and its first question and answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from gradfiltering.data.conversations import (
    ChatMessage,
    Conversation,
)
from gradfiltering.data.templates import (
    Turn,
    closing_token,
    contains_text,
    drop_doubled_start,
    render_chat,
    template_messages,
)


@dataclass(frozen=True)
class Segment:
    """A stretch of a row's text.

    Attributes:
        text: tokenised apart from its neighbours.
        supervised: True where the model learns to say it.
        ends_turn: True where the token that ends a response follows.
    """

    text: str
    supervised: bool
    ends_turn: bool = False


def conversation_segments(conversation: Conversation) -> list[Segment]:
    """Lay out a conversation for a tokenizer whose chat template does not mark the assistant's words."""
    segments = []
    if conversation.tools:
        segments.append(Segment(f"<|tools|>\n{conversation.tools_text}\n", False))
    for message in conversation.messages:
        if message.role != "assistant":
            segments.append(Segment(f"<|{message.role}|>\n{message.content}\n", False))
            continue
        segments.append(Segment("<|assistant|>\n", False))
        if message.text.strip():
            segments += [Segment(text, supervised) for text, supervised in message.stretches() if text]
            segments.append(Segment("", message.supervised, ends_turn=True))
        else:  # a turn without text teaches nothing but to stop
            segments.append(Segment(message.text, False))
    return segments


def chat_segments(conversation: Conversation, tokenizer: Any) -> list[Segment]:
    """Lay out a conversation by a chat template that does not mark the assistant's words.

    An answer begins where the template, given the messages before it, asks for it, and ends in the template's end of
    turn. So it holds all that the template writes of it: reasoning and tool calls, too.

    Raises:
        TemplateError: the template refuses the conversation, or writes it otherwise than one answer after the other.
    """
    messages = template_messages(conversation.messages, names_calls="tool_calls" in str(tokenizer.chat_template))

    def render(first_messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        return render_chat(
            first_messages,
            tokenizer,
            add_generation_prompt,
            **{**conversation.template_arguments, "tools": list(conversation.tools) or None},
        )

    whole_text = render(messages, add_generation_prompt=False)
    closing_text = tokenizer.convert_ids_to_tokens(closing_token("chat", tokenizer))
    segments: list[Segment] = []
    position = 0
    for index, message in enumerate(conversation.messages):
        if message.role != "assistant" or not message.text.strip():
            continue
        content = messages[index]["content"]
        prompt = render(messages[:index], True) if index else whole_text.partition(content)[0]
        if len(prompt) < position or not whole_text.startswith(prompt):
            raise TemplateError("it writes an earlier answer otherwise than as it is")
        answer, ending = _written_answer(whole_text[len(prompt) :], content, closing_text)
        if not contains_text(answer, message.content):
            raise TemplateError("it leaves out or rewrites an answer")
        prompt_text = whole_text[position : len(prompt)]
        segments.append(Segment(prompt_text if segments else drop_doubled_start(prompt_text, tokenizer), False))
        segments += [*_answer_segments(message, answer), Segment("", message.supervised, ends_turn=True)]
        position = len(prompt) + len(ending)
    if conversation.messages and conversation.messages[-1].role != "assistant":
        segments.append(Segment(whole_text[position:], False))
    return segments


def _written_answer(text_after: str, content: str, closing_text: str) -> tuple[str, str]:
    """Find what a chat template wrote of an answer in the text that begins with it.

    Returns:
        The answer as it is to be learnt, and the text up to where the rest of the conversation begins.
    """
    opening = next((text for text in (content, content.strip()) if text and text_after.startswith(text)), "")
    end_of_answer = text_after.find(closing_text, len(opening))
    if end_of_answer < 0:
        if not opening:
            raise TemplateError("it does not show where an answer ends")
        return opening, opening
    answer = text_after[:end_of_answer]
    if opening and not answer.removeprefix(opening).strip():
        answer = opening
    return answer, text_after[: end_of_answer + len(closing_text)]


def _answer_segments(message: ChatMessage, answer: str) -> list[Segment]:
    """An answer as the stretches of it that are learnt or not."""
    if not message.supervised or message.supervised_stretches is None:
        return [Segment(answer, message.supervised)]
    content_start = answer.find(message.content)
    if content_start < 0:
        raise TemplateError("it alters an answer of which only stretches are to be learnt")
    segments = []
    position = 0
    for start, stop in message.supervised_stretches:
        segments.append(Segment(answer[position : content_start + start], False))
        segments.append(Segment(answer[content_start + start : content_start + stop], True))
        position = content_start + stop
    segments.append(Segment(answer[position:], False))
    return [segment for segment in segments if segment.text]


def first_turn(conversation: Conversation) -> Turn | None:
    """The first question with its system turn, and the first answer; None where there is none to learn."""
    earlier_texts: dict[str, list[str]] = {"system": [], "user": []}
    for message in conversation.messages:
        if message.role == "assistant":
            system_text, question_text = ("\n\n".join(earlier_texts[role]) for role in ("system", "user"))
            return Turn(question_text, "", message.text, system_text) if question_text and message.supervised else None
        earlier_texts["system" if message.role == "system" else "user"].append(message.content)
    return None
