"""What judging may cost, in requests and in money."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradfiltering.errors import UserError

BYTES_PER_TOKEN = 4  # English text under the tokenizers of today's chat models
MESSAGE_TOKENS = 8  # what a message's role and marks take
MILLION = 1_000_000


def estimated_tokens(messages: Sequence[dict[str, str]]) -> int:
    """About how many tokens a conversation has."""
    return sum(
        -(-len(one["content"].encode("utf-8", "replace")) // BYTES_PER_TOKEN) + MESSAGE_TOKENS for one in messages
    )


@dataclass(frozen=True)
class Prices:
    """What tokens cost, in the currency of one's bill.

    Attributes:
        input_million: a million tokens sent; None when unknown.
        output_million: a million tokens received; None when unknown.
    """

    input_million: float | None
    output_million: float | None

    @property
    def known(self) -> bool:
        """Whether a cost can be told."""
        return self.input_million is not None and self.output_million is not None

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Cost of so many tokens; 0 when the prices are unknown."""
        return (input_tokens * (self.input_million or 0) + output_tokens * (self.output_million or 0)) / MILLION


@dataclass(frozen=True)
class Limits:
    """What a run may spend.

    Attributes:
        prices: of tokens.
        max_requests: most requests to send, retries included; None sets no limit.
        max_cost: most money to spend; None sets no limit.
    """

    prices: Prices
    max_requests: int | None
    max_cost: float | None

    def __post_init__(self) -> None:
        if self.max_cost is not None and not self.prices.known:
            raise UserError(
                f"judge.max_cost={self.max_cost} needs prices: set judge.prices.input_million and "
                "judge.prices.output_million to what a million tokens cost"
            )
        for name in ("max_requests", "max_cost"):
            if (limit := getattr(self, name)) is not None and limit < 0:
                raise UserError(f"judge.{name} is {limit}; it cannot be negative")

    def refuse_above(self, requests: int, cost: float, how: str) -> None:
        """Refuses to start what the limits would not let end.

        Args:
            requests: to be sent.
            cost: the most they can cost.
            how: what the estimate rests on, in words.

        Raises:
            UserError: names the estimate and the limit.
        """
        if self.max_requests is not None and requests > self.max_requests:
            raise UserError(
                f"judging takes {requests:,} requests ({how}), judge.max_requests is {self.max_requests:,}; raise it, "
                "or judge less (eval.limit=, judge.against=, judge.repeats=)"
            )
        if self.max_cost is not None and cost > self.max_cost:
            raise UserError(
                f"judging may cost {cost:,.2f} ({how}), judge.max_cost is {self.max_cost:,.2f}; raise it, or judge "
                "less (eval.limit=, judge.against=, judge.repeats=, judge.max_reply_tokens=, target.max_new_tokens=)"
            )


class BudgetSpent(UserError):
    """A limit was reached while judging."""


class Budget:
    """Requests and money spent in one run, against their limits.

    Args:
        limits: what may be spent.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.requests = 0
        self.cost = 0.0  # that of requests under way at their highest

    def reserve(self, input_tokens: int, output_tokens: int) -> float:
        """Sets aside the most that a request can cost, and counts it.

        Raises:
            BudgetSpent: a limit would be passed.
        """
        cost = self.limits.prices.cost(input_tokens, output_tokens)
        most, money = self.limits.max_requests, self.limits.max_cost
        if most is not None and self.requests + 1 > most:
            raise BudgetSpent(f"judge.max_requests={most:,} is spent")
        if money is not None and self.cost + cost > money:
            raise BudgetSpent(f"judge.max_cost={money:,.2f} is spent but for {money - self.cost:,.4f}")
        self.requests += 1
        self.cost += cost
        return cost

    def settle(self, reserved: float, input_tokens: int | None, output_tokens: int | None) -> None:
        """Puts what a request really cost in place of what was set aside; without counts that stays."""
        if input_tokens is not None and output_tokens is not None:
            self.cost += self.limits.prices.cost(input_tokens, output_tokens) - reserved
