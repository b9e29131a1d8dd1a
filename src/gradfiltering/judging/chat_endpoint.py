"""Chat completions from an OpenAI-compatible server: many at once, retried, silent about keys."""

import asyncio
import ipaddress
import math
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import urlsplit

from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from gradfiltering.errors import UserError
from gradfiltering.judging.reply_store import StoredReply
from gradfiltering.judging.spending import Spending
from gradfiltering.options import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator, options
from gradfiltering.runs.plain_text import replace_lone_surrogates

RETRIED_STATUSES = {408, 409, 425, 429}  # another attempt may mend these, and any from 500
FINAL_STATUSES = {401, 402, 403, 404}  # every further request would get these, too
SHOWN_CHARACTERS = 300
MOST_TOKENS = 10**9  # a larger count is no count
# What a header's name may hold (RFC 9110), names that the client sets itself, and what a value may hold.
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OWN_HEADERS = {"connection", "content-length", "content-type", "host", "transfer-encoding"}
_HEADER_VALUE = re.compile(r"[\x20-\x7e]+")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# A secret this short stands in any text by chance, so it is hidden only where a word says what it is.
SHORT_SECRET, WORD_SECRET = 3, 7
_SECRET_CONTEXT = r"(?i:\b(?:key|token|secret|password|bearer|authorization|provided)\b\W{0,4}(?:is\W{0,4})?)"
_KEY_LIKE = re.compile(r"\b(?:sk|pk|key|api)[-_][\w*.\-]{6,}|(?<=Bearer )\S+")


class NoReply(Exception):
    """A question remains without a reply; the message says why."""


class _TransientFault(Exception):
    """An attempt failed and may be repeated; `charged` tells if it may have cost money."""

    def __init__(self, failure_reason: str, charged: bool = True):
        super().__init__(failure_reason)
        self.charged = charged


class _ForeignRedirect(Exception):
    """A server sent us on to another origin, which the message names."""


@options
class RetrySettings:
    """Number of attempts, and the waits between them.

    Attributes:
        attempts: most requests for one reply.
        first_wait: most seconds before the second request, doubled for each further one; the real
            wait is drawn between 0 and that.
        longest_wait: most seconds to wait, also when the server asks for more.
    """

    attempts: PositiveInt
    first_wait: NonNegativeFloat
    longest_wait: NonNegativeFloat

    @model_validator(mode="after")
    def _check_waits(self) -> Self:
        if self.longest_wait < self.first_wait:
            raise UserError(
                f"longest_wait ({self.longest_wait:g}) is below first_wait ({self.first_wait:g}); give a longer one",
                owner=self,
                arguments=("first_wait", "longest_wait"),
            )
        return self


@options
class ChatEndpoint:
    """Address and manners of an OpenAI-compatible server.

    Attributes:
        base_url: address such as `https://api.openai.com/v1`.
        key_variable: environment variable that holds the key; None for a server that asks for none.
        header_variables: environment variables that hold the values of further headers, by header; None for no such
            headers.
        concurrency: most requests under way at once.
        timeout: seconds until a reply must have come whole.
        retries: number of attempts, and the waits between them.
    """

    base_url: str
    key_variable: str | None
    header_variables: Mapping[str, str] | None
    concurrency: PositiveInt
    timeout: PositiveFloat
    retries: RetrySettings

    @model_validator(mode="after")
    def _check_address(self) -> Self:
        no_address = "base_url is no address of a server ({}); give one such as https://api.openai.com/v1"
        try:
            address_parts = urlsplit(self.base_url)
            port = address_parts.port
        except ValueError as error:
            raise UserError(
                no_address.format(str(error).replace(self.base_url, "it")), owner=self, arguments=("base_url",)
            ) from None
        address_problem = None
        if address_parts.scheme not in ("http", "https"):
            address_problem = no_address.format("it begins with neither http:// nor https://")
        elif re.search(r"[\s\x00-\x1f\x7f\\]", self.base_url):
            address_problem = no_address.format("it holds a blank, a control character or a backslash")
        elif port == 0:
            address_problem = no_address.format("no server listens on port 0")
        elif address_parts.fragment:
            address_problem = no_address.format("it has a part after #")
        elif not _is_host(address_parts.hostname):
            address_problem = no_address.format("its host is no name and no IP address")
        elif address_parts.username or address_parts.password or address_parts.query:
            address_problem = (
                "base_url holds a user, a password or a query, which would stand in the run's "
                "files; give the secret in an environment variable and name that in key_variable "
                "or header_variables"
            )
        if address_problem is not None:
            raise UserError(address_problem, owner=self, arguments=("base_url",))
        for header_name in self.header_variables or {}:
            if not _HEADER_NAME.fullmatch(header_name) or header_name.lower() in _OWN_HEADERS:
                raise UserError(
                    f"header_variables: {header_name!r} is no header that can be set; give a name such as X-Team",
                    owner=self,
                    arguments=("header_variables",),
                )
        return self

    def check_secrets(self) -> None:
        """Refuse a session without its package or its secrets.

        Raises:
            UserError: the package is not installed, or an environment variable is not set.
        """
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise UserError("this judge needs the openai package: pip install 'gradfiltering[openai]'") from error
        for secret_variable in self._secret_variables():
            secret_value = os.environ.get(secret_variable, "").strip()
            if secret_value and not _HEADER_VALUE.fullmatch(secret_value):
                raise UserError(
                    f"the environment variable {secret_variable} holds a line break or a character that no header can "
                    "carry; set it to the secret alone",
                    owner=self,
                    arguments=("key_variable", "header_variables"),
                )
            if not secret_value:
                raise UserError(
                    "this judge takes a secret from the environment variable "
                    f"{secret_variable}, which is not set; set it, or name another (a null key_variable "
                    "for a server that asks for no key)",
                    owner=self,
                    arguments=("key_variable", "header_variables"),
                )

    def redact(self, text: str) -> str:
        """Remove this session's secrets, and anything that looks like a key, from a text.

        Secrets of up to seven characters are removed as whole words; of up to three, which are digits or syllables
        of any reply, only where a word such as `key` stands before them.
        """
        secret_values = {os.environ.get(secret_variable, "").strip() for secret_variable in self._secret_variables()}
        for secret_value in sorted(secret_values - {""}, key=len, reverse=True):
            whole_word = rf"(?<![A-Za-z0-9]){re.escape(secret_value)}(?![A-Za-z0-9])"
            if len(secret_value) <= SHORT_SECRET:
                text = re.sub(rf"({_SECRET_CONTEXT}){whole_word}", r"\1***", text)
            elif len(secret_value) <= WORD_SECRET:
                text = re.sub(whole_word, "***", text)
            else:
                text = text.replace(secret_value, "***")
        return _KEY_LIKE.sub("***", text)

    def shorten(self, text: str) -> str:
        """Make a text of the server fit for an error message."""
        return " ".join(self.redact(text).split())[:SHOWN_CHARACTERS]

    @asynccontextmanager
    async def connect(self, spending: Spending) -> AsyncIterator["ChatSession"]:
        """Hold connections to the server open.

        Args:
            spending: account of the requests that will be sent.
        """
        import openai

        self.check_secrets()
        header_variables = self.header_variables or {}
        extra_headers = {header: os.environ[variable].strip() for header, variable in header_variables.items()}
        api_key = "none" if self.key_variable is None else os.environ[self.key_variable].strip()
        # Retries are tenacity's: the client's know neither the spending limits nor the pauses that
        # other requests were told, and do not repeat a request whose reply is garbage.
        async with openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=api_key,
            default_headers=extra_headers,
            timeout=self.timeout,
            max_retries=0,
            # A redirect to another origin would take the headers along, and the key with them.
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=self.timeout, event_hooks={"response": [_refuse_foreign_redirect]}
            ),
        ) as client:
            yield ChatSession(self, client, spending)

    def _secret_variables(self) -> list[str]:
        key_variables = [] if self.key_variable is None else [self.key_variable]
        return [*key_variables, *(self.header_variables or {}).values()]


class ChatSession:
    """Open connections to a server.

    Args:
        endpoint: the server.
        client: an `openai.AsyncOpenAI`.
        spending: account of the requests sent.
    """

    def __init__(self, endpoint: ChatEndpoint, client: Any, spending: Spending):
        self.endpoint = endpoint
        self._client = client
        self._spending = spending
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._pause_end = 0.0  # no request leaves before this time, when the server asked for quiet
        self._has_answered = False
        self._fatal_error: UserError | None = None  # why no further request is worth sending

    async def complete(self, request_body: Mapping[str, Any], input_tokens: int, max_output_tokens: int) -> StoredReply:
        """Get the reply to one request body.

        Args:
            request_body: body of the request.
            input_tokens: estimated tokens of the request.
            max_output_tokens: most tokens of the reply.

        Raises:
            NoReply: this request got no reply.
            UserError: no request would get a reply: a wrong key or model, an unreachable server, a spent
                budget.
        """
        retries = self.endpoint.retries
        attempts = AsyncRetrying(
            stop=stop_after_attempt(retries.attempts),
            wait=wait_random_exponential(multiplier=retries.first_wait, max=retries.longest_wait),
            retry=retry_if_exception_type(_TransientFault),
        )
        try:
            return await attempts(self._attempt, request_body, input_tokens, max_output_tokens)
        except RetryError as error:
            failure_text = f"{retries.attempts} tries, the last time: {error.last_attempt.exception()}"
        except UserError as error:
            self._fatal_error = error
            raise
        if self._has_answered:
            raise NoReply(f"no reply in {failure_text}")
        self._fatal_error = UserError(
            f"no reply from {self.endpoint.base_url} in {failure_text}. Check the address, the timeout "
            "and whether the server runs",
            owner=self.endpoint,
            arguments=("base_url", "timeout"),
        )
        raise self._fatal_error

    async def _attempt(self, request_body: Mapping[str, Any], input_tokens: int, max_output_tokens: int) -> StoredReply:
        """Send one request in a free slot, after any pause, and account for it."""
        async with self._slots:
            while (wait_seconds := self._pause_end - time.monotonic()) > 0:
                await asyncio.sleep(wait_seconds)
            if self._fatal_error is not None:
                raise self._fatal_error  # raised while this request waited for its turn
            reserved_cost = self._spending.reserve(input_tokens, max_output_tokens)
            try:
                stored_reply = await self._send(request_body)
            except _TransientFault as error:
                if not error.charged:
                    self._spending.settle(reserved_cost, 0, 0)
                raise
            self._has_answered = True
            self._spending.settle(reserved_cost, stored_reply.input_tokens, stored_reply.output_tokens)
            return stored_reply

    async def _send(self, request_body: Mapping[str, Any]) -> StoredReply:
        import openai

        shorten = self.endpoint.shorten
        # Errors are raised anew without their cause, which may quote headers or a key.
        try:
            async with asyncio.timeout(self.endpoint.timeout):  # of the whole; the client's: per read
                completion = await self._client.chat.completions.create(**request_body)
        except (ValueError, RecursionError) as error:
            raise _TransientFault(shorten(f"the reply is no JSON ({error})")) from None
        except (TimeoutError, openai.APITimeoutError):
            raise _TransientFault(f"nothing came within {self.endpoint.timeout:g} s") from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, _ForeignRedirect):
                raise self._explain_redirect(error.__cause__) from None
            cause_name = type(error.__cause__ or error).__name__
            raise _TransientFault(f"the connection failed ({cause_name})") from None
        except _ForeignRedirect as error:  # some versions of the client do not wrap it
            raise self._explain_redirect(error) from None
        except openai.APIStatusError as error:
            raise self._explain_refusal(error) from None
        return self._read_completion(completion)

    def _explain_redirect(self, redirect: "_ForeignRedirect") -> UserError:
        return UserError(
            f"{self.endpoint.base_url} sends us on to {self.endpoint.shorten(str(redirect))}, another server; "
            "nothing was sent there. Give that address if you trust it",
            owner=self.endpoint,
            arguments=("base_url",),
        )

    def _read_completion(self, completion: Any) -> StoredReply:
        # The client checks nothing of what it parses, so any part may be missing or odd.
        try:
            reply_choice, token_usage = completion.choices[0], completion.usage
            reply_text, finish_reason = reply_choice.message.content, reply_choice.finish_reason
            if reply_text is None:
                reply_text = reply_choice.message.refusal or ""
        except (LookupError, TypeError, AttributeError):
            excerpt = self.endpoint.shorten(str(completion))
            raise _TransientFault(f"the reply is no chat completion: {excerpt}") from None
        if not isinstance(reply_text, str):
            raise _TransientFault(f"the reply's content is {self.endpoint.shorten(repr(reply_text))}")
        return StoredReply(
            text=self.endpoint.redact(replace_lone_surrogates(reply_text)),
            finish_reason=replace_lone_surrogates(finish_reason)[:SHOWN_CHARACTERS]
            if isinstance(finish_reason, str)
            else None,
            input_tokens=_read_count(token_usage, "prompt_tokens"),
            output_tokens=_read_count(token_usage, "completion_tokens"),
        )

    def _explain_refusal(self, error: Any) -> Exception:
        """Turn a refusal into the error it means: for this attempt, this request or all."""
        endpoint, status = self.endpoint, error.status_code
        stated_reason = endpoint.shorten(f"{error.message} {error.code or ''}")
        failure_reason = f"status {status}: {stated_reason}"
        if status in FINAL_STATUSES or error.code == "insufficient_quota":
            return UserError(
                f"{endpoint.base_url} refuses: {failure_reason}. Check the model, the address, the account, "
                f"and the key in {endpoint.key_variable}",
                owner=endpoint,
                arguments=("base_url", "key_variable"),
            )
        if status in RETRIED_STATUSES or status >= 500:
            wait_seconds = _read_requested_wait(error.response.headers)
            if wait_seconds is not None and wait_seconds > endpoint.retries.longest_wait:
                return UserError(
                    f"{endpoint.base_url} asks to wait {wait_seconds:,.0f} s, longer than longest_wait="
                    f"{endpoint.retries.longest_wait:g}; run again later",
                    owner=endpoint.retries,
                    arguments=("longest_wait",),
                )
            if wait_seconds is not None:
                self._pause_end = max(self._pause_end, time.monotonic() + wait_seconds)
            return _TransientFault(failure_reason, charged=False)
        if not self._has_answered:
            return UserError(
                f"{endpoint.base_url} refuses the first request: {failure_reason}. Check the model and the "
                "further fields of the request"
            )
        return NoReply(failure_reason)


def _read_count(token_usage: Any, name: str) -> int | None:
    token_count = getattr(token_usage, name, None)
    return token_count if type(token_count) is int and 0 <= token_count <= MOST_TOKENS else None


def _is_host(host_name: str | None) -> bool:
    """Tell if a text is an IP address or a name that the domain name system could hold."""
    try:
        ipaddress.ip_address(host_name or "")
        return True
    except ValueError:
        pass
    try:
        ascii_name = (host_name or "").rstrip(".").encode("idna").decode("ascii")
    except UnicodeError:
        return False
    labels = ascii_name.split(".")
    is_number = labels[-1].isdigit()  # 256.1.1.1 or 127.1: an address that is none
    return len(ascii_name) <= 253 and not is_number and all(_HOST_LABEL.fullmatch(label) for label in labels)


async def _refuse_foreign_redirect(response: Any) -> None:
    """Stop before a redirect to another scheme, host or port is followed."""
    if not response.has_redirect_location:
        return
    target = response.url.join(response.headers["location"])
    if any(getattr(target, part) != getattr(response.url, part) for part in ("scheme", "host", "port")):
        raise _ForeignRedirect(f"{target.scheme}://{target.netloc.decode('ascii', 'replace')}")


def _read_requested_wait(reply_headers: Mapping[str, str]) -> float | None:
    """Read the seconds a server asks to wait, in any of the three forms it may use."""
    if (wait_milliseconds := _read_number(reply_headers.get("retry-after-ms"))) is not None:
        return wait_milliseconds / 1000
    retry_after = reply_headers.get("retry-after")
    if (wait_seconds := _read_number(retry_after)) is not None:
        return wait_seconds
    try:
        return max(0.0, parsedate_to_datetime(retry_after or "").timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _read_number(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
