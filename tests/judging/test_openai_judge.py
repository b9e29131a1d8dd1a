"""A chat model as judge, over real HTTP on loopback."""

import sqlite3
import subprocess
import sys
import time
import traceback
from contextlib import closing

import pytest

from gradfiltering.errors import UserError
from gradfiltering.judging.chat_endpoint import RetrySettings
from gradfiltering.judging.judge_prompt import JudgePrompt
from gradfiltering.judging.reply_parser import parse_scores
from gradfiltering.judging.spending import LimitReached, Prices, estimate_tokens
from tests.judging.chat import ROOT, completion, faulty_server, make_judge, questions, scripted_server

KEY = "sk-verysecret-0123456789abcdef"
GOOD = (200, {}, completion("8 7\nGood."))
FAULTS = {"latency": 0.02, "faults": 0.3, "unreadable": 0.1, "client_timeout": 1.0}
SIZES = [pytest.param(100, id="small"), pytest.param(1030, id="published size", marks=pytest.mark.slow)]


def stored(path):
    """(prompt hash, text) of all replies kept."""
    with closing(sqlite3.connect(path, timeout=60)) as file:
        if not file.execute("SELECT 1 FROM sqlite_master WHERE name = 'replies'").fetchone():
            return []  # it is just being made
        return file.execute("SELECT prompt_hash, text FROM replies").fetchall()


@pytest.mark.parametrize("prompts", SIZES)
def test_with_faults_in_a_third_of_calls_every_question_ends_judged_or_unparsed(tmp_path, prompts):
    with faulty_server(**FAULTS) as (url, seen):
        judge = make_judge(url, tmp_path / "r.sqlite", timeout=FAULTS["client_timeout"])
        replies = judge.answer_questions(questions(prompts))
        log = seen()["log"]
        assert {kind for _, kind in log} >= {"429", "500", "timeout", "cut", "garbage", "slow", "good"}
    assert len(replies) == 2 * prompts
    unparsed = [reply for reply in replies if reply.scores is None]
    assert all(reply.text == "I like both answers." for reply in unparsed), "a fault was left over"
    # Three askings, a tenth unreadable each time.
    assert len(unparsed) <= 2 * prompts * 0.02
    assert all(reply.scores == parse_scores(reply.text) for reply in replies)


@pytest.mark.parametrize("prompts", SIZES)
def test_killed_half_way_and_rerun_no_stored_reply_is_asked_for_again(tmp_path, prompts):
    file = tmp_path / "r.sqlite"
    with faulty_server(**{**FAULTS, "latency": 0.1}) as (url, seen):
        command = [sys.executable, "-m", "tests.judging.chat", url, str(file), str(prompts)]
        client = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        # The file says what is kept: a request in the server's log may be far from that yet.
        while len(stored(file)) < prompts // 2:
            assert client.poll() is None, "the client ended early"
            time.sleep(0.05)
        client.kill()  # SIGKILL: nothing can be put in order
        client.wait()
        kept = {digest for digest, _ in stored(file)}
        before = len(seen()["log"])
        assert 0.1 * prompts < len(kept) < 2 * prompts
        replies = make_judge(url, file, timeout=FAULTS["client_timeout"]).answer_questions(questions(prompts))
        again = [digest for digest, _ in seen()["log"][before:]]
        assert not kept & set(again), "a stored reply was asked for again"
        assert len(replies) == 2 * prompts and all(reply.text for reply in replies)
        finished = len(seen()["log"])
        assert make_judge(url, file).answer_questions(questions(prompts)) == replies
        assert len(seen()["log"]) == finished, "a third run sent something"


def test_slots_are_filled_but_never_overfilled(tmp_path):
    with faulty_server(latency=0.05) as (url, seen):
        make_judge(url, tmp_path / "r.sqlite", concurrency=7).answer_questions(questions(40))
        assert seen()["most_under_way"] == 7


def test_what_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("TEAM", "blue")
    options = dict(token_limit_name="max_completion_tokens", request={"seed": 5}, key_variable="MY_KEY")
    with scripted_server((200, {}, completion('{"score_1": 8, "score_2": 7}'))) as (url, got):
        prompt = JudgePrompt("corrected", "json", None)
        headers = {"X-T": "TEAM"}
        judge = make_judge(url, tmp_path / "r", protocol=prompt, headers=headers, temperature=None, **options)
        (reply,) = judge.answer_questions(questions(1)[:1])
    assert reply.scores == (8, 7)
    body, headers = got[0]["body"], got[0]["headers"]
    assert headers["authorization"] == f"Bearer {KEY}" and headers["x-t"] == "blue"
    assert (body["seed"], body["max_completion_tokens"], body["model"]) == (5, 64, "test")
    assert body["response_format"] == {"type": "json_object"} and "temperature" not in body
    assert [turn["role"] for turn in body["messages"]] == ["system", "user"]


def test_an_unreadable_reply_is_asked_again_up_to_the_limit_and_then_unparsed(tmp_path):
    with scripted_server((200, {}, completion("I like both."))) as (url, got):
        replies = make_judge(url, tmp_path / "r", concurrency=1).answer_questions(questions(1)[:1])
        assert [len(one["body"]["messages"]) for one in got] == [2, 4, 6]
        assert replies[0].scores is None and replies[0].text == "I like both."
        make_judge(url, tmp_path / "r").answer_questions(questions(1)[:1])
        assert len(got) == 3, "an unparsed question is closed once its askings are spent"
    with scripted_server((200, {}, completion(None)), (200, {}, completion("9 3"))) as (url, got):
        (reply,) = make_judge(url, tmp_path / "s", concurrency=1).answer_questions(questions(1)[:1])
        assert reply.scores == (9, 3) and got[1]["body"]["messages"][2]["content"] == "(empty)"


def test_a_question_that_only_fails_is_listed_and_asked_for_by_the_next_run(tmp_path, capsys):
    bad = (500, {}, b"oops")
    with scripted_server(GOOD, bad) as (url, _):
        judge = make_judge(url, tmp_path / "r", concurrency=1, retries=RetrySettings(2, 0.0, 0.0))
        first, second = judge.answer_questions(questions(1))
    assert first.scores == (8, 7) and second.scores is None
    assert second.text.startswith("not judged: no reply in 2 tries, the last time: status 500")
    assert "1 questions without a reply" in " ".join(capsys.readouterr().out.split())
    assert len(stored(tmp_path / "r")) == 1, "a failure must not be kept as a reply"


def test_retry_after_is_honoured_by_all_requests(tmp_path):
    with scripted_server((429, {"retry-after": "0.5"}, {"error": {"message": "slow down"}}), GOOD) as (url, got):
        started = time.monotonic()
        (reply,) = make_judge(url, tmp_path / "r", concurrency=1).answer_questions(questions(1)[:1])
        assert reply.scores == (8, 7) and len(got) == 2 and time.monotonic() - started >= 0.5
    with (
        scripted_server((429, {"retry-after": "9999"}, {})) as (url, _),
        pytest.raises(UserError, match=r"asks to wait 9,999 s.*run again later"),
    ):
        make_judge(url, tmp_path / "s").answer_questions(questions(1))


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, r"status 401: .*\*\*\*"),
        (404, {"error": {"message": "no such model"}}, "status 404.*no such model.*Check the model"),
        (429, {"error": {"message": "x", "code": "insufficient_quota"}}, "insufficient_quota"),
        (400, {"error": {"message": "unknown field"}}, "refuses the first request: status 400.*further fields"),
    ],
)
def test_what_no_further_request_can_mend_stops_the_run_at_once(tmp_path, monkeypatch, status, body, message):
    monkeypatch.setenv("MY_KEY", KEY)
    with scripted_server((status, {}, body)) as (url, got), pytest.raises(UserError, match=message) as error:
        make_judge(url, tmp_path / "r", key_variable="MY_KEY", concurrency=2).answer_questions(questions(50))
    assert len(got) <= 4
    assert KEY not in "".join(traceback.format_exception(error.value)), "the key stands in the error or its causes"


def test_an_unreachable_server_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no reply from http://127.0.0.1:9/v1 in 2 tries.*connection failed"):
        make_judge("http://127.0.0.1:9/v1", tmp_path / "r", retries=RetrySettings(2, 0.0, 0.0)).answer_questions(
            questions(1)
        )


PRICES = Prices(input_million=10.0, output_million=100.0)


def test_estimates_above_the_budget_are_refused_before_anything_is_sent(tmp_path, capsys):
    with scripted_server(GOOD) as (url, got):
        with pytest.raises(UserError, match=r"judging takes 20 requests .*, max_requests is 19"):
            make_judge(url, tmp_path / "r", max_requests=19).answer_questions(questions(10))
        with pytest.raises(UserError, match=r"judging may cost 0\.\d\d \(0 questions .*\), max_cost is 0.05"):
            make_judge(url, tmp_path / "r", max_cost=0.05, prices=PRICES).answer_questions(questions(10))
        assert not got
        shown = " ".join(capsys.readouterr().out.split())
        assert "20 requests, about" in shown and "in money (0 questions answered by stored replies)" in shown
        assert not stored(tmp_path / "r")
    with pytest.raises(UserError, match=r"max_cost is 1.0, which needs prices"):
        make_judge("http://x/v1", tmp_path / "r", max_cost=1)


def test_the_budget_is_looked_at_before_any_training_by_the_longest_answers_there_may_be(tmp_path, capsys):
    asked = questions(10)
    prompts = [question.prompt for question in asked[::2]]

    def judge(**options):
        return make_judge("http://x/v1", tmp_path / "none", prices=PRICES, **options)

    with pytest.raises(UserError, match=r"judging takes 40 requests \(an upper bound: .*\), max_requests is 39"):
        judge(max_requests=39).check_feasible(prompts, 4, 100)
    empty = [type(one)(one.prompt, "", "", 0, 0) for one in asked[::2]]
    tokens = sum(estimate_tokens(judge().conversation.start(one).messages) for one in empty) + 10 * 2 * 100
    cost = 4 * (tokens * 10 + 10 * 64 * 100) / 1e6
    judge(max_requests=40, max_cost=cost * 1.001).check_feasible(prompts, 4, 100)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"40 requests, about {4 * tokens:,} tokens in" in shown and "two answers of 100 tokens" in shown
    # The same limits do not do for answers that may be longer, whatever replies are stored.
    with pytest.raises(UserError, match=rf"judging may cost {cost * 0.999:.2f} \(an upper bound: two answers of 100"):
        judge(max_cost=cost * 0.999).check_feasible(prompts, 4, 100)
    with pytest.raises(UserError, match="shorter replies or answers"):
        judge(max_cost=cost * 1.001).check_feasible(prompts, 4, 101)
    assert not (tmp_path / "none").exists(), "nothing is asked or kept"


def test_what_is_asked_costs_no_more_than_was_said_before_training(tmp_path):
    """Answers of the longest kind, four bytes a token, cost what the upper bound said, and shorter ones less."""
    said = {}
    for length in (1, 100):
        asked = [type(one)(one.prompt, "word" * length, "more" * length, one.order, 0) for one in questions(5)]
        judge = make_judge("http://x/v1", tmp_path / "none", prices=PRICES)
        said[length] = sum(estimate_tokens(judge.conversation.start(one).messages) for one in asked)
        empty = sum(
            estimate_tokens(judge.conversation.start(type(one)(one.prompt, "", "", 0, 0)).messages) for one in asked
        )
    assert said[1] < said[100] <= empty + 10 * 2 * 100


def test_a_budget_that_runs_out_keeps_what_came_and_a_further_run_ends_the_work(tmp_path):
    unreadable, file = (200, {}, completion("Hm.")), tmp_path / "r"
    with scripted_server(*[unreadable] * 12, GOOD) as (url, got):
        with pytest.raises(LimitReached, match=r"max_requests=20 is spent.*further run asks for the rest only"):
            make_judge(url, file, max_requests=20, concurrency=4).answer_questions(questions(10))
        assert len(got) == 20 == len(stored(file))
        replies = make_judge(url, file, max_requests=20).answer_questions(questions(10))
        assert all(reply.scores for reply in replies if reply.text != "Hm.")


def test_money_is_counted_by_the_servers_own_counts(tmp_path):
    with scripted_server(GOOD) as (url, _):
        judge = make_judge(url, tmp_path / "r", max_cost=10.0, prices=PRICES)
        judge.answer_questions(questions(3))
    assert judge.spending.cost == pytest.approx(6 * (100 * 10 + 10 * 100) / 1e6, rel=1e-12)


def test_repeats_and_orders_are_questions_of_their_own(tmp_path):
    same = questions(1)[0]
    twins = [type(same)(same.prompt, "a", "a", order, repeat) for order in (0, 1) for repeat in (0, 1)]
    with scripted_server(GOOD) as (url, got):
        make_judge(url, tmp_path / "r").answer_questions(twins)
        assert len(got) == 4 == len(stored(tmp_path / "r"))


def test_secrets_reach_no_file_and_no_output(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_LOG", "debug")
    echo = (200, {}, completion(f"8 7\nYour key is {KEY}"))
    with scripted_server((500, {}, {"error": {"message": KEY}}), echo) as (url, _):
        judge = make_judge(url, tmp_path / "r", key_variable="MY_KEY", headers={"X-Key": "MY_KEY"})
        replies = judge.answer_questions(questions(2))
    assert all(reply.scores == (8, 7) and KEY not in reply.text for reply in replies)
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.iterdir())
    out, err = capfd.readouterr()
    assert KEY not in out + err and KEY not in repr(vars(judge)) + repr(judge.endpoint)


def test_a_missing_key_and_secrets_in_the_address_are_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="environment variable MY_KEY, which is not set"):
        make_judge("http://x/v1", tmp_path / "r", key_variable="MY_KEY").check_feasible([], 2, 9)
    for url in (f"https://me:{KEY}@host/v1", f"https://host/v1?key={KEY}"):
        with pytest.raises(UserError, match="holds a user, a password or a query") as error:
            make_judge(url, tmp_path / "r")
        assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request": {"model": "x"}}, "the request field model"),
        ({"request": {"max_tokens": 3}}, "the request field max_tokens"),
        ({"asks": 0}, "max_attempts must be a positive"),
        ({"concurrency": 0}, "concurrency must be a positive"),
        ({"max_requests": -1}, "max_requests must be a non-negative"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make_judge("http://x/v1", tmp_path / "r", **options)
    with pytest.raises(UserError, match="attempts must be a positive"):
        RetrySettings(0, 1.0, 2.0)


def test_a_file_that_cannot_hold_replies_is_named(tmp_path):
    (tmp_path / "r").write_text("this is no database, not at all, whatever its name may say")
    with pytest.raises(UserError, match=r"the file of replies .*/r is damaged, or none of SQLite.s"):
        make_judge("http://x/v1", tmp_path / "r").answer_questions(questions(1))
