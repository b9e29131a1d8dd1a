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

from gradfiltering.errors import UserError
from gradfiltering.judge.base import Judge, Question, Reply
from gradfiltering.judge.budget import Budget, BudgetSpent, Prices, estimated_tokens
from gradfiltering.judge.endpoint import Endpoint, NoReply
from gradfiltering.judge.prompts import Prompt
from gradfiltering.judge.protocol import Message, Protocol
from gradfiltering.judge.replies import ReplyKey, ReplyStore, StoredReply
from gradfiltering.proxy.devices import rank

FIXED = ("model", "messages", "stream", "n")


@dataclass
class _Progress:
    """Where a question stands: what to send next, and the reply that ended it."""

    question: Question
    messages: list[Message]
    attempt: int = 0
    last: str | None = None
    final: Reply | None = None


class OpenAIJudge(Judge):
    """Asks a chat model, several questions at once; what it says is kept as it arrives and never asked for twice.

    Args:
        endpoint: the server.
        model: its name there.
        protocol: what is shown and how replies are read.
        temperature: of sampling; None leaves it to the server.
        max_reply_tokens: longest reply.
        token_limit_name: how this server calls that limit, `max_tokens` or `max_completion_tokens`.
        request: further fields of each request.
        asks: how often a question is asked until its reply can be read.
        prices: of tokens.
        max_requests: most requests of a run; None sets no limit.
        max_cost: most money of a run; None sets no limit.
        replies: SQLite file of all replies.
    """

    name = "openai"

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        protocol: Protocol,
        temperature: float | None,
        max_reply_tokens: int,
        token_limit_name: str,
        request: Mapping[str, Any],
        asks: int,
        prices: Prices,
        max_requests: int | None,
        max_cost: float | None,
        replies: str,
    ):
        if fixed := [name for name in request if name in (*FIXED, token_limit_name, "temperature")]:
            raise UserError(f"judge.request.{fixed[0]} has an option of its own or cannot be changed; remove it")
        if max_reply_tokens < 1 or asks < 1:
            raise UserError(f"judge.max_reply_tokens={max_reply_tokens}, judge.asks={asks}: both must be at least 1")
        self.endpoint = endpoint
        self.model = model
        self.protocol = protocol
        self.options = dict(request)
        if protocol.reply == "json":
            self.options.setdefault("response_format", {"type": "json_object"})
        if temperature is not None:
            self.options["temperature"] = temperature
        self.options[token_limit_name] = max_reply_tokens
        self.max_reply_tokens = max_reply_tokens
        self.asks = asks
        self.limits = (prices, max_requests, max_cost)
        self.budget = Budget(*self.limits)
        self.path = Path(replies)

    def prepare(self, prompts: Sequence[Prompt], questions: int) -> None:
        """Refuses a missing key, and limits that would not do even if every answer were empty and none was stored."""
        self.endpoint.check()
        if not self.path.exists():  # else some replies may be there already
            empty = [Question(prompt, "", "", 0, 0) for prompt in prompts]
            requests, tokens = len(empty) * questions, questions * self._input_tokens(empty)
            self.budget.refuse_above(requests, self.budget.prices.cost(tokens, 0))

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """Asks what no stored reply answers; prints how much that is, and refuses if it is above the limits.

        Raises:
            UserError: the estimate is above a limit, a limit was reached, or the server refuses every request. Replies
                that came before are kept.
        """
        store = ReplyStore(self.path)
        try:
            self.budget = Budget(*self.limits)
            states = [_Progress(one, self.protocol.messages(one.prompt, one.first, one.second)) for one in questions]
            open_ = [state for state in states if not self._resume(state, store)]
            self._announce(open_, len(states) - len(open_))
            if open_:
                asyncio.run(self._ask_all(open_, store))
            return [state.final or Reply("not asked", None) for state in states]
        finally:
            store.close()

    def body(self, messages: Sequence[Message]) -> dict[str, Any]:
        """A request's body."""
        return {"model": self.model, "messages": list(messages), **self.options}

    def key(self, state: _Progress) -> ReplyKey:
        """Under which a state's next reply is kept."""
        sent = json.dumps([self.endpoint.base_url, self.body(state.messages)], sort_keys=True)
        digest = hashlib.sha256(sent.encode()).hexdigest()
        return ReplyKey(self.name, self.model, digest, state.question.order, state.question.repeat, state.attempt)

    def _resume(self, state: _Progress, store: ReplyStore) -> bool:
        """Goes through the stored replies to a question; whether nothing remains to be asked."""
        while state.final is None and (stored := store.get(self.key(state))) is not None:
            self._advance(state, stored)
        return state.final is not None

    def _advance(self, state: _Progress, reply: StoredReply) -> None:
        """A reply that can be read ends a question, and so does the last that cannot; else it is asked again."""
        scores = self.protocol.read(reply.text)
        state.attempt += 1
        state.last = reply.text
        if scores is not None or state.attempt >= self.asks:
            state.final = Reply(reply.text, scores)
        else:
            state.messages = self.protocol.ask_again(state.messages, reply.text)

    async def _ask_all(self, states: Sequence[_Progress], store: ReplyStore) -> None:
        stopped: list[UserError] = []
        failures: list[str] = []
        with Progress(transient=True, disable=rank() > 0) as bar:
            line = bar.add_task(f"judging by {self.model}", total=len(states))

            async def settle(state: _Progress) -> None:
                try:
                    while state.final is None and not stopped:
                        await self._ask(state, store)
                except NoReply as error:
                    failures.append(str(error))
                    # Not stored, so the next run asks for it.
                    state.final = Reply(f"not judged: {error}", None)
                except UserError as error:
                    stopped.append(error)  # those under way may end: they are paid for
                bar.advance(line)

            async with self.endpoint.connected():
                await asyncio.gather(*(settle(state) for state in states))
        self._report(failures)
        if stopped:
            kind = BudgetSpent if isinstance(stopped[0], BudgetSpent) else UserError
            raise kind(f"{stopped[0]}. Replies that came are kept in {self.path}; a further run asks for the rest only")

    async def _ask(self, state: _Progress, store: ReplyStore) -> None:
        messages = state.messages
        tokens = estimated_tokens(messages)
        reply = await self.endpoint.ask(self.body(messages), self.budget, tokens, self.max_reply_tokens)
        await store.put(self.key(state), reply)
        self._advance(state, reply)

    def _announce(self, states: Sequence[_Progress], stored: int) -> None:
        tokens = sum(estimated_tokens(state.messages) for state in states)
        replies = len(states) * self.max_reply_tokens
        cost = self.budget.prices.cost(tokens, replies)
        money = f", at most about {cost:,.2f} in money" if self.budget.prices.known else ", prices unknown"
        Console(quiet=rank() > 0).print(
            f"judge={self.name} ({self.model}): {len(states):,} requests ({stored:,} questions answered by stored "
            f"replies), about {tokens:,} tokens in and at most {replies:,} out{money}",
            highlight=False,
        )
        self.budget.refuse_above(len(states), cost)

    def _report(self, failures: Sequence[str]) -> None:
        spent = f", {self.budget.cost:,.4f} in money" if self.budget.prices.known else ""
        text = f"judge={self.name}: {self.budget.requests:,} requests sent{spent}"
        if failures:
            text += f"; {len(failures):,} questions without a reply ({failures[0]}); a further run asks for them again"
        Console(quiet=rank() > 0).print(text, highlight=False, markup=False)

    def _input_tokens(self, questions: Sequence[Question]) -> int:
        return sum(estimated_tokens(self.protocol.messages(one.prompt, one.first, one.second)) for one in questions)
