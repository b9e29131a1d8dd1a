"""A language model behind an OpenAI-compatible server as judge."""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from gradfiltering.distributed.process_group import rank
from gradfiltering.errors import UserError
from gradfiltering.judging.asking import Asked, Asking
from gradfiltering.judging.base import Judge, Question, Reply
from gradfiltering.judging.budget import Budget, BudgetSpent, Limits, estimated_tokens
from gradfiltering.judging.endpoint import Endpoint, NoReply
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.protocol import Message
from gradfiltering.judging.replies import ReplyKey, ReplyStore


@dataclass(frozen=True)
class Request:
    """What stands in each request beside the conversation.

    Attributes:
        model: its name at the server.
        temperature: of sampling; None leaves it to the server.
        token_limit_name: how this server calls the longest reply, `max_tokens` or `max_completion_tokens`.
        fields: further fields.
    """

    model: str
    temperature: float | None
    token_limit_name: str
    fields: Mapping[str, Any]

    def __post_init__(self) -> None:
        fixed = ("model", "messages", "stream", "n", "temperature", self.token_limit_name)
        if taken := [name for name in self.fields if name in fixed]:
            raise UserError(f"judge.request.{taken[0]} has an option of its own or cannot be changed; remove it")

    def body(self, messages: Sequence[Message], asking: Asking) -> dict[str, Any]:
        """A request's body."""
        body = {"model": self.model, "messages": list(messages), **self.fields}
        if asking.protocol.reply == "json":
            body.setdefault("response_format", {"type": "json_object"})
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return {**body, self.token_limit_name: asking.max_reply_tokens}


class OpenAIJudge(Judge):
    """Asks a chat model, several questions at once; what it says is kept as it arrives and never asked for twice.

    Args:
        endpoint: the server.
        request: what is sent along with each conversation.
        asking: what is shown, how often, and where replies are kept.
        limits: of a run, in requests and in money.
    """

    name = "openai"

    def __init__(self, endpoint: Endpoint, request: Request, asking: Asking, limits: Limits):
        self.endpoint = endpoint
        self.request = request
        self.asking = asking
        self.limits = limits
        self.budget = Budget(limits)
        self.path = Path(asking.replies)

    def prepare(self, prompts: Sequence[Prompt], questions: int, answer_tokens: int) -> None:
        """Refuses a missing key, and limits that might not do if every answer were as long as it may be."""
        self.endpoint.check()
        asked = [self.asking.open(Question(prompt, "", "", 0, 0)) for prompt in prompts]
        empty = sum(estimated_tokens(one.messages) for one in asked)
        how = f"an upper bound: two answers of {answer_tokens:,} tokens, generation.max_new_tokens, in each request"
        self._announce(len(asked) * questions, questions * (empty + 2 * answer_tokens * len(asked)), how)

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Asks what no stored reply answers; prints how much that is, and refuses if it is above the limits.

        Raises:
            UserError: the estimate is above a limit, a limit was reached, or the server refuses every request. Replies
                that came before are kept.
        """
        store = ReplyStore(self.path)
        try:
            self.budget = Budget(self.limits)
            asked = [self.asking.open(question) for question in questions]
            left = [one for one in asked if not self._resume(one, store)]
            how = f"{len(asked) - len(left):,} questions answered by stored replies"
            self._announce(len(left), sum(estimated_tokens(one.messages) for one in left), how)
            if left:
                asyncio.run(self._ask_all(left, store))
            return [one.final or Reply("not asked", None) for one in asked]
        finally:
            store.close()

    def body(self, messages: Sequence[Message]) -> dict[str, Any]:
        """A request's body."""
        return self.request.body(messages, self.asking)

    def key(self, asked: Asked) -> ReplyKey:
        """Under which a question's next reply is kept."""
        sent = json.dumps([self.endpoint.base_url, self.body(asked.messages)], sort_keys=True)
        digest, question = hashlib.sha256(sent.encode()).hexdigest(), asked.question
        return ReplyKey(self.name, self.request.model, digest, question.order, question.repeat, asked.attempt)

    def _resume(self, asked: Asked, store: ReplyStore) -> bool:
        """Goes through the stored replies to a question; whether nothing remains to be asked."""
        while asked.final is None and (stored := store.get(self.key(asked))) is not None:
            self.asking.take(asked, stored.text)
        return asked.final is not None

    async def _ask_all(self, left: Sequence[Asked], store: ReplyStore) -> None:
        stopped: list[UserError] = []
        failures: list[str] = []
        with Progress(transient=True, disable=rank() > 0) as bar:
            line = bar.add_task(f"judging by {self.request.model}", total=len(left))

            async def settle(asked: Asked) -> None:
                try:
                    while asked.final is None and not stopped:
                        await self._ask(asked, store)
                except NoReply as error:
                    failures.append(str(error))
                    # Not stored, so the next run asks for it.
                    asked.final = Reply(f"not judged: {error}", None)
                except UserError as error:
                    stopped.append(error)  # those under way may end: they are paid for
                bar.advance(line)

            async with self.endpoint.connected():
                await asyncio.gather(*(settle(asked) for asked in left))
        self._report(failures)
        if stopped:
            kind = BudgetSpent if isinstance(stopped[0], BudgetSpent) else UserError
            raise kind(f"{stopped[0]}. Replies that came are kept in {self.path}; a further run asks for the rest only")

    async def _ask(self, asked: Asked, store: ReplyStore) -> None:
        tokens, most = estimated_tokens(asked.messages), self.asking.max_reply_tokens
        reply = await self.endpoint.ask(self.body(asked.messages), self.budget, tokens, most)
        await store.put(self.key(asked), reply)
        self.asking.take(asked, reply.text)

    def _announce(self, requests: int, tokens: int, how: str) -> None:
        """Prints what is to come, and refuses it above the limits."""
        replies = requests * self.asking.max_reply_tokens
        cost = self.limits.prices.cost(tokens, replies)
        money = f", at most about {cost:,.2f} in money" if self.limits.prices.known else ", prices unknown"
        Console(quiet=rank() > 0).print(
            f"judge={self.name} ({self.request.model}): {requests:,} requests, about {tokens:,} tokens in and at most "
            f"{replies:,} out{money} ({how})",
            highlight=False,
        )
        self.limits.refuse_above(requests, cost, how)

    def _report(self, failures: Sequence[str]) -> None:
        spent = f", {self.budget.cost:,.4f} in money" if self.limits.prices.known else ""
        text = f"judge={self.name}: {self.budget.requests:,} requests sent{spent}"
        if failures:
            text += f"; {len(failures):,} questions without a reply ({failures[0]}); a further run asks for them again"
        Console(quiet=rank() > 0).print(text, highlight=False, markup=False)
