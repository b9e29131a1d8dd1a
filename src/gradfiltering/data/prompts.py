"""Prompt templates: from one instruction record to the text the model sees before its response."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradfiltering.errors import UserError

_GENERATION = re.compile(r"{%-?\s*generation\b")


@dataclass(frozen=True)
class Turn:
    """One instruction record in the Alpaca schema; `input` may be empty."""

    instruction: str
    input: str
    output: str


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
    """The tokenizer's own chat template with one user turn, or a plain two-role layout where it has none."""
    content = f"{turn.instruction}\n\n{turn.input}" if turn.input else turn.instruction
    if getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return _without_doubled_start(text, tokenizer)
    return f"<|user|>\n{content}\n<|assistant|>\n"


def conversation(turn: Turn, tokenizer: Any) -> str:
    """The opening of a conversation as `messages` rows are laid out: `chat` if it marks the assistant's tokens."""
    return chat(turn, tokenizer if marks_assistant(tokenizer) else None)


def verbatim(turn: Turn, tokenizer: Any) -> str:
    """The prompt as it is, for rows whose prompt already ends where the response begins."""
    return turn.instruction + turn.input


def marks_assistant(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template says which tokens are the assistant's (`{% generation %}`)."""
    template = getattr(tokenizer, "chat_template", None)
    return isinstance(template, str) and tokenizer.is_fast and _GENERATION.search(template) is not None


def _without_doubled_start(text: str, tokenizer: Any) -> str:
    """Drops a start token that the tokenizer would put in front once more."""
    start = tokenizer.bos_token
    if start and text.startswith(start) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return text.removeprefix(start)
    return text


Template = Callable[[Turn, Any], str]
TEMPLATES: dict[str, Template] = {
    "alpaca": alpaca, "plain": plain, "chat": chat, "conversation": conversation, "verbatim": verbatim,
}  # fmt: skip


def template_named(name: str) -> Template:
    """The template function of that name.

    Raises:
        UserError: no such template.
    """
    if name not in TEMPLATES:
        raise UserError(f"data.template={name} is unknown; choose one of: {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]
