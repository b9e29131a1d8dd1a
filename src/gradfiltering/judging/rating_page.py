"""The page on which people compare answers: blind, on loopback, behind a password."""

import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from gradfiltering.errors import UserError
from gradfiltering.judging.ratings import AnswerPair, Choice, RatingStore, is_swapped, order_for_rater

TEMPLATES = Path(__file__).parent / "templates"
LARGEST_REQUEST = 10_000  # bytes
LONGEST_NAME = 60  # characters
WRONG_PASSWORD_SECONDS = 0.5
SECURITY_HEADERS = {
    # Nothing but the page's own script and style runs, whatever an answer holds.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class RatingPage:
    """Content of the page, and its web application.

    Sessions are signed cookies that other sites cannot send. A rating must carry the session's own
    token in the header `X-CSRF-Token`, which only the page's script can read.

    Args:
        answer_pairs: pairs to be rated.
        rating_store: store of the ratings.
        password: password that raters give; None lets everybody in.
    """

    def __init__(self, answer_pairs: Sequence[AnswerPair], rating_store: RatingStore, password: str | None):
        self.pairs = {answer_pair.pair_id: answer_pair for answer_pair in answer_pairs}
        self.store = rating_store
        self.password = password
        # The secret is drawn anew each time, so sessions end with the program.
        session_middleware = Middleware(
            SessionMiddleware,
            secret_key=secrets.token_urlsafe(32),
            session_cookie="session",
            max_age=None,
            same_site="strict",
        )
        self.application = Starlette(
            routes=[
                Route("/", _serve_file("rating.html")),
                Route("/page.js", _serve_file("rating.js")),
                Route("/page.css", _serve_file("rating.css")),
                Route("/api/state", self.show_state),
                Route("/api/login", self.log_in, methods=["POST"]),
                Route("/api/rate", self.rate_pair, methods=["POST"]),
            ],
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=_add_security_headers), session_middleware],
        )

    async def log_in(self, http_request: Request) -> Response:
        """Start a session of the rater that the request names."""
        request_body = await _read_body(http_request)
        rater, given_password = (
            str(request_body.get("rater", "")).strip(),
            str(request_body.get("password", "")),
        )
        if not rater or len(rater) > LONGEST_NAME or not rater.isprintable():
            return _refuse(403, "wrong password, or no name")
        if self.password is not None and not secrets.compare_digest(
            given_password.encode("utf-8", "surrogatepass"), self.password.encode()
        ):
            await run_in_threadpool(time.sleep, WRONG_PASSWORD_SECONDS)  # slows guessing down
            return _refuse(403, "wrong password, or no name")
        http_request.session.update(rater=rater, csrf_token=secrets.token_urlsafe(24))
        return JSONResponse({"ok": True})

    async def show_state(self, http_request: Request) -> Response:
        """Send the rater's progress and next pair."""
        if "rater" not in http_request.session:
            return _refuse(401, "log in")
        return await self._state_response(http_request)

    async def rate_pair(self, http_request: Request) -> Response:
        """Store a rating, then send the next pair."""
        session = http_request.session
        if "rater" not in session:
            return _refuse(401, "log in")
        csrf_token = http_request.headers.get("x-csrf-token", "")
        if not secrets.compare_digest(csrf_token.encode(), session["csrf_token"].encode()):
            return _refuse(403, "this request does not come from the page")
        request_body = await _read_body(http_request)
        pair_id, choice = str(request_body.get("pair")), str(request_body.get("choice"))
        choices: dict[str, Choice] = {name: name for name in get_args(Choice)}
        if pair_id not in self.pairs or choice not in choices:
            return _refuse(400, "not understood")
        await run_in_threadpool(self.store.add_choice, pair_id, session["rater"], choices[choice])
        return await self._state_response(http_request)

    async def _state_response(self, http_request: Request) -> Response:
        rater = http_request.session["rater"]
        state = await run_in_threadpool(self._find_next_pair, rater)
        return JSONResponse({**state, "csrf_token": http_request.session["csrf_token"]})

    def _find_next_pair(self, rater: str) -> dict[str, Any]:
        answer_pairs = list(self.pairs.values())
        rated = self.store.labels_by_rater(answer_pairs).get(rater, {})
        unrated = [answer_pair for answer_pair in answer_pairs if answer_pair.pair_id not in rated]
        shown_pair = None
        if unrated:
            answer_pair = order_for_rater(self.store.seed, rater, unrated)[0]
            pair_sides = [answer_pair.first, answer_pair.second]
            if is_swapped(self.store.seed, rater, answer_pair.pair_id):
                pair_sides.reverse()
            shown_pair = {
                "pair": answer_pair.pair_id,
                "question": answer_pair.question,
                "left": pair_sides[0],
                "right": pair_sides[1],
            }
        return {"rater": rater, "done": len(rated), "total": len(answer_pairs), "shown": shown_pair}


@contextmanager
def serve_page(page: RatingPage, host: str, port: int) -> Iterator[str]:
    """Serve the page while the block runs.

    Yields:
        The page's address.

    Raises:
        UserError: the port is taken, or the host is not this machine's.
    """
    try:
        server_socket = socket.create_server((host, port))
    except OSError as error:
        raise UserError(f"cannot serve on host {host}, port {port} ({error}); port 0 is any") from error
    server_config = uvicorn.Config(page.application, log_config=None, lifespan="off", server_header=False)
    page_server = uvicorn.Server(server_config)
    server_thread = threading.Thread(target=page_server.run, args=([server_socket],), daemon=True)
    server_thread.start()
    try:
        yield f"http://{host}:{server_socket.getsockname()[1]}/"
    finally:
        page_server.should_exit = True
        server_thread.join()
        server_socket.close()


async def _add_security_headers(http_request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(http_request)
    response.headers.update(SECURITY_HEADERS)
    return response


def _serve_file(file_name: str) -> Any:
    async def respond(http_request: Request) -> Response:
        return FileResponse(TEMPLATES / file_name)

    return respond


async def _read_body(http_request: Request) -> dict[str, Any]:
    """Read a small JSON object; an empty one where the body is anything else."""
    body_length = http_request.headers.get("content-length", "")
    is_json = http_request.headers.get("content-type") == "application/json"
    if not is_json or not body_length.isdecimal() or int(body_length) > LARGEST_REQUEST:
        return {}
    try:
        request_body = await http_request.json()
    except (ValueError, RecursionError):
        return {}
    return request_body if isinstance(request_body, dict) else {}


def _refuse(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=status)
