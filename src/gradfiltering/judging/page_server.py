"""The server behind the rating page: whom it answers, and how long it waits for a request."""

import asyncio
import ipaddress
import logging
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from gradfiltering.errors import UserError

REQUEST_SECONDS = 20.0  # in which a request must have come
KEEP_ALIVE_SECONDS = 5  # between two requests of a connection
SHUTDOWN_SECONDS = 5  # for requests under way when the page ends
MOST_CONNECTIONS = 500
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class HostCheck:
    """Refuses requests that do not name this page as their host, or that another page sent.

    A page of another site can make its own name point to this machine (DNS rebinding), and its requests then look to
    the browser as if they stayed on that site; but they carry its name as Host. An IP address cannot be made to point
    elsewhere, so that any will do where the page is open to the network.

    Args:
        app: the application behind the check.
        served_host: the host that the page is served on.
        host_names: further names by which the page may be reached.
    """

    def __init__(self, app: ASGIApp, served_host: str, host_names: Iterable[str]):
        self.app = app
        self.allows_addresses = served_host.lower() not in LOOPBACK_NAMES
        network_names = {served_host, socket.gethostname()} if self.allows_addresses else {served_host}
        self.host_names = LOOPBACK_NAMES | {name.lower() for name in (*network_names, *host_names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            hosts, origins = headers.getlist("host"), headers.getlist("origin")
            refusal = None
            if len(hosts) != 1 or not self.is_own(hosts[0]):
                refusal = JSONResponse({"error": "this page has another address"}, status_code=421)
            elif any(_netloc(origin) != hosts[0].lower() for origin in origins):
                refusal = JSONResponse({"error": "this request comes from another page"}, status_code=403)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def is_own(self, host_header: str) -> bool:
        """Tell if a Host header names this page."""
        try:
            host_parts = urlsplit(f"//{host_header}")
            host_name, _ = host_parts.hostname or "", host_parts.port  # the port is only checked to be one
        except ValueError:
            return False
        if host_parts.netloc != host_header or "@" in host_header:
            return False
        return host_name in self.host_names or (self.allows_addresses and _is_address(host_name))


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request does not begin and end its head in time; uvicorn itself waits for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start waiting for a request."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Stop waiting when a request's head is there, or start when only a part of the next one is."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._deadline is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def open_socket(host: str, port: int) -> socket.socket:
    """Open the socket that a page is served on.

    Raises:
        UserError: the port is taken, or the host is not this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"cannot serve on host {host}, port {port} ({error}); port 0 is any") from error


@contextmanager
def serve(application: ASGIApp, host: str, port: int) -> Iterator[str]:
    """Serve an application while the block runs, by a thread of its own.

    Requests that are under way when the block ends have `SHUTDOWN_SECONDS` left.

    Yields:
        The address.

    Raises:
        UserError: the port is taken, or the host is not this machine's.
    """
    server_socket = open_socket(host, port)
    server_config = uvicorn.Config(
        application,
        http=ImpatientProtocol,
        ws="none",
        log_config=None,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    page_server = uvicorn.Server(server_config)
    server_thread = threading.Thread(target=page_server.run, args=([server_socket],), daemon=True)
    server_thread.start()
    try:
        url_host = f"[{host}]" if ":" in host else host
        yield f"http://{url_host}:{server_socket.getsockname()[1]}/"
    finally:
        with _silenced("uvicorn.error"):  # which would show a stack trace for each request that is cut off
            page_server.should_exit = True
            server_thread.join()
        server_socket.close()


@contextmanager
def _silenced(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    earlier_level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(earlier_level)


def _is_address(host_name: str) -> bool:
    try:
        ipaddress.ip_address(host_name)
    except ValueError:
        return False
    return True


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
