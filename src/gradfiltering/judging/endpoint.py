"""Chat completions from an OpenAI-compatible server: many at once, patient with faults, silent about keys."""

import asyncio
import math
import os
import random
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from gradfiltering.errors import UserError
from gradfiltering.judging.budget import Budget
from gradfiltering.judging.replies import StoredReply

PASSING = {408, 409, 425, 429}  # statuses that another try may mend, as may any from 500
HOPELESS = {401, 402, 403, 404}  # statuses that every further request would get, too
_KEY_LIKE = re.compile(r"\b(?:sk|pk|key|api)[-_][\w*.\-]{6,}|(?<=Bearer )\S+")
SHOWN_CHARACTERS = 300


class NoReply(Exception):
    """A question remains without a reply; the message says why."""


@dataclass(frozen=True)
class Retries:
    """How often and how long to try.

    Attributes:
        attempts: most requests for one reply.
        first_wait: seconds before the second request, doubled for each further one; the real wait is drawn below it.
        longest_wait: most seconds to wait, also when the server asks for more.
    """

    attempts: int
    first_wait: float
    longest_wait: float

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait < 0 or self.longest_wait < self.first_wait:
            raise UserError(
                f"judge.retries: attempts={self.attempts}, first_wait={self.first_wait}, "
                f"longest_wait={self.longest_wait}; give at least 1 attempt and 0 <= first_wait <= longest_wait"
            )


class Endpoint:
    """An OpenAI-compatible server.

    Args:
        base_url: such as `https://api.openai.com/v1`.
        key_variable: the environment variable that holds the key; None for a server that asks for none.
        header_variables: further headers by the environment variable that holds their value.
        concurrency: most requests under way at once.
        timeout: seconds until a reply must have come whole.
        retries: how often and how long to try.
    """

    def __init__(
        self,
        base_url: str,
        key_variable: str | None,
        header_variables: Mapping[str, str],
        concurrency: int,
        timeout: float,
        retries: Retries,
    ):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("judge.base_url is no address of a server; give one such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query:
            raise UserError(
                "judge.base_url holds a user, a password or a query, which would stand in the run's files; give the "
                "secret in an environment variable and name that in judge.key_variable or judge.header_variables"
            )
        if concurrency < 1 or timeout <= 0:
            raise UserError(f"judge.concurrency={concurrency}, judge.timeout={timeout}: both must be positive")
        self.base_url = base_url
        self.key_variable = key_variable
        self.header_variables = dict(header_variables)
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self._random = random.Random(0)
        self._open_at = 0.0  # no request leaves before this time, when the server asked for quiet
        self._answered = False
        self._stopped: UserError | None = None  # why no request is worth sending any more
        self._client: Any = None

    def check(self) -> None:
        """Refuses a session without its package or its secrets."""
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise UserError("judge=openai needs the openai package: pip install 'gradfiltering[openai]'") from error
        names = [self.key_variable] if self.key_variable is not None else []
        for name in (*names, *self.header_variables.values()):
            if not os.environ.get(name, "").strip():
                raise UserError(
                    f"judge=openai takes a secret from the environment variable {name}, which is not set; set it, or "
                    "name another in judge.key_variable (null for a server that asks for no key)"
                )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Holds the connections open."""
        import openai

        self.check()
        headers = {header: os.environ[name].strip() for header, name in self.header_variables.items()}
        key = os.environ[self.key_variable].strip() if self.key_variable is not None else "none"
        self._answered, self._stopped = False, None
        self._slots = asyncio.Semaphore(self.concurrency)
        async with openai.AsyncOpenAI(
            # The client's own retries know neither our budget nor what other requests were told.
            base_url=self.base_url, api_key=key, default_headers=headers, timeout=self.timeout, max_retries=0
        ) as self._client:  # fmt: skip
            yield

    async def ask(self, body: Mapping[str, Any], budget: Budget, input_tokens: int, output_tokens: int) -> StoredReply:
        """The reply to one request body.

        Args:
            body: of the request.
            budget: what may be spent.
            input_tokens: about how many tokens the request has.
            output_tokens: most tokens of the reply.

        Raises:
            NoReply: none could be had for this request.
            UserError: none can be had for any: a wrong key or model, an unreachable server, a spent budget.
        """
        try:
            return await self._persist(body, budget, input_tokens, output_tokens)
        except UserError as error:
            self._stopped = error
            raise

    async def _persist(
        self, body: Mapping[str, Any], budget: Budget, input_tokens: int, output_tokens: int
    ) -> StoredReply:
        why = ""
        for attempt in range(self.retries.attempts):
            if attempt:
                highest = min(self.retries.longest_wait, self.retries.first_wait * 2 ** (attempt - 1))
                await asyncio.sleep(self._random.uniform(highest / 2, highest))
            async with self._slots:
                await self._quiet()
                if self._stopped is not None:
                    raise self._stopped  # while this request waited for its turn
                reserved = budget.reserve(input_tokens, output_tokens)
                reply, why = await self._once(body)
                self._answered |= reply is not None
                if reply is not None:
                    budget.settle(reserved, reply.input_tokens, reply.output_tokens)
                    return reply
                if why.startswith("status"):
                    budget.settle(reserved, 0, 0)  # a refused request is not charged
        if not self._answered:
            raise UserError(
                f"no reply from {self.base_url} in {self.retries.attempts} tries, the last time: {why}. Check "
                "judge.base_url, judge.timeout and whether the server runs"
            )
        raise NoReply(f"no reply in {self.retries.attempts} tries, the last time: {why}")

    def redacted(self, text: str) -> str:
        """A text without this session's secrets or anything that looks like a key."""
        names = [self.key_variable] if self.key_variable is not None else []
        for name in (*names, *self.header_variables.values()):
            if value := os.environ.get(name, "").strip():
                text = text.replace(value, "***")
        return _KEY_LIKE.sub("***", text)

    async def _once(self, body: Mapping[str, Any]) -> tuple[StoredReply | None, str]:
        """One request: its reply, or why there is none and it may be sent again."""
        import openai

        # Errors are raised anew without their cause, which may quote headers or a key.
        try:
            async with asyncio.timeout(self.timeout):  # of all of the reply; the client's is per read
                # As plain JSON: the typed call takes several times the processor time, and checks no more.
                return self._read(await self._client.post("/chat/completions", body=dict(body), cast_to=object))
        except ValueError as error:
            return None, self._short(f"the reply is no JSON ({error})")
        except (TimeoutError, openai.APITimeoutError):
            return None, f"nothing came within {self.timeout:g} s"
        except openai.APIConnectionError as error:
            return None, self._short(f"the connection failed ({type(error.__cause__ or error).__name__})")
        except openai.APIStatusError as error:
            return None, self._refusal(error)

    def _read(self, found: Any) -> tuple[StoredReply | None, str]:
        try:
            choice, usage = found["choices"][0], found.get("usage") or {}
            text = choice["message"]["content"]
            if text is None:
                text = choice["message"].get("refusal") or ""
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            whole = [count if type(count) is int and count >= 0 else None for count in counts]
            reason = choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError):
            return None, "the reply is no chat completion: " + self._short(str(found))
        if not isinstance(text, str):
            return None, f"the reply's content is {self._short(repr(text))}"
        return StoredReply(self.redacted(text), reason if isinstance(reason, str) else None, whole[0], whole[1]), ""

    def _refusal(self, error: Any) -> str:
        """Why the server refused, if it may do otherwise next time.

        Raises:
            NoReply: it will refuse this request always.
            UserError: it will refuse every request.
        """
        status = error.status_code
        said = f"{error.message} {error.code or ''}"
        why = f"status {status}: {self._short(said)}"
        if status in HOPELESS or error.code == "insufficient_quota":
            raise UserError(
                f"{self.base_url} refuses: {why}. Check judge.model, judge.base_url, the account, and the key in "
                f"{self.key_variable}"
            ) from None
        if status in PASSING or status >= 500:
            wait = _asked_wait(error.response.headers)
            if wait is not None and wait > self.retries.longest_wait:
                raise UserError(
                    f"{self.base_url} asks to wait {wait:,.0f} s, longer than judge.retries.longest_wait="
                    f"{self.retries.longest_wait:g}; run again later"
                ) from None
            if wait is not None:
                self._open_at = max(self._open_at, time.monotonic() + wait)
            return why
        if not self._answered:
            raise UserError(f"{self.base_url} refuses the first request: {why}. Check judge.model and judge.request")
        raise NoReply(why) from None

    async def _quiet(self) -> None:
        """Waits as long as the server has asked for; every request does, since limits hold for all."""
        while (wait := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def _short(self, text: str) -> str:
        return " ".join(self.redacted(text).split())[:SHOWN_CHARACTERS]


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, in any of the three ways it may say so."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    asked = headers.get("retry-after")
    if (seconds := _number(asked)) is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(asked or "").timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
