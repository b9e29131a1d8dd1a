"""People as judge: the page, the file, sheets, and agreement between raters."""

import asyncio
import csv
import json
import sqlite3
import threading
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from gradfiltering.errors import UserError
from gradfiltering.judging.base import PairJudge, Question, Reply
from gradfiltering.judging.human_judge import HumanJudge, PageSettings, _make_pair
from gradfiltering.judging.page_server import serve
from gradfiltering.judging.pair_judging import judge_pairs
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.rating_page import RatingPage
from gradfiltering.judging.ratings import (
    AnswerPair,
    RatingStore,
    import_sheet,
    is_swapped,
    majority_label,
    order_for_rater,
    write_sheet,
)
from gradfiltering.judging.replay_judge import load_replay_judges
from gradfiltering.judging.responses import Response, write_responses
from gradfiltering.judging.verdict_summary import summarize_verdicts
from gradfiltering.judging.verdicts import write_verdicts
from gradfiltering.statistics.agreement import cohen_kappa, fleiss_kappa
from tests.judging.browser import CHROMIUM, drive
from tests.support.command import run_command

EVIL = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"><b>bold</b> & \"quoted\""
PAIRS = [AnswerPair("s", str(n), f"Question {n}? {EVIL}", f"first {n} {EVIL}", f"second {n}\nline") for n in range(10)]


@pytest.fixture
def cache(tmp_path):
    opened = RatingStore(tmp_path / "ratings.sqlite", seed=3)
    yield opened
    opened.close()


class Client:
    """A rater without a browser."""

    def __init__(self, url):
        self.url, self.cookie, self.token = url, "", ""

    def call(self, path, body=None, kind="application/json"):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": kind, "Cookie": self.cookie, "X-CSRF-Token": self.token}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                self.cookie = (reply.headers.get("Set-Cookie") or self.cookie).split(";")[0]
                return reply.status, reply.read(), reply.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    def log_in(self, rater, password=""):
        status = self.call("api/login", {"rater": rater, "password": password})[0]
        if status == 200:
            self.token = json.loads(self.call("api/state")[1])["csrf_token"]
        return status


def prefer_first(client):
    """Rates everything: the answer that begins with "first" wins."""
    _, content, _ = client.call("api/state")
    while (shown := json.loads(content)["shown"]) is not None:
        choice = "left" if shown["left"].startswith("first") else "right"
        _, content, _ = client.call("api/rate", {"pair": shown["pair"], "choice": choice})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_two_raters_in_a_browser_lose_nothing_and_see_answers_as_text(tmp_path, cache):
    chosen: dict[str, dict[str, str]] = {"ann": {}, "bob": {}}

    async def script(page, rater):
        await page.send("Page.enable")
        await page.until("!document.getElementById('login-page').hidden")
        await page.fill("#rater", rater)
        await page.fill("#password", "pass")
        await page.evaluate("document.querySelector('#login button').click()")
        for count in range(10):
            await page.until(f"document.getElementById('bar').value === {count} && shown !== null")
            await page.evaluate("document.getElementById('instructions').close()")
            texts = await page.evaluate("['question','left','right'].map(i => document.getElementById(i).textContent)")
            pair = next(one for one in PAIRS if one.question == texts[0])
            assert sorted(texts[1:]) == sorted([pair.first, pair.second]), "an answer is not shown as it is"
            inside = "document.querySelectorAll('pre *').length + '|' + document.title"
            assert await page.evaluate(inside) == "0|Which answer is better?", "an answer became markup"
            choice = ("left", "tie", "right")[count % 3]
            side = {"left": texts[1], "right": texts[2], "tie": "tie"}[choice]
            chosen[rater][pair.pair_id] = {pair.first: "first", pair.second: "second", "tie": "tie"}[side]
            if count % 2:
                await page.press({"left": "1", "tie": "2", "right": "3"}[choice])
            else:
                await page.evaluate(f"document.querySelector('[data-choice={choice}]').click()")
            await page.until(f"document.getElementById('bar').value === {count + 1}")
            if count in (3, 7):
                await page.send("Page.reload")
                await page.until("document.readyState === 'complete' && typeof shown !== 'undefined' && shown !== null")
        await page.until("!document.getElementById('done').hidden")

    with serve(RatingPage(PAIRS, cache, "pass").application, "127.0.0.1", 0) as url:
        for rater in chosen:
            asyncio.run(drive(tmp_path / rater, url, lambda page, rater=rater: script(page, rater)))
    assert cache.labels_by_rater(PAIRS) == chosen
    assert sum(len(said) for said in chosen.values()) == 20


def test_sides_and_order_are_drawn_per_rater_and_stay(cache):
    names = [pair.pair_id for pair in PAIRS]
    for rater in ("ann", "bob"):
        assert order_for_rater(3, rater, PAIRS) == order_for_rater(3, rater, PAIRS[::-1])
    assert order_for_rater(3, "ann", PAIRS) != order_for_rater(3, "bob", PAIRS) != PAIRS
    sides = [is_swapped(3, f"rater {n}", name) for n in range(100) for name in names]
    assert 0.45 < sum(sides) / len(sides) < 0.55


def test_a_rating_is_on_the_disk_before_the_next_pair_is_shown_and_a_restart_goes_on(cache):
    with serve(RatingPage(PAIRS, cache, None).application, "127.0.0.1", 0) as url:
        client = Client(url)
        assert client.log_in("ann") == 200
        for count in range(4):
            state = json.loads(client.call("api/state")[1])
            assert (state["done"], state["total"]) == (count, 10)
            reply = client.call("api/rate", {"pair": state["shown"]["pair"], "choice": "tie"})
            with sqlite3.connect(cache.path) as other:  # what another process sees now
                assert other.execute("SELECT count(*) FROM ratings").fetchone() == (count + 1,)
            assert json.loads(reply[1])["done"] == count + 1
            client.call("api/rate", {"pair": state["shown"]["pair"], "choice": "left"})  # a second click
    assert list(cache.labels_by_rater(PAIRS)["ann"].values()) == ["tie"] * 4
    with serve(RatingPage(PAIRS, cache, None).application, "127.0.0.1", 0) as url:
        client = Client(url)
        assert client.call("api/state")[0] == 401
        client.log_in("ann")
        assert json.loads(client.call("api/state")[1])["done"] == 4


def test_nobody_gets_in_without_the_password_and_nothing_odd_is_kept(cache, monkeypatch):
    monkeypatch.setattr("gradfiltering.judging.rating_page.WRONG_PASSWORD_SECONDS", 0)
    with serve(RatingPage(PAIRS, cache, "pass").application, "127.0.0.1", 0) as url:
        client = Client(url)
        assert client.log_in("ann", "wrong") == client.log_in("ann", "\ud800") == client.log_in(" ", "pass") == 403
        assert client.call("api/state")[0] == client.call("api/rate", {"pair": "x", "choice": "tie"})[0] == 401
        assert client.log_in("ann", "pass") == 200
        name = PAIRS[0].pair_id
        for body in ({"pair": "x", "choice": "tie"}, {"pair": name, "choice": "both"}, [], {}):
            assert client.call("api/rate", body)[0] == 400
        assert client.call("api/rate", {"pair": name, "choice": "tie"}, kind="text/plain")[0] == 400
        for token in ("", "guess", "ü"):  # another site may cause a request, but cannot read the token
            stranger = Client(url)
            stranger.cookie, stranger.token = client.cookie, token.encode().decode("latin-1")
            assert stranger.call("api/rate", {"pair": name, "choice": "tie"})[0] == 403
        client_without_session = Client(url)
        client_without_session.cookie = "session=forged.signature"
        assert client_without_session.call("api/state")[0] == 401
        assert client.call("../../etc/passwd")[0] == 404
        status, _, headers = client.call("")
        assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
        assert not any(pair.first in client.call("")[1].decode() for pair in PAIRS), "answers come as data only"
    assert cache.labels_by_rater(PAIRS) == {}


def human(tmp_path, **options):
    page = PageSettings("127.0.0.1", 0, [], password_variable=None, open_to_all=True)
    given = dict(
        ratings=str(tmp_path / "r.sqlite"),
        raters=2,
        page=page,
        sheets=[],
        export=[],
        export_folder=str(tmp_path),
        seed=3,
    )
    return HumanJudge(**{**given, **options})


PROMPTS = [Prompt("s", str(n), f"Q{n}", "", None) for n in range(4)]
RESPONSES = {
    "candidate": [Response("s", str(n), "p", f"first {n}", 1, 1, "eos", False) for n in range(4)],
    "full": [Response("s", str(n), "p", f"second {n}", 1, 1, "eos", False) for n in range(4)],
}


def test_a_run_waits_for_its_raters_and_writes_the_same_verdicts_as_any_judge(tmp_path, capsys, monkeypatch):
    addresses, ready = [], threading.Event()
    original = serve

    def watched(*arguments):
        context = original(*arguments)

        class Watched:
            def __enter__(self):
                addresses.append(context.__enter__())
                ready.set()
                return addresses[-1]

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Watched()

    monkeypatch.setattr("gradfiltering.judging.human_judge.serve", watched)
    verdicts = []
    run = threading.Thread(
        target=lambda: verdicts.extend(judge_pairs(human(tmp_path), PROMPTS, RESPONSES, "candidate", 1)), daemon=True
    )
    run.start()
    assert ready.wait(30)
    for rater in ("ann", "bob"):
        client = Client(addresses[0])
        client.log_in(rater)
        prefer_first(client)
    run.join(30)
    assert [one.verdict for one in verdicts] == ["win"] * 4 and verdicts[0].judge == "human"
    assert json.loads(verdicts[0].reply) == {"ann": "first", "bob": "first"}
    # A further run has nothing to wait for.
    assert judge_pairs(human(tmp_path), PROMPTS, RESPONSES, "candidate", 1) == verdicts
    # How far both agree stands in the summary.
    (found,) = summarize_verdicts(verdicts, PROMPTS, RESPONSES, {}, 200, 0.95, 0)["judge"].values()
    assert [(one["raters"], one["items"], one["share"]) for one in found["agreement"]["raters"]] == [
        (("ann", "bob"), 4, 1.0)
    ]
    write_verdicts(tmp_path / "verdicts.jsonl", verdicts)
    assert run_command("judge", "rescore", tmp_path / "verdicts.jsonl") == 0
    with pytest.raises(UserError, match="several raters in place of repeats"):
        judge_pairs(human(tmp_path), PROMPTS, RESPONSES, "candidate", 2)


def test_sheets_go_out_blind_and_come_back(tmp_path):
    judge = human(tmp_path, export=["ann", "bob"])
    assert {one.verdict for one in judge_pairs(judge, PROMPTS, RESPONSES, "candidate", 1)} == {"unparsed"}
    for rater in ("ann", "bob"):
        path = tmp_path / f"ratings_{rater}.csv"
        assert "candidate" not in path.read_text() and "full" not in path.read_text()
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            row["choice"] = "left" if row["left"].startswith("first") else " Right "
        rows[0]["choice"] = "" if rater == "bob" else rows[0]["choice"]
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    sheets = [str(tmp_path / f"ratings_{rater}.csv") for rater in ("ann", "bob")]
    # Another seed: the sheet itself says what stood on the left.
    judge = human(tmp_path, sheets=sheets, raters=1, seed=99)
    assert [one.verdict for one in judge_pairs(judge, PROMPTS, RESPONSES, "candidate", 1)] == ["win"] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": "both"}, "row 1: choice is 'both'"),
        ({"pair": "x", "choice": "tie"}, "row 1: pair 'x' is not of this run"),
        ({"rater": " ", "choice": "tie"}, "or the rater is missing"),
        ({"left": "something else", "choice": "left"}, "the left answer is none of this pair's"),
    ],
)
def test_a_wrong_sheet_is_named_and_nothing_of_it_is_kept(tmp_path, cache, change, message):
    write_sheet(tmp_path / "a.csv", PAIRS, cache, "ann")
    with (tmp_path / "a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[0].update(change)
    rows[1]["choice"] = "tie"
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(UserError, match=message):
        import_sheet(tmp_path / "a.csv", PAIRS, cache)
    assert cache.labels_by_rater(PAIRS) == {}


class Stored(PairJudge):
    """A judge that prefers the candidate's answer but for the last prompt."""

    name = "stored"

    def compare_answers(self, prompt, first, second):
        scores = (9.0, 1.0) if first.startswith("first") != (prompt.prompt_id == "3") else (1.0, 9.0)
        return Reply("", scores)


def test_agreement_of_raters_and_with_another_judge_is_in_the_summary(tmp_path, cache):
    pairs = [_make_pair(Question(one, f"first {one.prompt_id}", f"second {one.prompt_id}", 0, 0)) for one in PROMPTS]
    said = {"ann": ["first", "first", "second", "tie"], "bob": ["first", "tie", "second", "tie"],
            "cy": ["first", "first", "first", "second"]}  # fmt: skip
    ratings = RatingStore(tmp_path / "r.sqlite", seed=3)
    ratings.add_all(
        [(p.pair_id, rater, label) for rater, labels in said.items() for p, label in zip(pairs, labels, strict=True)]
    )
    ratings.close()
    verdicts = judge_pairs(human(tmp_path, raters=3), PROMPTS, RESPONSES, "candidate", 1)
    assert [one.verdict for one in verdicts] == ["win", "win", "loss", "tie"]
    # The other judge's verdicts on the same answers are found in its run folder, and only those.
    other = tmp_path / "other"
    write_verdicts(other / "verdicts.jsonl", judge_pairs(Stored(), PROMPTS, RESPONSES, "candidate", 1))
    for model, responses in RESPONSES.items():
        write_responses(other / "responses" / f"{model}.jsonl", responses)
    changed = {**RESPONSES, "candidate": [replace(one, response="x" + one.response) for one in RESPONSES["candidate"]]}
    for responses, known in ((RESPONSES, True), (changed, False)):
        others = load_replay_judges([str(other / "verdicts.jsonl")])
        found = summarize_verdicts(verdicts, PROMPTS, responses, others, 300, 0.95, 0)["judge"]["full"]["agreement"]
        groups = {one["raters"]: one for one in found["raters"]}
        assert list(groups) == [("ann", "bob"), ("ann", "cy"), ("bob", "cy"), ("ann", "bob", "cy")]
        assert groups["ann", "bob"]["kappa"] == pytest.approx(cohen_kappa(said["ann"], said["bob"]), abs=1e-12)
        rows = list(zip(*said.values(), strict=True))
        assert groups["ann", "bob", "cy"]["kappa"] == pytest.approx(fleiss_kappa(rows), abs=1e-12)
        if known:
            (one,) = found["judges"]
            assert one["raters"] == ("human", str(other / "verdicts.jsonl")) and not found["not_found"]
            labels = ["win", "win", "loss", "tie"], ["win", "win", "win", "loss"]
            assert (one["items"], one["share"]) == (4, 0.5)
            assert one["kappa"] == pytest.approx(cohen_kappa(*labels), abs=1e-12)
            assert one["kappa_low"] <= one["kappa"] <= one["kappa_high"]
        else:
            assert found["judges"] == [] and found["not_found"] == [str(other / "verdicts.jsonl")]


def test_majority():
    assert majority_label(["first", "first", "tie"]) == "first" and majority_label(["second"]) == "second"
    assert majority_label(["first", "second"]) == majority_label(["tie", "tie", "first"]) == majority_label([]) == "tie"


def test_agreement_on_the_command_line(tmp_path, cache, capsys, make_verdict):
    win, loss = ((9.0, 1.0), (1.0, 9.0)), ((1.0, 9.0), (9.0, 1.0))
    for name, last in (("a", win), ("b", loss)):
        scores = [win, loss, last]
        write_verdicts(tmp_path / f"{name}.jsonl", [make_verdict(*s, prompt_id=str(n)) for n, s in enumerate(scores)])
    files = [f"{name}={tmp_path / name}.jsonl" for name in "ab"]
    assert run_command("judge", "agreement", *files, "--json", "--resamples", 200) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["items"], found["share"]) == (3, pytest.approx(2 / 3)) and found["kappa"] == pytest.approx(0.4)
    cache.add_all([(pair.pair_id, rater, "tie") for pair in PAIRS for rater in ("ann", "bob", "cy")])
    assert run_command("judge", "agreement", f"people={cache.path}", "--json") == 0
    assert [one["kappa"] for one in json.loads(capsys.readouterr().out)] == [None] * 4
    assert run_command("judge", "agreement", files[0]) == 1
