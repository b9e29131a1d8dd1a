"""A causal language model on this machine as judge."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from rich.console import Console
from rich.progress import Progress

from gradfiltering.data.examples import hash_tokenizer
from gradfiltering.distributed.process_group import rank
from gradfiltering.errors import UserError
from gradfiltering.judging.asking import Asked, Asking
from gradfiltering.judging.base import Judge, Question, Reply
from gradfiltering.judging.generate import generate_batch, plain_decoding, said
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.protocol import Message
from gradfiltering.judging.replies import ReplyKey, ReplyStore, StoredReply
from gradfiltering.models.language_model import LanguageModel, PretrainedModel, fastest_precision
from gradfiltering.models.weights import hash_weights

LOCAL_VERSION = 1  # raise it when the same model and words would get another reply


class LocalJudge(Judge):
    """Asks a model loaded with transformers, greedily and in batches; its chat template where it has one.

    What it says is kept, batch by batch: a pair judged before, in this run or another, is not judged again.

    Args:
        backbone: the model.
        asking: what is shown, how often, and where replies are kept.
        batch_size: questions at once.
        device: "auto", or a device's name such as `cuda:1`.
    """

    name = "local"

    def __init__(self, base_model: PretrainedModel, asking: Asking, batch_size: int, device: str):
        if batch_size < 1:
            raise UserError(f"judge.batch_size is {batch_size}; it must be at least 1")
        self.base_model = base_model
        self.asking = asking
        self.batch_size = batch_size
        self.device = device

    def prepare(self, prompts: Sequence[Prompt], questions: int, answer_tokens: int) -> None:
        """Refuses a model that cannot be loaded, or whose context a reply alone would fill."""
        self.base_model.check()
        if self.base_model.context <= self.asking.max_reply_tokens:
            raise UserError(
                f"judge.max_reply_tokens is {self.asking.max_reply_tokens:,}, but {self.base_model.model} takes "
                f"{self.base_model.context:,} tokens in all, which leaves none for the question; lower it"
            )

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """A reply to each question; one that does not fit the model's context is left unparsed, never cut."""
        loaded, device = load_alone(self.base_model, self.device, "judge.device")
        control = _own_marks(loaded.tokenizer)
        # The same words in another order's or repeat's place get the same reply, since nothing is drawn by chance.
        asked: dict[str, Asked] = {}
        texts = []
        for question in questions:
            one = self.asking.open(question, control)
            texts.append(json.dumps(one.messages))
            asked.setdefault(texts[-1], one)
        store = ReplyStore(Path(self.asking.replies))
        try:
            self._ask_all(loaded, device, list(asked.values()), store)
        finally:
            store.close()
        return [asked[text].final or Reply("not asked", None) for text in texts]

    def _ask_all(self, loaded: LanguageModel, device: torch.device, asked: Sequence[Asked], store: ReplyStore) -> None:
        identity = [LOCAL_VERSION, hash_weights(loaded.model), hash_tokenizer(loaded.tokenizer)]
        model: Any = loaded.model.to(device)
        with plain_decoding(model), Progress(transient=True, disable=rank() > 0) as bar:
            line = bar.add_task(f"judging by {self.base_model.model}", total=len(asked))
            for ask in range(self.asking.asks):
                stored = 0
                waiting: list[_Waiting] = []
                for one in (one for one in asked if one.final is None):
                    if (next_ := self._next(one, loaded, identity)) is None:
                        continue
                    if (reply := store.get(next_.key)) is not None:
                        self.asking.take(one, reply.text)
                        stored += 1
                    else:
                        waiting.append(next_)
                if ask == 0:
                    Console(quiet=rank() > 0).print(
                        f"judge={self.name} ({self.base_model.model}): {len(waiting):,} questions, {stored:,} more "
                        "answered by stored replies", highlight=False
                    )  # fmt: skip
                # Longest first: if the memory does not suffice, that shows at once.
                waiting.sort(key=lambda one: -len(one.tokens))
                for start in range(0, len(waiting), self.batch_size):
                    self._ask(model, loaded.tokenizer, waiting[start : start + self.batch_size], store)
                    bar.update(line, completed=sum(one.final is not None for one in asked))

    def _next(self, one: Asked, loaded: LanguageModel, identity: Sequence[Any]) -> "_Waiting | None":
        """What to ask next and under which key its reply is kept; None, and the question ended, if it does not fit."""
        tokens, most = tokenize_chat(one.messages, loaded.tokenizer), self.asking.max_reply_tokens
        if len(tokens) > loaded.context - most:
            why = f"{len(tokens)} tokens and a reply of {most} do not fit {loaded.context}"
            one.final = Reply(f"not judged: {why}", None)
            return None
        digest = hashlib.sha256(json.dumps([*identity, most, tokens]).encode()).hexdigest()
        return _Waiting(one, tokens, ReplyKey(self.name, self.base_model.model, digest, 0, 0, one.attempt))

    def _ask(self, model: Any, tokenizer: Any, batch: Sequence["_Waiting"], store: ReplyStore) -> None:
        """Asks a batch and keeps what came."""
        answers = generate_batch(model, tokenizer, [one.tokens for one in batch], self.asking.max_reply_tokens)
        replies = [
            StoredReply(said(answer, tokenizer), answer[1], len(one.tokens), len(answer[0]))
            for answer, one in zip(answers, batch, strict=True)
        ]
        store.keep([(one.key, reply) for one, reply in zip(batch, replies, strict=True)])
        for one, reply in zip(batch, replies, strict=True):
            self.asking.take(one.asked, reply.text)


@dataclass(frozen=True)
class _Waiting:
    """A question that no stored reply answers: its tokens, and the key of its reply."""

    asked: Asked
    tokens: list[int]
    key: ReplyKey


def load_alone(base_model: PretrainedModel, device: str, option: str) -> tuple[LanguageModel, torch.device]:
    """Loads a pretrained model outside training, and says where it belongs.

    Args:
        backbone: the model; its precision `auto` is what suits the device.
        device: a device's name, or "auto" for a GPU where there is one.
        option: what the device is called where it was asked for.

    Raises:
        UserError: there is no such device, or the model cannot be loaded.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        place = torch.device(chosen)
    except RuntimeError as error:
        raise UserError(f"{option}={chosen}: {error}") from error
    precision = fastest_precision(place) if base_model.precision == "auto" else base_model.precision
    # A pretrained model is neither kept in a store nor drawn from a seed, and its precision is settled.
    load: Any = partial(replace(base_model, precision=precision).load, None, 0, None)  # type: ignore[arg-type]
    return load(), place


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
