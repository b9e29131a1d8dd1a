"""The page on which people compare answers: blind, on loopback, behind a password."""

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gradfiltering.judging.guess_limit import GuessLimit
from gradfiltering.judging.page_server import REQUEST_SECONDS, HostCheck
from gradfiltering.judging.ratings import AnswerPair, Choice, RatingStore, is_swapped, order_for_rater
from gradfiltering.runs.plain_text import replace_lone_surrogates
from gradfiltering.statistics.agreement import measure_agreements

TEMPLATES = Path(__file__).parent / "templates"
LARGEST_REQUEST = 10_000  # bytes
LONGEST_NAME = 60  # characters
WRONG_PASSWORD_SECONDS = 0.5
# Wrong passwords within five minutes, after which every further one is refused unread.
GUESSES_PER_ADDRESS, GUESSES_IN_ALL, GUESS_SPAN_SECONDS = 10, 100, 300.0
SESSION_SECONDS = 12 * 3600
AGREEMENT_RESAMPLES, AGREEMENT_CONFIDENCE = 200, 0.95
MOST_SESSIONS = 1000  # the oldest ends when another begins
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

    Sessions are signed cookies that other sites cannot send; they end when the rater logs out, after
    `SESSION_SECONDS`, and with the program. A rating must carry the session's own token in the header
    `X-CSRF-Token`, which only the page's script can read. Requests must name the page as their host.

    A rater may take the latest rating back, and put a pair off to the end. Whoever started the program follows the
    raters' progress and agreement under `organiser_path`, which no rater is told.

    Args:
        answer_pairs: pairs to be rated.
        rating_store: store of the ratings.
        password: password that raters give; None lets everybody in.
        served_host: host that the page is served on.
        host_names: further names by which raters reach it.
        clock: gives the time in seconds, for the ends of sessions and the limit of guesses.
    """

    def __init__(
        self,
        answer_pairs: Sequence[AnswerPair],
        rating_store: RatingStore,
        password: str | None,
        served_host: str = "127.0.0.1",
        host_names: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.pairs = {answer_pair.pair_id: answer_pair for answer_pair in answer_pairs}
        self.store = rating_store
        self.password = password
        self.organiser_path = f"organiser/{secrets.token_urlsafe(16)}"
        self._skipped: dict[str, dict[str, None]] = {}  # ids of pairs put off, by rater, in their order
        self._clock = clock
        self._guess_limit = GuessLimit(GUESSES_PER_ADDRESS, GUESSES_IN_ALL, GUESS_SPAN_SECONDS, clock)
        self._session_ends: dict[str, float] = {}  # by the session's name, oldest first
        # The secret is drawn anew each time, so sessions end with the program.
        session_middleware = Middleware(
            SessionMiddleware,
            secret_key=secrets.token_urlsafe(32),
            session_cookie="session",
            max_age=SESSION_SECONDS,
            same_site="strict",
        )
        self.application = Starlette(
            routes=[
                Route("/", _serve_file("rating.html")),
                Route("/page.js", _serve_file("rating.js")),
                Route("/page.css", _serve_file("rating.css")),
                Route("/api/state", self.show_state),
                Route("/api/login", self.log_in, methods=["POST"]),
                Route("/api/logout", self.log_out, methods=["POST"]),
                Route("/api/rate", self.rate_pair, methods=["POST"]),
                Route("/api/skip", self.skip_pair, methods=["POST"]),
                Route("/api/undo", self.undo_rating, methods=["POST"]),
                Route(f"/{self.organiser_path}", self.show_progress),
            ],
            middleware=[
                Middleware(BaseHTTPMiddleware, dispatch=_add_security_headers),
                Middleware(HostCheck, served_host=served_host, host_names=host_names),
                session_middleware,
            ],
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
        address = http_request.client.host if http_request.client else ""
        if (wait_seconds := self._guess_limit.wait_seconds(address)) > 0:
            refusal = _refuse(429, "too many wrong passwords; try again in some minutes")
            refusal.headers["Retry-After"] = str(math.ceil(wait_seconds))
            return refusal
        if self.password is not None and not secrets.compare_digest(
            given_password.encode("utf-8", "surrogatepass"), self.password.encode()
        ):
            self._guess_limit.add_wrong_guess(address)  # before anything is awaited, so that guesses at once count
            await asyncio.sleep(WRONG_PASSWORD_SECONDS)  # slows guessing down
            return _refuse(403, "wrong password, or no name")
        http_request.session.clear()
        http_request.session.update(name=self._start_session(), rater=rater, csrf_token=secrets.token_urlsafe(24))
        return JSONResponse({"ok": True})

    async def log_out(self, http_request: Request) -> Response:
        """End the session, for whoever holds its cookie."""
        if refusal := self._check_session(http_request, needs_token=True):
            return refusal
        self._session_ends.pop(http_request.session["name"], None)
        http_request.session.clear()
        return JSONResponse({"ok": True})

    async def show_state(self, http_request: Request) -> Response:
        """Send the rater's progress and next pair."""
        return self._check_session(http_request, needs_token=False) or await self._state_response(http_request)

    async def rate_pair(self, http_request: Request) -> Response:
        """Store a rating, then send the next pair."""
        if refusal := self._check_session(http_request, needs_token=True):
            return refusal
        session = http_request.session
        request_body = await _read_body(http_request)
        pair_id, choice = str(request_body.get("pair")), str(request_body.get("choice"))
        choices: dict[str, Choice] = {name: name for name in get_args(Choice)}
        if pair_id not in self.pairs or choice not in choices:
            return _refuse(400, "not understood")
        await run_in_threadpool(self.store.add_choice, pair_id, session["rater"], choices[choice])
        return await self._state_response(http_request)

    async def skip_pair(self, http_request: Request) -> Response:
        """Put a pair off until all others are rated, then send the next one."""
        if refusal := self._check_session(http_request, needs_token=True):
            return refusal
        pair_id = str((await _read_body(http_request)).get("pair"))
        if pair_id not in self.pairs:
            return _refuse(400, "not understood")
        skipped = self._skipped.setdefault(http_request.session["rater"], {})
        skipped.pop(pair_id, None)  # put off again, it comes after the others
        skipped[pair_id] = None
        return await self._state_response(http_request)

    async def undo_rating(self, http_request: Request) -> Response:
        """Take the rater's latest rating back, then send its pair again."""
        if refusal := self._check_session(http_request, needs_token=True):
            return refusal
        rater = http_request.session["rater"]
        pair_id = await run_in_threadpool(self._take_back_latest, rater)
        return await self._state_response(http_request, pair_id)

    async def show_progress(self, http_request: Request) -> Response:
        """Show the organiser how far the raters are and how well they agree."""
        return HTMLResponse(await run_in_threadpool(self._format_progress))

    def _take_back_latest(self, rater: str) -> str | None:
        """Delete the rater's latest rating of these pairs; return its pair, None where there is no rating."""
        rated_ids = list(self.store.labels_by_rater(list(self.pairs.values())).get(rater, {}))
        if not rated_ids:
            return None
        self.store.take_back(rated_ids[-1], rater)
        return rated_ids[-1]

    def _format_progress(self) -> str:
        """Write the organiser's page."""
        answer_pairs = list(self.pairs.values())
        labels_by_rater = self.store.labels_by_rater(answer_pairs)
        rated_labels: dict[str, Mapping[Hashable, str]] = {}
        for rater, labels in labels_by_rater.items():
            rated_labels[rater] = dict[Hashable, str](labels.items())
        agreements = measure_agreements(rated_labels, AGREEMENT_RESAMPLES, AGREEMENT_CONFIDENCE, self.store.seed)
        template_text = (TEMPLATES / "progress.html").read_text("utf-8")
        template = Environment(autoescape=True, undefined=StrictUndefined).from_string(template_text)
        return template.render(
            pair_count=len(answer_pairs),
            rated_counts={rater: len(labels) for rater, labels in labels_by_rater.items()},
            agreements=agreements,
            both_bad_count=self.store.count_both_bad(answer_pairs),
        )

    def _start_session(self) -> str:
        """Begin a session and forget those that have ended; return its name."""
        current_time = self._clock()
        self._session_ends = {name: end for name, end in self._session_ends.items() if end > current_time}
        while len(self._session_ends) >= MOST_SESSIONS:
            del self._session_ends[next(iter(self._session_ends))]
        session_name = secrets.token_urlsafe(24)
        self._session_ends[session_name] = current_time + SESSION_SECONDS
        return session_name

    def _check_session(self, http_request: Request, needs_token: bool) -> Response | None:
        """Refuse a request without a session that goes on, or without its token where one is needed."""
        session = http_request.session
        if self._session_ends.get(session.get("name", ""), 0.0) <= self._clock():
            session.clear()
            return _refuse(401, "log in")
        csrf_token = http_request.headers.get("x-csrf-token", "")
        if needs_token and not secrets.compare_digest(csrf_token.encode(), session["csrf_token"].encode()):
            return _refuse(403, "this request does not come from the page")
        return None

    async def _state_response(self, http_request: Request, first_pair_id: str | None = None) -> Response:
        """Send the rater's progress and next pair, which is `first_pair_id` where that is given."""
        rater = http_request.session["rater"]
        state = await run_in_threadpool(self._find_next_pair, rater, first_pair_id)
        return JSONResponse({**state, "csrf_token": http_request.session["csrf_token"]})

    def _find_next_pair(self, rater: str, first_pair_id: str | None) -> dict[str, Any]:
        answer_pairs = list(self.pairs.values())
        rated = self.store.labels_by_rater(answer_pairs).get(rater, {})
        unrated = [answer_pair for answer_pair in answer_pairs if answer_pair.pair_id not in rated]
        shown_pair = None
        if unrated:
            skip_order = {pair_id: number for number, pair_id in enumerate(self._skipped.get(rater, {}), start=1)}
            ordered_pairs = order_for_rater(self.store.seed, rater, unrated)
            ordered_pairs.sort(
                key=lambda pair: -1 if pair.pair_id == first_pair_id else skip_order.get(pair.pair_id, 0)
            )
            answer_pair = ordered_pairs[0]
            pair_sides = [answer_pair.first, answer_pair.second]
            if is_swapped(self.store.seed, rater, answer_pair.pair_id):
                pair_sides.reverse()
            shown_pair = {
                "pair": answer_pair.pair_id,
                "question": replace_lone_surrogates(answer_pair.question),
                "left": replace_lone_surrogates(pair_sides[0]),
                "right": replace_lone_surrogates(pair_sides[1]),
            }
        return {"rater": rater, "done": len(rated), "total": len(answer_pairs), "shown": shown_pair}


async def _add_security_headers(http_request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(http_request)
    response.headers.update(SECURITY_HEADERS)
    return response


def _serve_file(file_name: str) -> Any:
    async def respond(http_request: Request) -> Response:
        return FileResponse(TEMPLATES / file_name)

    return respond


async def _read_body(http_request: Request) -> dict[str, Any]:
    """Read a small JSON object; an empty one where the body is anything else, or does not come in time."""
    body_length = http_request.headers.get("content-length", "")
    is_json = http_request.headers.get("content-type") == "application/json"
    if not is_json or not body_length.isdecimal() or int(body_length) > LARGEST_REQUEST:
        return {}
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            request_body = await http_request.json()
    except (ValueError, RecursionError, TimeoutError):
        return {}
    return request_body if isinstance(request_body, dict) else {}


def _refuse(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=status)
