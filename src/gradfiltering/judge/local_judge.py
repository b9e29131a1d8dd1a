"""A causal language model on this machine as judge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from rich.progress import Progress

from gradfiltering.errors import UserError
from gradfiltering.judge.base import Judge, Question, Reply
from gradfiltering.judge.generate import generate_batch, plain_decoding, said
from gradfiltering.judge.prompts import Prompt
from gradfiltering.judge.protocol import Message, Protocol
from gradfiltering.proxy.backbone import Loaded, PretrainedBackbone, native_precision
from gradfiltering.proxy.devices import rank


@dataclass
class _State:
    """Where a question stands."""

    messages: list[Message]
    final: Reply | None = None


class LocalJudge(Judge):
    """Asks a model loaded with transformers, greedily and in batches; its chat template where it has one.

    Args:
        backbone: the model.
        protocol: what is shown and how replies are read.
        max_reply_tokens: longest reply.
        batch_size: questions at once.
        asks: how often a question is asked until its reply can be read.
        device: "auto", or a device's name such as `cuda:1`.
    """

    name = "local"

    def __init__(
        self,
        backbone: PretrainedBackbone,
        protocol: Protocol,
        max_reply_tokens: int,
        batch_size: int,
        asks: int,
        device: str,
    ):
        for name, value in (("max_reply_tokens", max_reply_tokens), ("batch_size", batch_size), ("asks", asks)):
            if value < 1:
                raise UserError(f"judge.{name} is {value}; it must be at least 1")
        self.backbone = backbone
        self.protocol = protocol
        self.max_reply_tokens = max_reply_tokens
        self.batch_size = batch_size
        self.asks = asks
        self.device = device

    def prepare(self, prompts: Sequence[Prompt], questions: int) -> None:
        """Refuses a model that cannot be loaded."""
        self.backbone.check()

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """A reply to each question; one that does not fit the model's context is left unparsed, never cut."""
        loaded, device = self._load()
        control = _own_marks(loaded.tokenizer)
        states = [_State(self.protocol.messages(one.prompt, one.first, one.second, control)) for one in questions]
        model: Any = loaded.model.to(device)
        with plain_decoding(model), Progress(transient=True, disable=rank() > 0) as bar:
            line = bar.add_task(f"judging by {self.backbone.model}", total=len(states))
            for ask in range(self.asks):
                open_ = [state for state in states if state.final is None]
                self._round(model, loaded, open_, last=ask == self.asks - 1)
                bar.update(line, completed=sum(state.final is not None for state in states))
        return [state.final or Reply("not asked", None) for state in states]

    def _load(self) -> tuple[Loaded, torch.device]:
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            device = torch.device(chosen)
        except RuntimeError as error:
            raise UserError(f"judge.device={chosen}: {error}") from error
        precision = self.backbone.precision
        backbone = replace(self.backbone, precision=native_precision(device) if precision == "auto" else precision)
        # A pretrained model is neither kept in a store nor drawn from a seed, and its precision is settled.
        load: Any = partial(backbone.load, None, 0, None)  # type: ignore[arg-type]
        return load(), device

    def _round(self, model: Any, loaded: Loaded, states: Sequence[_State], last: bool) -> None:
        """Asks every open question once."""
        tokenizer = loaded.tokenizer
        room = loaded.context - self.max_reply_tokens
        fitting: list[tuple[list[int], _State]] = []
        for state in states:
            tokens = tokenize_chat(state.messages, tokenizer)
            if len(tokens) > room:
                why = f"{len(tokens)} tokens and a reply of {self.max_reply_tokens} do not fit {loaded.context}"
                state.final = Reply(f"not judged: {why}", None)
            else:
                fitting.append((tokens, state))
        # Longest first: if the memory does not suffice, that shows at once.
        fitting.sort(key=lambda pair: -len(pair[0]))
        for start in range(0, len(fitting), self.batch_size):
            batch = fitting[start : start + self.batch_size]
            answers = generate_batch(model, tokenizer, [tokens for tokens, _ in batch], self.max_reply_tokens)
            for answer, (_, state) in zip(answers, batch, strict=True):
                text = said(answer, tokenizer)
                scores = self.protocol.read(text)
                if scores is not None or last:
                    state.final = Reply(text, scores)
                else:
                    state.messages = self.protocol.ask_again(state.messages, text)


def tokenize_chat(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """A conversation as the model's own chat template lays it out; as plain paragraphs where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer("\n\n".join(message["content"] for message in messages) + "\n\n")["input_ids"]
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    try:
        text = render(list(messages))
    except TemplateError:
        if messages[0]["role"] != "system":
            raise
        # Some templates refuse a system turn; it then opens the first question.
        opening = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
        text = render([opening, *messages[2:]])
    # The template writes the start token itself.
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _own_marks(tokenizer: Any) -> list[str]:
    """Texts that this tokenizer reads as single marks; an answer must not bring them along."""
    added = [entry.content for entry in tokenizer.added_tokens_decoder.values()]
    return sorted({mark.strip() for mark in [*added, *tokenizer.all_special_tokens] if len(mark.strip()) > 1})
