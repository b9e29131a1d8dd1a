"""Prompt templates: from one instruction record to the text the model sees before its response."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from gradfiltering.errors import UserError

_GENERATION = re.compile(r"{%-?\s*generation\b")
_WORDS = "answer"  # what the assistant says when a chat template is asked how it ends a turn


@dataclass(frozen=True)
class Turn:
    """One instruction record in the Alpaca schema; `input` may be empty, and `system` where there is no system turn."""

    instruction: str
    input: str
    output: str
    system: str = ""

    @property
    def question(self) -> str:
        """What is asked as one text, for a layout that has no place of its own for the system turn or the input."""
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
    user = {"role": "user", "content": replace(turn, system="").question}
    messages = [{"role": "system", "content": turn.system}, user] if turn.system else [user]
    try:
        text = _render(messages, tokenizer)
    except TemplateError:
        text = _render([{"role": "user", "content": turn.question}], tokenizer)
    return _without_doubled_start(text, tokenizer)


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
    """Whether the tokenizer's chat template says which tokens are the assistant's (`{% generation %}`)."""
    template = getattr(tokenizer, "chat_template", None)
    return isinstance(template, str) and tokenizer.is_fast and _GENERATION.search(template) is not None


def end_of_turn(tokenizer: Any) -> int | None:
    """The token of its own, such as `<|im_end|>`, that the tokenizer's chat template puts after the assistant's words.

    None where there is no chat template, or where it puts nothing but text there.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    asked = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _WORDS}]
    try:
        text = tokenizer.apply_chat_template(asked, tokenize=False)
    except TemplateError:
        return None
    _, said, after = text.rpartition(_WORDS)
    tokens = tokenizer(after, add_special_tokens=False)["input_ids"] if said else []
    return next((token for token in tokens if token in _own_tokens(tokenizer)), None)


def closing(template: str, tokenizer: Any) -> int:
    """The token that closes a response under a template: the chat template's own, else the end of sequence."""
    chatty = template == "chat" or (template == "conversation" and marks_assistant(tokenizer))
    end = end_of_turn(tokenizer) if chatty else None
    return tokenizer.eos_token_id if end is None else end


def stop_tokens(tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the end of sequence and the chat template's end of the assistant's turn."""
    ends = (tokenizer.eos_token_id, end_of_turn(tokenizer))
    return sorted({end for end in ends if end is not None})


def _own_tokens(tokenizer: Any) -> set[int]:
    """Tokens that stand apart from the vocabulary of text; runs of blanks, which some tokenizers add, are text."""
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.content.strip()}
    return added | set(tokenizer.all_special_ids)


def _render(messages: list[dict[str, str]], tokenizer: Any) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


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
