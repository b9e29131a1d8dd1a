"""The page on which people compare answers: blind, on loopback, behind a password."""

import hmac
import json
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

from gradfiltering.errors import UserError
from gradfiltering.judging.ratings import Pair, RatingStore, Selection, seen_order, swapped

PAGE = Path(__file__).parent / "templates" / "rating.html"
LARGEST_REQUEST = 10_000
LONGEST_NAME = 60
WRONG_PASSWORD_SECONDS = 0.5
HEADERS = {
    # Nothing but the page's own script and style runs, whatever an answer holds.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
FILES = {"/": ("rating.html", "text/html"), "/page.js": ("rating.js", "text/javascript"),
         "/page.css": ("rating.css", "text/css")}  # fmt: skip


class RatingSite:
    """What the page shows and keeps.

    Args:
        pairs: to be rated.
        store: of the ratings.
        password: that raters give; None lets everybody in.
    """

    def __init__(self, pairs: Sequence[Pair], store: RatingStore, password: str | None):
        self.pairs = {pair.name: pair for pair in pairs}
        self.store = store
        self.password = password
        self._sessions: dict[str, str] = {}

    def log_in(self, rater: str, password: str) -> str | None:
        """A session for this rater, None when the password is wrong or the name is none."""
        rater = rater.strip()
        if not rater or len(rater) > LONGEST_NAME or not rater.isprintable():
            return None
        if self.password is not None and not hmac.compare_digest(_bytes(password), _bytes(self.password)):
            time.sleep(WRONG_PASSWORD_SECONDS)  # guessing takes its time
            return None
        session = secrets.token_urlsafe(24)
        self._sessions[session] = rater
        return session

    def rater(self, session: str) -> str | None:
        """Whose session it is."""
        return self._sessions.get(session)

    def state(self, rater: str) -> dict[str, Any]:
        """How far this rater is, and the next pair."""
        done = self.store.by_rater(list(self.pairs.values())).get(rater, {})
        left = [pair for pair in seen_order(self.store.seed, rater, list(self.pairs.values())) if pair.name not in done]
        shown = None
        if left:
            pair = left[0]
            sides = [pair.first, pair.second]
            if swapped(self.store.seed, rater, pair.name):
                sides.reverse()
            shown = {"pair": pair.name, "question": pair.question, "left": sides[0], "right": sides[1]}
        return {"rater": rater, "done": len(done), "total": len(self.pairs), "shown": shown}

    def rate(self, rater: str, pair: str, choice: str) -> bool:
        """Keeps a rating; False when there is no such pair or choice."""
        known = next((one for one in get_args(Selection) if one == choice), None)
        if pair not in self.pairs or known is None:
            return False
        self.store.rate(pair, rater, known)
        return True


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@contextmanager
def serving(site: RatingSite, host: str, port: int) -> Iterator[str]:
    """Serves the page while the block runs; yields its address."""
    try:
        server = ThreadingHTTPServer((host, port), type("Handler", (_Handler,), {"site": site}))
    except OSError as error:
        raise UserError(f"judge.host={host}, judge.port={port}: cannot serve there ({error}); port 0 is any") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    site: RatingSite

    def do_GET(self) -> None:
        if self.path in FILES:
            name, kind = FILES[self.path]
            self._send(200, (PAGE.parent / name).read_bytes(), kind)
        elif self.path == "/api/state" and (rater := self._rater()) is not None:
            self._json(200, self.site.state(rater))
        else:
            self._json(404 if self.path != "/api/state" else 401, {"error": "log in"})

    def do_POST(self) -> None:
        body = self._body()
        # A JSON body cannot be sent from another site without its consent, and the cookie is not sent along either.
        if body is None or self.headers.get("Content-Type") != "application/json":
            self._json(400, {"error": "not understood"})
        elif self.path == "/api/login":
            session = self.site.log_in(str(body.get("rater", "")), str(body.get("password", "")))
            if session is None:
                self._json(403, {"error": "wrong password, or no name"})
            else:
                cookie = f"session={session}; HttpOnly; SameSite=Strict; Path=/"
                self._json(200, {"ok": True}, {"Set-Cookie": cookie})
        elif (rater := self._rater()) is None:
            self._json(401, {"error": "log in"})
        elif self.path == "/api/rate" and self.site.rate(rater, str(body.get("pair")), str(body.get("choice"))):
            self._json(200, self.site.state(rater))
        else:
            self._json(400, {"error": "not understood"})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the page is not the run's output."""

    def _rater(self) -> str | None:
        cookie = SimpleCookie(self.headers.get("Cookie", ""))
        return self.site.rater(cookie["session"].value) if "session" in cookie else None

    def _body(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_REQUEST:
            return None
        try:
            found = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers)

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        all_ = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content)), **HEADERS}
        for name, value in {**all_, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
