"""A generated table of hostile replies, bad addresses and options, redirects, and crashes while a reply is read."""

import json
import signal
import sqlite3
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest

from gradfiltering.config.build import build
from gradfiltering.config.composition import composed
from gradfiltering.errors import UserError
from gradfiltering.judging.chat_endpoint import RetrySettings
from gradfiltering.judging.judge_prompt import JudgePrompt
from gradfiltering.judging.openai_judge import OpenAIJudge
from gradfiltering.judging.reply_parser import LONGEST_STATEMENT, parse_scores
from gradfiltering.judging.verdicts import read_verdicts, write_verdicts
from tests.judging.chat import completion, make_judge, questions, scripted_server

SIZE = 200_000
HANG_SECONDS = 20  # a reply takes milliseconds; a pattern that backtracks takes hours
FILLERS = {
    "blanks": " ", "tabs": "\t", "blank lines": "\n", "spaced lines": " \n", "digits": "8", "spaced digits": "8 ",
    "commas": "8,", "slashes": "8/10 ", "open brackets": "[", "brackets": "[]", "braces": '{"a":', "stars": "*",
    "spaced stars": "* ", "emphasis": "**a", "underscores": "_", "backticks": "`", "fences": "```\n", "score": "score ",
    "score lines": "Scores:\n", "assistant": "assistant ", "assistant 1": "Assistant 1: 8 ", "and": "8 and ",
    "is": "is ", "colons": ": ", "hashes": "# ", "minus": "-", "thoughts": "<think>", "thought ends": "</think>",
    "no-break": "\u00a0", "surrogates": "\ud83d", "quotes": '"', "zeros": "0",
}  # fmt: skip
# What stands before 200 KB of a filler -> whether the reply opens with its scores all the same.
OPENINGS = {"": False, "8 7\n": True, "score": False, "Assistant 1:": False, "<think>": False, "8 7 - ": False}
THOUGHT = "<think>" + "score 8 7 " * 20_000 + "</think>\n"


@contextmanager
def hang_guard():
    def stop(*_):
        raise TimeoutError(f"a reply of {SIZE} characters took more than {HANG_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("filler", FILLERS.values(), ids=list(FILLERS))
@pytest.mark.parametrize(("opening", "is_read"), OPENINGS.items(), ids=[repr(opening) for opening in OPENINGS])
def test_long_replies_end_and_only_an_opening_counts(filler, opening, is_read):
    reply = opening + filler * (SIZE // len(filler))
    with hang_guard():
        scores = parse_scores(reply)
        assert parse_scores(reply, "json") is None
    is_read = is_read or (opening == "8 7 - " and "\n" in filler)  # the line has an end
    # A mark of a thought's end anywhere leaves in doubt where the thought began.
    assert scores == ((8, 7) if is_read and "</think>" not in reply else None)


@pytest.mark.parametrize(
    ("reply", "reply_format", "scores"),
    [
        (THOUGHT + "8 7", "text", (8, 7)),
        (THOUGHT + '{"score_1": 8, "score_2": 7}', "json", (8, 7)),
        ("8 7" + " " * 1000 + "- because" + " of this" * 4000, "text", (8, 7)),
        ("8 7 - " + "because " * (LONGEST_STATEMENT // 8), "text", None),  # its line has no end within the bound
        ("\n" * LONGEST_STATEMENT + "8 7", "text", (8, 7)),
        ("Scores:\n" * LONGEST_STATEMENT + "8 7", "text", None),
        ("8" + " " * 10_000 + "7", "text", (8, 7)),
        ("Score" + " " * 10_000 + "1 0", "text", None),
        ("Assistant 1" + " " * 10_000 + ": 8, Assistant 2: 7", "text", (8, 7)),
        ("1e999 7", "text", None),
        ("1" + "0" * 400 + " 7", "text", None),
        ("8 " + "7" * 5000, "text", None),
        ("8.00000000000000000000001 7", "text", None),
        ("8 7\n" + "9" * 5000, "text", (8, 7)),
        ("\ud83d8 7", "text", None),
        ("8 7\n\udc00", "text", (8, 7)),
        ('{"score_1": 1e999, "score_2": 7}', "json", None),
        ('{"score_1": -1e999, "score_2": 7}', "json", None),
        ('{"score_1": 1' + "0" * 400 + ', "score_2": 7}', "json", None),
        ('{"score_1": ' + "9" * 5000 + ', "score_2": 7}', "json", None),
        ('{"score_1": 8, "score_2": 7, "why": ' + "9" * 4000 + "}", "json", (8, 7)),
        ('{"score_1": 8, "score_2": 7, "why": ' + "[" * 20_000 + "]" * 20_000 + "}", "json", None),
        ('{"score_1": 8, "score_2": 7, "why": "' + "a" * LONGEST_STATEMENT + '"}', "json", None),
        ('{"score_1": 8, "score_2": 7, "why": "\\ud83d"}', "json", (8, 7)),
        ('{"score_1": [8], "score_2": {"score_1": 7}}', "json", None),
        ('{"score_1": 8, "score_2": NaN}', "json", None),
        ('{"score_1": Infinity, "score_2": 7}', "json", None),
        ('{"score_1": -0.0, "score_2": 7}', "json", (0, 7)),
        ('{"score_1": 8, "score_2": 7, "score_2": 7}', "json", None),
        ("```json\n" * 10_000, "json", None),
        ("null", "json", None),
    ],
    ids=range(31),
)
def test_absurd_replies_are_read_rightly_or_not_at_all(reply, reply_format, scores):
    with hang_guard():
        assert parse_scores(reply, reply_format) == scores


# Bodies that a server sends with status 200, and the text that is stored; None where it is no completion.
ODD_BODIES = {
    "counts of 400 digits": (completion("8 7", usage={"prompt_tokens": 10**400, "completion_tokens": 1}), "8 7"),
    "negative counts": (completion("8 7", usage={"prompt_tokens": -1, "completion_tokens": 2.5}), "8 7"),
    "no counts": (completion("8 7", usage=None), "8 7"),
    "surrogate in the text": (b'{"choices": [{"message": {"content": "8 7\\n\\ud83d"}}]}', "8 7\n\ufffd"),
    "surrogate in the reason": (
        b'{"choices": [{"message": {"content": "8 7"}, "finish_reason": "\\ud83d"}]}', "8 7",
    ),
    "a number for the text": (completion(8), None),
    "no choice": (completion("x", choices=[]), None),
    "deep nesting": (b"[" * 100_000, None),
    "5000 digits": (b"9" * 5000, None),
    "1e999": (b'{"choices": 1e999}', None),
    "a list": (b"[1]", None),
}  # fmt: skip


@pytest.mark.parametrize(("body", "text"), ODD_BODIES.values(), ids=list(ODD_BODIES))
def test_odd_bodies_end_no_run(tmp_path, body, text):
    with scripted_server((200, {}, completion("9 9")), (200, {}, body)) as (url, _):
        judge = make_judge(url, tmp_path / "r", concurrency=1, retries=RetrySettings(2, 0.0, 0.0))
        replies = judge.answer_questions(questions(1))
    assert replies[0].scores == (9, 9)
    if text is None:
        assert replies[1].scores is None and replies[1].text.startswith("not judged")
    else:
        assert (replies[1].text, replies[1].scores) == (text, (8, 7))


def test_verdicts_with_half_a_surrogate_are_written(tmp_path, make_verdict):
    write_verdicts(tmp_path / "v.jsonl", [make_verdict((8.0, 7.0), (7.0, 8.0), reply="8 7 \ud83d")])
    assert read_verdicts(tmp_path / "v.jsonl")[0].reply == "8 7 \ud83d"


def test_a_reply_is_stored_before_it_is_looked_at(tmp_path, monkeypatch):
    """Replies under way when reading fails are stored as well; the next run asks for none of them."""

    def crash(*_):
        raise ZeroDivisionError("a defect of the parser")

    with scripted_server((200, {}, completion("8 7"))) as (url, got):
        with monkeypatch.context() as patched:
            patched.setattr(JudgePrompt, "parse", crash)
            with pytest.raises(ZeroDivisionError):
                make_judge(url, tmp_path / "r", concurrency=8).answer_questions(questions(4))
        paid = len(got)
        with closing(sqlite3.connect(tmp_path / "r")) as stored:
            assert stored.execute("SELECT count(*) FROM replies").fetchone() == (paid,) and paid >= 1
        replies = make_judge(url, tmp_path / "r").answer_questions(questions(4))
        assert len(got) == 8 and all(reply.scores == (8, 7) for reply in replies)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_header_of_ours_follows_a_redirect_to_another_origin(tmp_path, monkeypatch, status):
    monkeypatch.setenv("MY_KEY", "sk-secret-0123456789")
    monkeypatch.setenv("TEAM", "secret-team")
    with scripted_server((200, {}, completion("8 7"))) as (other_url, other_got):
        redirect = (status, {"Location": f"{other_url}/chat/completions"}, b"")
        with (
            scripted_server(redirect) as (url, got),
            pytest.raises(UserError, match=r"sends us on to http://127\.0\.0\.1:\d+, another server; nothing"),
        ):
            make_judge(url, tmp_path / "r", key_variable="MY_KEY", headers={"X-Team": "TEAM"}).answer_questions(
                questions(1)[:1]
            )
    assert len(got) == 1 and not other_got


def test_redirects_in_a_circle_end(tmp_path):
    circle = (308, {"Location": "/v1/elsewhere"}, b"")
    with scripted_server(circle) as (url, _), pytest.raises(UserError, match="no reply from"):
        make_judge(url, tmp_path / "r", retries=RetrySettings(1, 0.0, 0.0)).answer_questions(questions(1)[:1])


def test_a_redirect_within_the_same_origin_is_followed(tmp_path):
    redirect = (308, {"Location": "/v1/elsewhere"}, b"")
    with scripted_server(redirect, (200, {}, completion("8 7"))) as (url, got):
        (reply,) = make_judge(url, tmp_path / "r").answer_questions(questions(1)[:1])
    assert reply.scores == (8, 7) and len(got) == 2


@pytest.mark.parametrize(
    "url",
    ["", "x", "host/v1", "ftp://host/v1", "http://", "http://:80/v1", "http://host:99999/v1", "http://host:-1/v1",
     "http://host:abc/v1", "http://host:0/v1", "http://[::1/v1", "http://[::g]/v1", "http://a..b/v1", "http://-a/v1",
     "http://a_b-/v1", "http://ho st/v1", "http://host/v 1", "http://host/v1\n", "http://host\\@other/v1",
     "http://256.1.1.1/v1", "http://1.2.3/v1", "http://host/v1#part", "http://" + "a" * 64 + "/v1",
     "http://" + "a." * 130 + "b/v1", "http://<b>/v1", "http://host%00/v1"],
)  # fmt: skip
def test_bad_addresses_are_refused_when_built(tmp_path, url):
    with pytest.raises(UserError, match="base_url is no address of a server") as error:
        make_judge(url, tmp_path / "r")
    assert error.value.arguments == ("base_url",)


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8000/v1", "https://api.openai.com/v1", "http://[::1]:80/v1", "http://10.0.0.1/", "http://a_b/v1",
     "https://müller.example/v1", "http://host.:65535/v1"],
)  # fmt: skip
def test_good_addresses_are_taken(tmp_path, url):
    assert make_judge(url, tmp_path / "r").endpoint.base_url == url


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"headers": {"X Team": "A"}}, "'X Team' is no header"),
        ({"headers": {"": "A"}}, "'' is no header"),
        ({"headers": {"X-A\n": "A"}}, "is no header"),
        ({"headers": {"Host": "A"}}, "'Host' is no header"),
        ({"request": {"seed": float("nan")}}, "nothing that JSON can hold"),
        ({"request": {"seed": {1, 2}}}, "nothing that JSON can hold"),
        ({"request": {"stream": True}}, "the request field stream"),
    ],
)
def test_bad_judge_options_are_refused_when_built(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make_judge("http://x/v1", tmp_path / "r", **options)


@pytest.mark.parametrize("value", ["two\nlines", "schlüssel", "a\x00b", "\u200bkey"])
def test_secrets_that_no_header_can_carry_are_refused_before_training(tmp_path, monkeypatch, value):
    if "\x00" in value:
        monkeypatch.setattr("os.environ", {"MY_KEY": value})
    else:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match="line break or a character that no header can carry") as error:
        make_judge("http://x/v1", tmp_path / "r", key_variable="MY_KEY").check_feasible([], 2, 9)
    assert value not in str(error.value)


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [
        ("8", "8 7\nYour key is 8.", "8 7\nYour key is ***."),
        ("a", "8 7 a cat; Bearer a", "8 7 a cat; Bearer ***"),
        ("xy", 'Incorrect API key provided: "xy". See xyz.', 'Incorrect API key provided: "***". See xyz.'),
        ("abc", "Authorization: abc, abcd", "Authorization: ***, abcd"),
        ("none", "nonetheless none of them", "nonetheless *** of them"),
        ("EMPTY", "key=EMPTY EMPTYING", "key=*** EMPTYING"),
        ("long-secret", "xlong-secretx", "x***x"),
    ],
)
def test_short_keys_are_hidden_and_mangle_nothing(tmp_path, monkeypatch, key, text, shown):
    monkeypatch.setenv("MY_KEY", key)
    judge = make_judge("http://x/v1", tmp_path / "r", key_variable="MY_KEY")
    assert judge.endpoint.redact(text) == shown
    error = (401, {}, {"error": {"message": f"Incorrect API key provided: {key}"}})
    with scripted_server(error) as (url, _), pytest.raises(UserError, match=r"provided: \*\*\*"):
        make_judge(url, tmp_path / "s", key_variable="MY_KEY").answer_questions(questions(1))


@pytest.mark.parametrize("model", ["[bold]m[/bold]", "[/]", "[red", "<b>&\"'", "\\[x]", "=1+1"])
def test_a_models_name_is_no_markup(tmp_path, capsys, model):
    with scripted_server((200, {}, completion("8 7"))) as (url, got):
        judge = make_judge(url, tmp_path / "r")
        judge = OpenAIJudge(
            judge.endpoint, type(judge.request)(model, 0.0, "max_tokens", None), judge.conversation, judge.limits
        )
        assert judge.answer_questions(questions(1)[:1])[0].scores == (8, 7)
    assert got[0]["body"]["model"] == model and model in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "fields", "headers"),
    [
        ("judge.request={seed: 1}", {"seed": 1}, None),
        ("judge.request={extra: {a: [1, 2]}, top_p: 0.5}", {"extra": {"a": [1, 2]}, "top_p": 0.5}, None),
        ("+judge.request={seed: 1}", {"seed": 1}, None),
        ("++judge.request.seed=1", {"seed": 1}, None),
        ("judge.request={}", {}, None),
        ("judge.header_variables={X-Team: TEAM_SECRET}", None, {"X-Team": "TEAM_SECRET"}),
        ("judge.header_variables={}", None, {}),
    ],
)
def test_dictionaries_are_given_as_documented(tmp_path, override, fields, headers):
    with composed(["judge=openai", override, f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}"]) as cfg:
        judge = build(cfg.judge.judge)
    assert (judge.request.fields, judge.endpoint.header_variables) == (fields, headers)
    body = judge.request.make_body([], SimpleNamespace(prompt=judge.conversation.prompt, max_reply_tokens=9))
    json.dumps(body)
    assert {name: body[name] for name in fields or {}} == (fields or {})
