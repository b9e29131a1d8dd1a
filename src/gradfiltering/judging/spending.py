"""Requests and money that judging may spend, and has spent."""

from collections.abc import Sequence
from typing import Self

from gradfiltering.errors import UserError
from gradfiltering.options import NonNegativeFloat, NonNegativeInt, model_validator, options

BYTES_PER_TOKEN = 4  # English text under the tokenizers of today's chat models
MESSAGE_TOKENS = 8  # a message's role and marks
MILLION = 1_000_000


def estimate_tokens(chat_messages: Sequence[dict[str, str]]) -> int:
    """Estimate the tokens of a conversation."""
    return sum(
        -(-len(chat_message["content"].encode("utf-8", "replace")) // BYTES_PER_TOKEN) + MESSAGE_TOKENS
        for chat_message in chat_messages
    )


@options
class Prices:
    """Prices of tokens, in the currency of your bill.

    Attributes:
        input_million: price of a million tokens sent; None when unknown.
        output_million: price of a million tokens received; None when unknown.
    """

    input_million: NonNegativeFloat | None
    output_million: NonNegativeFloat | None

    @property
    def known(self) -> bool:
        """True when a cost can be computed."""
        return self.input_million is not None and self.output_million is not None

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Compute the cost of a number of tokens; 0 when the prices are unknown."""
        input_cost = input_tokens * (self.input_million or 0)
        output_cost = output_tokens * (self.output_million or 0)
        return (input_cost + output_cost) / MILLION


@options
class SpendingLimits:
    """Limits of a run.

    Attributes:
        prices: prices of tokens.
        max_requests: most requests to send, retries included; None sets no limit.
        max_cost: most money to spend; None sets no limit.
    """

    prices: Prices
    max_requests: NonNegativeInt | None
    max_cost: NonNegativeFloat | None

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        if self.max_cost is not None and not self.prices.known:
            raise UserError(
                f"max_cost is {self.max_cost}, which needs prices: give input_million and "
                "output_million, the prices of a million tokens",
                owner=self,
                arguments=("max_cost",),
            )
        return self

    def check_estimate(self, request_count: int, request_cost: float, estimate_basis: str) -> None:
        """Refuse to start work that the limits would not let end.

        Args:
            request_count: requests to be sent.
            request_cost: the most they can cost.
            estimate_basis: basis of the estimate, in words.

        Raises:
            UserError: names the estimate and the limit.
        """
        if self.max_requests is not None and request_count > self.max_requests:
            raise UserError(
                f"judging takes {request_count:,} requests ({estimate_basis}), max_requests is "
                f"{self.max_requests:,}; raise it, or judge less: fewer prompts, baselines or repeats",
                owner=self,
                arguments=("max_requests",),
            )
        if self.max_cost is not None and request_cost > self.max_cost:
            raise UserError(
                f"judging may cost {request_cost:,.2f} ({estimate_basis}), max_cost is {self.max_cost:,.2f}; raise "
                "it, or judge less: fewer prompts, baselines or repeats, shorter replies or answers",
                owner=self,
                arguments=("max_cost",),
            )


class LimitReached(UserError):
    """A limit was reached while judging."""


class Spending:
    """Requests and money spent in one run, against their limits.

    Args:
        limits: limits of the run.
    """

    def __init__(self, limits: SpendingLimits):
        self.limits = limits
        self.requests = 0
        self.cost = 0.0  # requests under way count with their highest cost

    def reserve(self, input_tokens: int, output_tokens: int) -> float:
        """Set aside the most that a request can cost, and count it.

        Returns:
            The cost set aside.

        Raises:
            LimitReached: a limit would be passed.
        """
        request_cost = self.limits.prices.cost(input_tokens, output_tokens)
        max_requests, max_cost = self.limits.max_requests, self.limits.max_cost
        if max_requests is not None and self.requests + 1 > max_requests:
            raise LimitReached(f"max_requests={max_requests:,} is spent", self.limits, ("max_requests",))
        if max_cost is not None and self.cost + request_cost > max_cost:
            unspent_money = max_cost - self.cost
            raise LimitReached(
                f"max_cost={max_cost:,.2f} is spent but for {unspent_money:,.4f}", self.limits, ("max_cost",)
            )
        self.requests += 1
        self.cost += request_cost
        return request_cost

    def settle(self, reserved_cost: float, input_tokens: int | None, output_tokens: int | None) -> None:
        """Replace a reserved cost by the real one; without token counts it stays."""
        if input_tokens is not None and output_tokens is not None:
            self.cost += self.limits.prices.cost(input_tokens, output_tokens) - reserved_cost
