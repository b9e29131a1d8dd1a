"""Prompt templates: from one question to the text that the model sees before its response."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from jinja2 import TemplateError

from gradfiltering.errors import UserError

ENTRY_POINTS = "gradfiltering.templates"  # templates of other packages
GENERATION_BLOCK = re.compile(r"{%-?\s*generation\b")
SAMPLE_ANSWER = "answer"  # put through a chat template to see how it ends a turn


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
    """The standard Alpaca prompt (Taori et al., 2023), with and without an input."""
    if turn.input:
        return (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{turn.instruction}\n\n### Input:\n{turn.input}\n\n### Response:\n"
        )
    return (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{turn.instruction}\n\n### Response:\n"
    )


def plain(turn: Turn, tokenizer: Any) -> str:
    r"""`{instruction}\n{input}\n` or `{instruction}\n`, the layout Superfiltering scores (Li et al., 2024)."""
    return f"{turn.instruction}\n{turn.input}\n" if turn.input else f"{turn.instruction}\n"


def chat(turn: Turn, tokenizer: Any) -> str:
    """The tokenizer's own chat template with a system turn, if any, and a user turn; `roles` where it has none.

    A template that refuses a system turn gets it at the head of the question.
    """
    if not getattr(tokenizer, "chat_template", None):
        return roles(turn, tokenizer)
    user_message = {"role": "user", "content": replace(turn, system="").question}
    system_messages = [{"role": "system", "content": turn.system}] if turn.system else []
    try:
        rendered_text = _render([*system_messages, user_message], tokenizer)
    except TemplateError:
        rendered_text = _render([{"role": "user", "content": turn.question}], tokenizer)
    return _drop_doubled_start(rendered_text, tokenizer)


def roles(turn: Turn, tokenizer: Any) -> str:
    """A plain layout of roles, for a tokenizer whose chat template is missing or does not mark the assistant."""
    system = f"<|system|>\n{turn.system}\n" if turn.system else ""
    return f"{system}<|user|>\n{replace(turn, system='').question}\n<|assistant|>\n"


def conversation(turn: Turn, tokenizer: Any) -> str:
    """The opening of a conversation as `messages` rows are laid out: `chat` if it marks the assistant's tokens."""
    return (chat if marks_assistant(tokenizer) else roles)(turn, tokenizer)


def verbatim(turn: Turn, tokenizer: Any) -> str:
    """The prompt as it is, for rows whose prompt already ends where the response begins."""
    return turn.instruction + turn.input


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
        rendered_text = tokenizer.apply_chat_template(sample_messages, tokenize=False)
    except TemplateError:
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


def _render(messages: list[dict[str, str]], tokenizer: Any) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _drop_doubled_start(text: str, tokenizer: Any) -> str:
    """Drop a start token that the tokenizer would put in front once more."""
    start_token = tokenizer.bos_token
    is_doubled = bool(start_token) and text.startswith(start_token)
    if is_doubled and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
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
    """Return the template of that name.

    Raises:
        UserError: no such template.
    """
    templates = available_templates()
    if name not in templates:
        raise UserError(f"the template {name} is unknown; choose one of: {', '.join(sorted(templates))}")
    return templates[name]
