"""A causal language model on this machine as judge."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError

from gradfiltering.data.tokenizer_hash import hash_tokenizer
from gradfiltering.errors import UserError
from gradfiltering.judging.base import Judge, Question, Reply
from gradfiltering.judging.conversation import Conversation, ConversationSettings
from gradfiltering.judging.generation import decode_answer, generate_batch, plain_decoding
from gradfiltering.judging.judge_prompt import Message
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.reply_store import ReplyKey, ReplyStore, StoredReply
from gradfiltering.models.language_model import LanguageModel, PretrainedModel
from gradfiltering.models.weights import hash_model
from gradfiltering.options import PositiveInt, options
from gradfiltering.runs.logs import announce
from gradfiltering.runs.progress import progress_bar

LOCAL_VERSION = 1  # raise it when the same model and words would get another reply


@options
class LocalJudge(Judge):
    """Asks a model loaded with transformers, greedily and in batches.

    It uses the model's chat template where it has one. Replies are stored batch by batch: a pair
    judged before, in this run or another, is not judged again.

    Attributes:
        base_model: the model.
        conversation: rules of each conversation, and the file of replies.
        batch_size: questions at once.
        device: "auto", or a device's name such as `cuda:1`.
    """

    name = "local"
    base_model: PretrainedModel
    conversation: ConversationSettings
    batch_size: PositiveInt
    device: str

    def check_feasible(self, prompts: Sequence[Prompt], questions_per_prompt: int, max_answer_tokens: int) -> None:
        """Refuse a model that cannot be loaded, or whose context a reply alone would fill."""
        self.base_model.check()
        max_reply_tokens, context_tokens = self.conversation.max_reply_tokens, self.base_model.context_length
        if context_tokens <= max_reply_tokens:
            raise UserError(
                f"max_reply_tokens is {max_reply_tokens:,}, but {self.base_model.model} takes "
                f"{context_tokens:,} tokens in all, which leaves none for the question; lower it",
                owner=self.conversation,
                arguments=("max_reply_tokens",),
            )

    def answer_questions(self, questions: Sequence[Question]) -> list[Reply]:
        """Reply to each question; one too long for the context is left unparsed, never cut."""
        language_model, device = load_on_device(self.base_model, self.device)
        special_tokens = list_special_tokens(language_model.tokenizer)
        # The same words in another order's or repeat's place get the same reply, since nothing is
        # drawn by chance.
        conversations: dict[str, Conversation] = {}
        message_texts = []
        for question in questions:
            conversation = self.conversation.start(question, special_tokens)
            message_texts.append(json.dumps(conversation.messages))
            conversations.setdefault(message_texts[-1], conversation)
        reply_store = ReplyStore(Path(self.conversation.replies))
        try:
            self._ask_all(language_model, device, list(conversations.values()), reply_store)
        finally:
            reply_store.close()
        return [conversations[text].final_reply or Reply("not asked", None) for text in message_texts]

    def _ask_all(
        self,
        language_model: LanguageModel,
        device: torch.device,
        conversations: Sequence[Conversation],
        reply_store: ReplyStore,
    ) -> None:
        model_hash = hash_model(language_model.model)
        identity = [LOCAL_VERSION, model_hash, hash_tokenizer(language_model.tokenizer)]
        device_model: Any = language_model.model.to(device)
        description = f"judging by {self.base_model.model}"
        with plain_decoding(device_model), progress_bar(description, len(conversations), "comparisons") as bar:
            for attempt in range(self.conversation.max_attempts):
                stored_count = 0
                pending_turns: list[_Turn] = []
                for conversation in conversations:
                    pending_turn = self._next_turn(conversation, language_model, identity)
                    if pending_turn is None:
                        continue
                    stored_reply = reply_store.get(pending_turn.reply_key)
                    if stored_reply is None:
                        pending_turns.append(pending_turn)
                        continue
                    self.conversation.add_reply(conversation, stored_reply.text)
                    stored_count += 1
                if attempt == 0:
                    announce(
                        f"judge={self.name} ({self.base_model.model}): {len(pending_turns):,} questions, "
                        f"{stored_count:,} more answered by stored replies"
                    )
                if pending_turns:
                    reply_store.check_writable()
                # Longest first: if the memory does not suffice, that shows at once.
                pending_turns.sort(key=lambda pending_turn: -len(pending_turn.token_ids))
                for start in range(0, len(pending_turns), self.batch_size):
                    turn_batch = pending_turns[start : start + self.batch_size]
                    self._ask_batch(device_model, language_model.tokenizer, turn_batch, reply_store)
                    finished = [item for item in conversations if item.final_reply is not None]
                    bar.complete(len(finished))

    def _next_turn(
        self, conversation: Conversation, language_model: LanguageModel, identity: Sequence[Any]
    ) -> "_Turn | None":
        """Prepare the next question; None if it has ended, or now ends as it does not fit."""
        if conversation.final_reply is not None:
            return None
        token_ids = tokenize_chat(conversation.messages, language_model.tokenizer)
        max_reply_tokens = self.conversation.max_reply_tokens
        if len(token_ids) > language_model.context_length - max_reply_tokens:
            conversation.final_reply = Reply(
                f"not judged: {len(token_ids)} tokens and a reply of {max_reply_tokens} do not fit "
                f"{language_model.context_length}",
                None,
            )
            return None
        key_content = json.dumps([*identity, max_reply_tokens, token_ids])
        reply_key = ReplyKey(
            judge=self.name,
            model=self.base_model.model,
            prompt_hash=hashlib.sha256(key_content.encode()).hexdigest(),
            slot_order=0,
            repeat=0,
            attempt=conversation.attempt,
        )
        return _Turn(conversation, token_ids, reply_key)

    def _ask_batch(
        self, device_model: Any, tokenizer: Any, pending_turns: Sequence["_Turn"], reply_store: ReplyStore
    ) -> None:
        """Ask a batch and store its replies."""
        prompts = [pending_turn.token_ids for pending_turn in pending_turns]
        new_token_lists = generate_batch(device_model, tokenizer, prompts, self.conversation.max_reply_tokens)
        replies = [
            StoredReply(
                text=decode_answer(new_tokens, tokenizer),
                finish_reason=new_tokens[1],
                input_tokens=len(pending_turn.token_ids),
                output_tokens=len(new_tokens[0]),
            )
            for new_tokens, pending_turn in zip(new_token_lists, pending_turns, strict=True)
        ]
        reply_store.put_all(
            [(pending_turn.reply_key, reply) for pending_turn, reply in zip(pending_turns, replies, strict=True)]
        )
        for pending_turn, reply in zip(pending_turns, replies, strict=True):
            self.conversation.add_reply(pending_turn.conversation, reply.text)


@dataclass(frozen=True)
class _Turn:
    """A question that no stored reply answers: its tokens, and the key of its reply."""

    conversation: Conversation
    token_ids: list[int]
    reply_key: ReplyKey


def load_on_device(base_model: PretrainedModel, device_name: str) -> tuple[LanguageModel, torch.device]:
    """Load a pretrained model outside training, in the precision that suits a device.

    Args:
        base_model: the model.
        device_name: a device's name, or "auto" for a GPU where there is one.

    Returns:
        The model, still on the host, and the device.

    Raises:
        UserError: there is no such device, or the model cannot be loaded.
    """
    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device_name)
    except RuntimeError as error:
        raise UserError(f"device={device_name}: {error}") from error
    return base_model.load(device), device


def tokenize_chat(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Tokenise a conversation by the model's chat template; as plain paragraphs without one."""
    token_ids: list[int]
    if not getattr(tokenizer, "chat_template", None):
        chat_text = "\n\n".join(message["content"] for message in messages) + "\n\n"
        token_ids = tokenizer(chat_text)["input_ids"]
        return token_ids
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    try:
        chat_text = render(list(messages))
    except TemplateError:
        if messages[0]["role"] != "system":
            raise
        # Some templates refuse a system turn; it then opens the first question.
        opening_text = "\n\n".join(message["content"] for message in messages[:2])
        chat_text = render([{"role": "user", "content": opening_text}, *messages[2:]])
    # The template writes the start token itself.
    token_ids = tokenizer(chat_text, add_special_tokens=False)["input_ids"]
    return token_ids


def list_special_tokens(tokenizer: Any) -> list[str]:
    """List texts that a tokenizer reads as single marks; an answer must not bring them along."""
    added_tokens = [token.content for token in tokenizer.added_tokens_decoder.values()]
    token_texts = {token.strip() for token in [*added_tokens, *tokenizer.all_special_tokens]}
    return sorted(token_text for token_text in token_texts if len(token_text) > 1)
