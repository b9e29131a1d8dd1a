"""Prompt templates: from one question to the text that the model sees before its response."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from jinja2 import TemplateError

from gradfiltering.data.conversations import ChatMessage
from gradfiltering.errors import UserError

ENTRY_POINTS = "gradfiltering.templates"  # templates of other packages
GENERATION_BLOCK = re.compile(r"{%-?\s*generation\b")
SAMPLE_QUESTION = "a question 4711"  # put through one to see whether it is shown
AUTO = "auto"  # the template that suits rows and tokenizer
PART_AS_TEXT = re.compile(r"""['"]type['"]: ?['"]text['"]""")
SAMPLE_ANSWER = "answer"  # put through a chat template to see how it ends a turn
# What a chat template raises, Jinja's own errors and those of the expressions in it.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)


@dataclass(frozen=True)
class Turn:
    """One question and its answer; `input` is empty where there is none, and so is `system`."""

    instruction: str
    input: str
    output: str
    system: str = ""

    @property
    def question(self) -> str:
        """The question as one text, for a layout without a place for the system turn or the input."""
        return "\n\n".join(part for part in (self.system, self.instruction, self.input) if part)


def alpaca(turn: Turn, tokenizer: Any) -> str:
    """The standard Alpaca prompt (Taori et al., 2023), with and without an input.

    A system turn replaces the opening sentences, as in LLaMA-Factory and axolotl.
    """
    if turn.input:
        opening = turn.system or (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request."
        )
        return f"{opening}\n\n### Instruction:\n{turn.instruction}\n\n### Input:\n{turn.input}\n\n### Response:\n"
    opening = turn.system or (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    return f"{opening}\n\n### Instruction:\n{turn.instruction}\n\n### Response:\n"


def plain(turn: Turn, tokenizer: Any) -> str:
    r"""`{instruction}\n{input}\n` or `{instruction}\n`, the layout Superfiltering scores (Li et al., 2024).

    A system turn, if any, is a line of its own before it.
    """
    system_line = f"{turn.system}\n" if turn.system else ""
    return system_line + (f"{turn.instruction}\n{turn.input}\n" if turn.input else f"{turn.instruction}\n")


def chat(turn: Turn, tokenizer: Any) -> str:
    """The tokenizer's own chat template with a system turn, if any, and a user turn; `roles` where it has none.

    A template that refuses or leaves out a system turn gets it at the head of the question.
    """
    if not getattr(tokenizer, "chat_template", None):
        return roles(turn, tokenizer)
    user_message = {"role": "user", "content": replace(turn, system="").question}
    system_messages = [{"role": "system", "content": turn.system}] if turn.system else []
    whole_question = [{"role": "user", "content": turn.question}]
    try:
        rendered_text = render_chat([*system_messages, user_message], tokenizer)
    except TEMPLATE_ERRORS:
        rendered_text = render_chat(whole_question, tokenizer)
    if not contains_text(rendered_text, turn.system):
        rendered_text = render_chat(whole_question, tokenizer)
    return drop_doubled_start(rendered_text, tokenizer)


def roles(turn: Turn, tokenizer: Any) -> str:
    """A plain layout of roles, for a tokenizer whose chat template is missing or does not mark the assistant."""
    system = f"<|system|>\n{turn.system}\n" if turn.system else ""
    return f"{system}<|user|>\n{replace(turn, system='').question}\n<|assistant|>\n"


def conversation(turn: Turn, tokenizer: Any) -> str:
    """The opening of a conversation as `messages` rows are laid out: `chat` if it marks the assistant's tokens."""
    return (chat if marks_assistant(tokenizer) else roles)(turn, tokenizer)


def verbatim(turn: Turn, tokenizer: Any) -> str:
    """The prompt as it is, for rows whose prompt already ends where the response begins."""
    return (f"{turn.system}\n\n" if turn.system else "") + turn.instruction + turn.input


def has_chat_template(tokenizer: Any) -> bool:
    """Return True for a tokenizer with a chat template of its own."""
    return bool(getattr(tokenizer, "chat_template", None))


def layout_name(template: str, tokenizer: Any) -> str:
    """Name what a template comes to under a tokenizer: `chat` and `conversation` are `roles` where it offers no better.

    Args:
        template: its name, `auto` aside.
        tokenizer: of the model that will see the text.
    """
    uses_chat_template = {"chat": has_chat_template, "conversation": marks_assistant}.get(template)
    if uses_chat_template is None:
        return template
    return "chat" if uses_chat_template(tokenizer) else "roles"


def marks_assistant(tokenizer: Any) -> bool:
    """Return True if the tokenizer's chat template marks the assistant's tokens (`{% generation %}`)."""
    chat_template = getattr(tokenizer, "chat_template", None)
    if not isinstance(chat_template, str) or not tokenizer.is_fast:
        return False
    return GENERATION_BLOCK.search(chat_template) is not None


def end_of_turn(tokenizer: Any) -> int | None:
    """Find the special token, such as `<|im_end|>`, that the chat template puts after the assistant's words.

    None where there is no chat template, or where it puts nothing but text there.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    sample_messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": SAMPLE_ANSWER}]
    try:
        rendered_text = render_chat(sample_messages, tokenizer, add_generation_prompt=False)
    except TEMPLATE_ERRORS:
        return None
    _, sample_answer, text_after = rendered_text.rpartition(SAMPLE_ANSWER)
    token_ids = tokenizer(text_after, add_special_tokens=False)["input_ids"] if sample_answer else []
    return next((token_id for token_id in token_ids if token_id in _special_tokens(tokenizer)), None)


def closing_token(template: str, tokenizer: Any) -> int:
    """Return the token that closes a response: the chat template's end of turn, else the end of sequence."""
    uses_chat_template = template == "chat" or (template == "conversation" and marks_assistant(tokenizer))
    turn_end = end_of_turn(tokenizer) if uses_chat_template else None
    return tokenizer.eos_token_id if turn_end is None else turn_end


def stop_tokens(tokenizer: Any) -> list[int]:
    """List the tokens that end an answer: the end of sequence and the chat template's end of turn."""
    end_tokens = (tokenizer.eos_token_id, end_of_turn(tokenizer))
    return sorted({token_id for token_id in end_tokens if token_id is not None})


def _special_tokens(tokenizer: Any) -> set[int]:
    """Return the tokens apart from the vocabulary of text; added runs of blanks are text."""
    added_tokens = tokenizer.added_tokens_decoder.items()
    added_ids = {token_id for token_id, entry in added_tokens if entry.content.strip()}
    return added_ids | set(tokenizer.all_special_ids)


def template_messages(messages: Sequence[ChatMessage], names_calls: bool = True) -> list[dict[str, Any]]:
    """Messages as a chat template wants them, with all that it may show.

    Args:
        messages: of a conversation.
        names_calls: False for a template that knows no tool calls; they become part of the content.
    """
    rendered_messages = []
    for message in messages:
        content = message.content if names_calls else message.content_and_calls
        rendered_message: dict[str, Any] = {**message.further_fields, "role": message.role, "content": content}
        if message.tool_calls and names_calls:
            rendered_message["tool_calls"] = list(message.tool_calls)
        if message.reasoning:
            rendered_message |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
        rendered_messages.append(rendered_message)
    return rendered_messages


def render_chat(
    messages: Sequence[Mapping[str, Any]], tokenizer: Any, add_generation_prompt: bool = True, **options: Any
) -> str:
    """Render messages by a tokenizer's chat template.

    A template that wants contents as lists of parts, and would show none of a plain text, gets them so.

    Raises:
        TemplateError, TypeError, …: see `TEMPLATE_ERRORS`; the template refuses the messages.
    """
    rendered_messages = content_parts(messages) if wants_parts(tokenizer) else list(messages)
    text: str = tokenizer.apply_chat_template(
        rendered_messages, tokenize=False, add_generation_prompt=add_generation_prompt, **options
    )
    return text


def wants_parts(tokenizer: Any) -> bool:
    """Return True for a chat template that shows a question only where its content is a list of parts."""
    return _wants_parts(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _wants_parts(tokenizer: Any, chat_template: str) -> bool:
    sample_messages = [{"role": "user", "content": SAMPLE_QUESTION}]

    def shows_sample(messages: list[dict[str, Any]]) -> bool:
        try:
            rendered_text = tokenizer.apply_chat_template(messages, tokenize=False)
        except TEMPLATE_ERRORS:
            return False
        # A template that writes the list itself does not want one.
        return SAMPLE_QUESTION in rendered_text and not PART_AS_TEXT.search(rendered_text)

    return not shows_sample(sample_messages) and shows_sample(content_parts(sample_messages))


def content_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with each content as a list of one part of text."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def contains_text(whole_text: str, part: str) -> bool:
    """Return True where a text holds another, line breaks and blanks aside; paragraphs may stand apart."""
    if part in whole_text:
        return True
    flat_text = " ".join(whole_text.split())
    return all(" ".join(paragraph.split()) in flat_text for paragraph in part.split("\n\n"))


def tokenize_prompts(prompt_texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Tokenise texts that a response follows: with the tokenizer's start tokens, without those it ends a text in."""
    if not prompt_texts:
        return []
    start_tokens, _ = surrounding_tokens(tokenizer)
    token_ids = tokenizer(list(prompt_texts), add_special_tokens=False)["input_ids"]
    return [[*start_tokens, *text_ids] for text_ids in token_ids]


def surrounding_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a text (`add_bos_token`, `add_eos_token`)."""
    bare_ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole_ids = tokenizer("a")["input_ids"]
    if not bare_ids:  # a vocabulary without this letter
        start_size = whole_ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in whole_ids else len(whole_ids)
        return whole_ids[:start_size], whole_ids[start_size:]
    for start in range(len(whole_ids) - len(bare_ids) + 1):
        if whole_ids[start : start + len(bare_ids)] == bare_ids:
            return whole_ids[:start], whole_ids[start + len(bare_ids) :]
    return [], []


def drop_doubled_start(text: str, tokenizer: Any) -> str:
    """Drop a start token that the tokenizer would put in front once more."""
    start_token = tokenizer.bos_token
    is_doubled = bool(start_token) and text.startswith(start_token)
    if is_doubled and surrounding_tokens(tokenizer)[0][:1] == [tokenizer.bos_token_id]:
        return text.removeprefix(start_token)
    return text


PromptTemplate = Callable[[Turn, Any], str]  # from a turn and a tokenizer to the prompt
TEMPLATES: dict[str, PromptTemplate] = {
    "alpaca": alpaca,
    "plain": plain,
    "chat": chat,
    "conversation": conversation,
    "verbatim": verbatim,
}


@lru_cache(maxsize=1)
def available_templates() -> dict[str, PromptTemplate]:
    """Return all templates by name: ours, and those that installed packages declare.

    A package declares a function `(turn, tokenizer) -> str` as an entry point of the group
    `gradfiltering.templates`; its name is what `data.template=` takes.
    """
    declared_templates = {entry.name: entry.load() for entry in entry_points(group=ENTRY_POINTS)}
    return {**declared_templates, **TEMPLATES}


def find_template(name: str) -> PromptTemplate:
    """Return the template of that name; `auto` names none (see `InstructionDataset.template_for`).

    Raises:
        UserError: no such template.
    """
    templates = available_templates()
    if name not in templates:
        raise UserError(f"the template {name} is unknown; choose one of: {', '.join(sorted(templates))}")
    return templates[name]
