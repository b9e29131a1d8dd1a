"""A language model behind an OpenAI-compatible server as judge."""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from gradfiltering.errors import UserError
from gradfiltering.judging.base import Judge, Question, Reply
from gradfiltering.judging.chat_endpoint import ChatEndpoint, ChatSession, NoReply
from gradfiltering.judging.conversation import Conversation, ConversationSettings
from gradfiltering.judging.judge_prompt import Message
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.reply_store import ReplyKey, ReplyStore
from gradfiltering.judging.spending import LimitReached, Spending, SpendingLimits, estimate_tokens
from gradfiltering.options import NonNegativeFloat, model_validator, options
from gradfiltering.runs.logs import announce
from gradfiltering.runs.progress import progress_bar


@options
class ChatRequest:
    """Fields of each request beside the conversation.

    Attributes:
        model: the model's name at the server.
        temperature: temperature of sampling; None leaves it to the server.
        token_limit_name: this server's name for the longest reply, `max_tokens` or
            `max_completion_tokens`.
        fields: further fields; None for no others.
    """

    model: str
    temperature: NonNegativeFloat | None
    token_limit_name: str
    fields: Mapping[str, Any] | None

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        reserved = ("model", "messages", "stream", "n", "temperature", self.token_limit_name)
        if not self.model.strip():
            raise UserError("model is empty; give the model's name at the server", owner=self, arguments=("model",))
        try:
            json.dumps(self.fields, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"the further fields of the request are nothing that JSON can hold ({error})",
                owner=self,
                arguments=("fields",),
            ) from None
        if taken := [name for name in self.fields or {} if name in reserved]:
            raise UserError(
                f"the request field {taken[0]} has an option of its own or cannot be changed; remove it",
                owner=self,
                arguments=("fields",),
            )
        return self

    def make_body(self, messages: Sequence[Message], conversation: ConversationSettings) -> dict[str, Any]:
        """Assemble a request's body."""
        request_body = {"model": self.model, "messages": list(messages), **(self.fields or {})}
        if conversation.prompt.reply == "json":
            request_body.setdefault("response_format", {"type": "json_object"})
        if self.temperature is not None:
            request_body["temperature"] = self.temperature
        return {**request_body, self.token_limit_name: conversation.max_reply_tokens}


class OpenAIJudge(Judge):
    """Asks a chat model several questions at once; stores each reply and never asks for it twice.

    Args:
        endpoint: the server.
        request: fields that are sent along with each conversation.
        conversation: rules of each conversation, and the file of replies.
        limits: limits of a run, in requests and in money.
    """

    name = "openai"

    def __init__(
        self,
        endpoint: ChatEndpoint,
        request: ChatRequest,
        conversation: ConversationSettings,
        limits: SpendingLimits,
    ):
        self.endpoint = endpoint
        self.request = request
        self.conversation = conversation
        self.limits = limits
        self.spending = Spending(limits)
        self.replies_path = Path(conversation.replies)

    def check_feasible(self, prompts: Sequence[Prompt], questions_per_prompt: int, max_answer_tokens: int) -> None:
        """Refuse a missing key, and limits too low if every answer were as long as it may be."""
        self.endpoint.check_secrets()
        empty_conversations = [self.conversation.start(Question(prompt, "", "", 0, 0)) for prompt in prompts]
        prompt_tokens = sum(estimate_tokens(opened.messages) for opened in empty_conversations)
        answer_tokens = 2 * max_answer_tokens * len(prompts)
        self._announce(
            request_count=len(prompts) * questions_per_prompt,
            input_tokens=questions_per_prompt * (prompt_tokens + answer_tokens),
            estimate_basis=f"an upper bound: two answers of {max_answer_tokens:,} tokens, the longest "
            "allowed, in each request",
        )

    def answer_questions(self, questions: Sequence[Question]) -> list[Reply]:
        """Ask what no stored reply answers; print the amount, and refuse it above the limits.

        Raises:
            UserError: the estimate is above a limit, a limit was reached, or the server refuses
                every request. Replies that came before are stored.
        """
        reply_store = ReplyStore(self.replies_path)
        try:
            conversations = [self.conversation.start(question) for question in questions]
            for conversation in conversations:
                self._replay_stored(conversation, reply_store)
            unfinished = [conversation for conversation in conversations if conversation.final_reply is None]
            self._announce(
                request_count=len(unfinished),
                input_tokens=sum(estimate_tokens(conversation.messages) for conversation in unfinished),
                estimate_basis=f"{len(conversations) - len(unfinished):,} questions answered by stored replies",
            )
            if unfinished:
                reply_store.check_writable()
                asyncio.run(self._ask_all(unfinished, reply_store))
            return [conversation.final_reply or Reply("not asked", None) for conversation in conversations]
        finally:
            reply_store.close()

    def reply_key(self, conversation: Conversation) -> ReplyKey:
        """Identify a question's next reply."""
        request_body = self.request.make_body(conversation.messages, self.conversation)
        key_content = json.dumps([self.endpoint.base_url, request_body], sort_keys=True)
        return ReplyKey(
            judge=self.name,
            model=self.request.model,
            prompt_hash=hashlib.sha256(key_content.encode()).hexdigest(),
            slot_order=conversation.question.order,
            repeat=conversation.question.repeat,
            attempt=conversation.attempt,
        )

    def _replay_stored(self, conversation: Conversation, reply_store: ReplyStore) -> None:
        """Advance a conversation by its stored replies."""
        while conversation.final_reply is None:
            stored_reply = reply_store.get(self.reply_key(conversation))
            if stored_reply is None:
                return
            self.conversation.add_reply(conversation, stored_reply.text)

    async def _ask_all(self, conversations: Sequence[Conversation], reply_store: ReplyStore) -> None:
        fatal_errors: list[Exception] = []
        failures: list[str] = []
        with progress_bar(f"judging by {self.request.model}", len(conversations), "comparisons") as bar:

            async def finish(conversation: Conversation, session: ChatSession) -> None:
                try:
                    while conversation.final_reply is None and not fatal_errors:
                        await self._ask(conversation, session, reply_store)
                except NoReply as error:
                    failures.append(str(error))
                    # Not stored, so the next run asks for it.
                    conversation.final_reply = Reply(f"not judged: {error}", None)
                except Exception as error:
                    fatal_errors.append(error)  # requests under way may end and be stored: they are paid for
                bar.advance()

            async with self.endpoint.connect(self.spending) as session:
                await asyncio.gather(*(finish(conversation, session) for conversation in conversations))
        self._report(failures)
        if fatal_errors:
            fatal_error = fatal_errors[0]
            if not isinstance(fatal_error, UserError):
                raise fatal_error
            error_class = LimitReached if isinstance(fatal_error, LimitReached) else UserError
            raise error_class(
                f"{fatal_error}. Replies that came are kept in {self.replies_path}; a further run asks "
                "for the rest only",
                fatal_error.owner,
                fatal_error.arguments,
            )

    async def _ask(self, conversation: Conversation, session: ChatSession, reply_store: ReplyStore) -> None:
        reply = await session.complete(
            self.request.make_body(conversation.messages, self.conversation),
            input_tokens=estimate_tokens(conversation.messages),
            max_output_tokens=self.conversation.max_reply_tokens,
        )
        await reply_store.put(self.reply_key(conversation), reply)
        self.conversation.add_reply(conversation, reply.text)

    def _announce(self, request_count: int, input_tokens: int, estimate_basis: str) -> None:
        """Print the work ahead, and refuse it above the limits."""
        output_tokens = request_count * self.conversation.max_reply_tokens
        prices = self.limits.prices
        cost_estimate = prices.cost(input_tokens, output_tokens)
        cost_text = f"at most about {cost_estimate:,.2f} in money" if prices.known else "prices unknown"
        announce(
            f"judge={self.name} ({self.request.model}): {request_count:,} requests, about "
            f"{input_tokens:,} tokens in and at most {output_tokens:,} out, {cost_text} ({estimate_basis})"
        )
        # What the judge has been asked before in this run counts, too.
        self.limits.check_estimate(
            self.spending.requests + request_count, self.spending.cost + cost_estimate, estimate_basis
        )

    def _report(self, failures: Sequence[str]) -> None:
        report_text = f"judge={self.name}: {self.spending.requests:,} requests sent"
        if self.limits.prices.known:
            report_text += f", {self.spending.cost:,.4f} in money"
        if failures:
            report_text += (
                f"; {len(failures):,} questions without a reply ({failures[0]}); a further run asks for them again"
            )
        announce(report_text)
