"""Who gets an answer from the rating page, for how long, and sheets that no spreadsheet runs."""

import csv
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradfiltering.errors import UserError
from gradfiltering.judging import page_server, rating_page
from gradfiltering.judging.guess_limit import GuessLimit
from gradfiltering.judging.human_judge import HumanJudge, PageSettings
from gradfiltering.judging.page_server import HostCheck, open_socket, serve
from gradfiltering.judging.rating_page import RatingPage
from gradfiltering.judging.ratings import (
    FORMULA_STARTS,
    AnswerPair,
    RatingStore,
    escape_formula,
    import_sheet,
    is_swapped,
    restore_formula,
    write_sheet,
)

PAIRS = [AnswerPair("s", str(number), f"Question {number}?", "one", "two") for number in range(3)]
HANG_SECONDS = 60


class Clock:
    """Time that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def store(tmp_path):
    opened = RatingStore(tmp_path / "ratings.sqlite", seed=3)
    yield opened
    opened.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def served(store, clock, monkeypatch):
    monkeypatch.setattr(rating_page, "WRONG_PASSWORD_SECONDS", 0)
    with serve(RatingPage(PAIRS, store, "pass", clock=clock).application, "127.0.0.1", 0) as url:
        yield urlsplit(url)


class Rater:
    """A client that sends what headers it likes."""

    def __init__(self, served):
        self.served, self.cookie, self.token = served, "", ""

    def call(self, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.served.hostname, self.served.port, timeout=HANG_SECONDS)
        usual_headers = {
            "Cookie": self.cookie,
            "X-CSRF-Token": self.token,
            "Content-Type": "application/json",
        }
        try:
            content = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, content, {**usual_headers, **headers})
            reply = connection.getresponse()
            self.cookie = (reply.headers.get("Set-Cookie") or self.cookie).split(";")[0]
            return reply.status, reply.read(), reply.headers
        finally:
            connection.close()

    def log_in(self, password="pass", **headers):
        status = self.call("/api/login", {"rater": "ann", "password": password}, **headers)[0]
        if status == 200:
            self.token = json.loads(self.call("/api/state")[1])["csrf_token"]
        return status


@pytest.mark.parametrize("path", ["/", "/page.js", "/api/state"])
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.", "10.0.0.1", "127.0.0.1:{port}x", "",
     "me@127.0.0.1:{port}", "127.0.0.1/@evil", "[::1", "127.1", "2130706433"],
)  # fmt: skip
def test_other_hosts_get_no_answer(served, host, path):
    status, content, _ = Rater(served).call(path, Host=host.format(port=served.port))
    assert status in (400, 421) and b"Which answer" not in content


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "[::1]:{port}", "127.0.0.1"])
def test_own_hosts_get_the_page(served, host):
    assert Rater(served).call("/", Host=host.format(port=served.port))[0] == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1", "http://localhost:{port}", "http://[", "",
     "http://127.0.0.1:{port}.evil.example"],
)  # fmt: skip
def test_requests_of_other_pages_are_refused(served, origin):
    rater = Rater(served)
    assert rater.log_in() == 200
    shown = json.loads(rater.call("/api/state")[1])["shown"]
    for path, body in (("/api/rate", {"pair": shown["pair"], "choice": "tie"}), ("/api/state", None)):
        assert rater.call(path, body, Origin=origin.format(port=served.port))[0] == 403
    assert Rater(served).log_in(Origin=origin.format(port=served.port)) == 403
    own = {"Origin": f"http://{served.netloc}"}
    assert rater.call("/api/rate", {"pair": shown["pair"], "choice": "tie"}, **own)[0] == 200


@pytest.mark.parametrize(
    ("served_host", "host_names", "host", "allowed"),
    [
        ("0.0.0.0", [], "192.168.1.7:7860", True),
        ("0.0.0.0", [], socket.gethostname(), True),
        ("0.0.0.0", [], "evil.example", False),
        ("0.0.0.0", ["rate.example.org"], "Rate.Example.org", True),
        ("127.0.0.1", ["rate.example.org"], "rate.example.org:443", True),
        ("127.0.0.1", ["rate.example.org"], "x.rate.example.org", False),
        ("127.0.0.1", [], "192.168.1.7", False),
        ("::1", [], "[::1]:80", True),
    ],
)
def test_pages_on_the_network_answer_to_addresses_and_named_hosts(served_host, host_names, host, allowed):
    assert HostCheck(None, served_host, host_names).is_own(host) is allowed


def test_guesses_are_limited_even_for_the_right_password(served, clock):
    rater = Rater(served)
    for number in range(rating_page.GUESSES_PER_ADDRESS):
        assert rater.log_in(f"guess {number}") == 403
    status, _, headers = rater.call("/api/login", {"rater": "ann", "password": "pass"})
    assert (status, headers["Retry-After"]) == (429, "300")
    assert rater.log_in(**{"X-Forwarded-For": "10.0.0.1"}) == 429, "an address that the client names is none"
    clock.now += rating_page.GUESS_SPAN_SECONDS
    assert rater.log_in() == 200


def test_guesses_at_the_same_time_count_before_they_are_answered(store, clock, monkeypatch):
    monkeypatch.setattr(rating_page, "WRONG_PASSWORD_SECONDS", 1.0)
    statuses = []
    with serve(RatingPage(PAIRS, store, "pass", clock=clock).application, "127.0.0.1", 0) as url:
        page = urlsplit(url)
        threads = [threading.Thread(target=lambda: statuses.append(Rater(page).log_in("wrong"))) for _ in range(25)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(statuses) == [403] * 10 + [429] * 15


def test_many_addresses_share_a_limit(clock):
    limit = GuessLimit(per_address=2, in_all=5, span_seconds=60, clock=clock)
    for address in ("a", "a", "b", "c"):
        limit.add_wrong_guess(address)
        clock.now += 1
    assert (limit.wait_seconds("a"), limit.wait_seconds("b"), limit.wait_seconds("new")) == (56, 0, 0)
    limit.add_wrong_guess("d")
    assert limit.wait_seconds("new") == 56
    clock.now += 56
    assert limit.wait_seconds("new") == limit.wait_seconds("a") == 0


def test_sessions_end_with_time_and_with_logging_out(served, clock):
    rater = Rater(served)
    assert rater.log_in() == 200 and rater.call("/api/state")[0] == 200
    clock.now += rating_page.SESSION_SECONDS - 1
    stolen = Rater(served)
    stolen.cookie, stolen.token = rater.cookie, rater.token
    assert stolen.call("/api/state")[0] == 200
    clock.now += 1
    assert stolen.call("/api/state")[0] == 401
    assert rater.log_in() == 200
    stolen.cookie, stolen.token = rater.cookie, rater.token
    assert Rater(served).call("/api/logout", {})[0] == 401
    assert rater.call("/api/logout", {}, **{"X-CSRF-Token": "guess"})[0] == 403
    assert rater.call("/api/logout", {})[0] == 200
    pair = {"pair": PAIRS[0].pair_id, "choice": "tie"}
    assert stolen.call("/api/state")[0] == stolen.call("/api/rate", pair)[0] == 401, (
        "the cookie itself is worth nothing"
    )


def test_the_oldest_of_too_many_sessions_ends(served, monkeypatch):
    monkeypatch.setattr(rating_page, "MOST_SESSIONS", 2)
    raters = [Rater(served) for _ in range(3)]
    assert [rater.log_in() for rater in raters] == [200] * 3
    assert [rater.call("/api/state")[0] for rater in raters] == [401, 200, 200]


HEAD = "POST /api/login HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: 50\r\n"
HALF_REQUESTS = {
    "nothing": "", "a letter": "G", "a line": "GET / HTTP/1.1\r\n", "half a header": "GET / HTTP/1.1\r\nHost: 127",
    "no body": HEAD + "\r\n", "half a body": HEAD + '\r\n{"rater": "ann"',
    "a second request": "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\nGET / HT",
}  # fmt: skip


def test_half_open_connections_hold_no_threads_and_no_end(store, monkeypatch):
    monkeypatch.setattr(page_server, "SHUTDOWN_SECONDS", 1)
    with serve(RatingPage(PAIRS, store, "pass").application, "127.0.0.1", 0) as url:
        page = urlsplit(url)
        assert Rater(page).log_in() == 200
        before = threading.active_count()
        sockets = []
        unanswered = [text for name, text in HALF_REQUESTS.items() if name != "a second request"]
        for number in range(100):
            half_request = unanswered[number % len(unanswered)]
            sockets.append(socket.create_connection((page.hostname, page.port)))
            sockets[-1].sendall(half_request.replace("{port}", str(page.port)).encode())
        for _ in range(3):
            assert Rater(page).call("/")[0] == 200 and Rater(page).log_in() == 200
        assert threading.active_count() <= before + 1, "one thread of the pool at most, none for each connection"
        started = time.monotonic()
    assert time.monotonic() - started < HANG_SECONDS, "open connections must not keep the page from ending"
    for open_socket_ in sockets:
        open_socket_.close()


@pytest.mark.parametrize("half_request", HALF_REQUESTS.values(), ids=list(HALF_REQUESTS))
def test_half_a_request_is_given_up(store, monkeypatch, half_request):
    monkeypatch.setattr(page_server, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(page_server, "KEEP_ALIVE_SECONDS", 1)
    monkeypatch.setattr(rating_page, "REQUEST_SECONDS", 0.3)
    with serve(RatingPage(PAIRS, store, "pass").application, "127.0.0.1", 0) as url:
        page = urlsplit(url)
        with socket.create_connection((page.hostname, page.port), timeout=HANG_SECONDS) as client:
            client.sendall(half_request.replace("{port}", str(page.port)).encode())
            received = iter(lambda: client.recv(65536), b"")  # ends when the server closes, else in a timeout
            replies = b"".join(received)
    complete_requests = half_request.count("\r\n\r\nGET")
    assert replies.count(b"HTTP/1.1 200") == complete_requests, "only a whole request is answered"


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("", 0, "host is empty"), (" ", 0, "host is empty"), ("127.0.0.1", -1, "port must be"),
        ("127.0.0.1", 65536, "port must be"), ("127.0.0.1", "80", "port must be"), ("127.0.0.1", True, "port must be"),
        ("no such host", 0, "cannot serve on host no such host"), ("192.0.2.1", 0, "cannot serve on host 192.0.2.1"),
        ("a" * 300, 0, "cannot serve on host a"), ("a..b", 0, r"cannot serve on host a\.\.b"),
    ],
)  # fmt: skip
def test_bad_hosts_and_ports_are_refused_before_training(tmp_path, host, port, message):
    with pytest.raises(UserError, match=message):
        human_judge(tmp_path, host, port).check_feasible([], 2, 9)


def human_judge(tmp_path, host="127.0.0.1", port=0, export=()):
    page = PageSettings(host, port, [], password_variable=None, open_to_all=True)
    return HumanJudge(str(tmp_path / "r"), 1, page, [], list(export), str(tmp_path), 0)


def test_a_port_that_is_taken_is_refused_before_training(tmp_path):
    with open_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="port 0 is any") as error:
            human_judge(tmp_path, port=port).check_feasible([], 2, 9)
        assert error.value.arguments == ("host", "port")
        human_judge(tmp_path, port=port, export=["ann"]).check_feasible([], 2, 9)  # serves no page


@pytest.mark.parametrize("rater", ["", " ", "a/b", "../a", "a\\b", "a\nb", "\ud83d"])
def test_a_raters_name_that_no_file_can_have_is_refused(tmp_path, rater):
    with pytest.raises(UserError, match="cannot be part of a file's name"):
        human_judge(tmp_path, export=[rater]).check_feasible([], 2, 9)


def test_half_a_surrogate_in_an_answer_is_shown(store):
    pairs = [AnswerPair("s", "0", "Q \ud83d?", "one \udc00", "two")]
    with serve(RatingPage(pairs, store, None).application, "127.0.0.1", 0) as url:
        rater = Rater(urlsplit(url))
        assert rater.log_in() == 200
        shown = json.loads(rater.call("/api/state")[1])["shown"]
        assert shown["question"] == "Q \ufffd?" and {shown["left"], shown["right"]} == {"one \ufffd", "two"}


FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=HYPERLINK(\"http://evil\",\"x\")", "'=1", "''=1", " =1",
    "=cmd|' /C calc'!A0", "＝1", "＋1", "－1", "＠x", "'", "''", "'text", "", "text", "- a list\n- of two", "'-",
    "=,\"\n",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_escaped_and_read_back(text):
    cell = escape_formula(text)
    assert not cell.startswith(FORMULA_STARTS) and restore_formula(cell) == text


@given(st.text(st.sampled_from("'=+-@\t\r\n a＝1"), max_size=6))
def test_any_text_is_read_back(text):
    assert restore_formula(escape_formula(text)) == text


@pytest.mark.parametrize("keeps_apostrophe", [True, False])
def test_sheets_hold_no_formula_and_come_back(tmp_path, store, keeps_apostrophe):
    answers = [text for text in FORMULAS if text.strip("' \r\n\t")]
    pairs = [AnswerPair("=s", f"@{n}", f"+{n}", text, f"other {n}") for n, text in enumerate(answers)]
    write_sheet(tmp_path / "a.csv", pairs, store, "=ann")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(pairs)
    for row in rows:
        assert not any(cell.startswith(FORMULA_STARTS) for cell in row.values())
        is_first_left = not is_swapped(3, "=ann", row["pair"])
        row["choice"] = "left" if is_first_left else "right"
        if not keeps_apostrophe:  # as a spreadsheet saves it that takes the apostrophe for its own mark of text
            row.update({name: cell.removeprefix("'") for name, cell in row.items() if cell.startswith("'=")})
    with (tmp_path / "b.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert import_sheet(tmp_path / "b.csv", pairs, store) == len(pairs)
    assert store.labels_by_rater(pairs) == {"=ann": {pair.pair_id: "first" for pair in pairs}}


def log_in_ann(served):
    rater = Rater(served)
    assert rater.log_in() == 200
    return rater, json.loads(rater.call("/api/state")[1])


def test_undo_takes_the_latest_rating_back_and_shows_its_pair(served, store):
    rater, state = log_in_ann(served)
    assert json.loads(rater.call("/api/undo", {})[1])["done"] == 0, "there is nothing to take back yet"
    rated_ids = []
    for _ in range(2):
        rated_ids.append(state["shown"]["pair"])
        state = json.loads(rater.call("/api/rate", {"pair": rated_ids[-1], "choice": "left"})[1])
    state = json.loads(rater.call("/api/undo", {})[1])
    assert (state["done"], state["shown"]["pair"]) == (1, rated_ids[1])
    assert list(store.labels_by_rater(PAIRS)["ann"]) == rated_ids[:1]
    rater.call("/api/rate", {"pair": rated_ids[1], "choice": "tie"})
    assert store.labels_by_rater(PAIRS)["ann"][rated_ids[1]] == "tie", "the new rating stands"


def test_skipped_pairs_come_last_in_the_order_of_skipping(served):
    rater, state = log_in_ann(served)
    skipped_ids = []
    for _ in range(2):
        skipped_ids.append(state["shown"]["pair"])
        state = json.loads(rater.call("/api/skip", {"pair": skipped_ids[-1]})[1])
    shown_ids = []
    while state["shown"] is not None:
        shown_ids.append(state["shown"]["pair"])
        state = json.loads(rater.call("/api/rate", {"pair": shown_ids[-1], "choice": "tie"})[1])
    assert shown_ids[1:] == skipped_ids and len(set(shown_ids)) == 3
    assert rater.call("/api/skip", {"pair": "x"})[0] == 400


@pytest.mark.parametrize("path", ["/api/skip", "/api/undo"])
def test_changes_need_a_session_and_its_token(served, path):
    body = {"pair": PAIRS[0].pair_id}
    assert Rater(served).call(path, body)[0] == 401
    rater, _ = log_in_ann(served)
    assert rater.call(path, body, **{"X-CSRF-Token": "guess"})[0] == 403


def test_two_bad_answers_are_a_tie_and_are_counted(served, store):
    rater, state = log_in_ann(served)
    rater.call("/api/rate", {"pair": state["shown"]["pair"], "choice": "bad"})
    assert list(store.labels_by_rater(PAIRS)["ann"].values()) == ["tie"]
    assert store.count_both_bad(PAIRS) == 1 and store.count_both_bad([]) == 0


def test_a_sheet_may_call_both_answers_bad(tmp_path, store):
    write_sheet(tmp_path / "a.csv", PAIRS, store, "ann")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows([row | {"choice": "bad"} for row in rows])
    assert import_sheet(tmp_path / "a.csv", PAIRS, store) == store.count_both_bad(PAIRS) == 3


def test_the_organiser_sees_progress_and_agreement_and_raters_do_not(store):
    page = RatingPage(PAIRS, store, "pass")
    labels = {"ann": ["first", "second", "tie"], "<b>bob</b>": ["first", "second", "second"]}
    store.add_all([(p.pair_id, n, label) for n, said in labels.items() for p, label in zip(PAIRS, said, strict=True)])
    with serve(page.application, "127.0.0.1", 0) as url:
        client = Rater(urlsplit(url))
        assert client.call("/organiser/guess")[0] == 404
        status, content, _ = client.call(f"/{page.organiser_path}")
    text = content.decode()
    assert status == 200 and "<td>ann</td><td>3 of 3</td>" in text and "<td>3</td><td>67%</td>" in text
    assert "&lt;b&gt;bob" in text and "<b>bob" not in text
