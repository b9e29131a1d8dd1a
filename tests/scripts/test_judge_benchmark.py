"""The benchmark of judge=openai: every question is judged, with and without faults of the server."""

import re

from scripts import bench_judge

OUTPUT = re.compile(
    r"(\d+) questions, (\d+) judged, (\d+) requests in [\d.]+ s\n"
    r"[\d.]+ requests/s; ([\d.]+)% of what the latency allows\n"
    r"client's processor time per request: [\d.]+ ms\nmost under way at the server: (\d+)"
)


def test_every_question_is_judged_in_spite_of_faults(capsys):
    bench_judge.main(["--prompts=6", "--latency=0.01", "--concurrency=4", "--faults=0.3", "--timeout=0.5"])
    questions, judged, requests, share, most_under_way = OUTPUT.search(capsys.readouterr().out).groups()
    assert (questions, judged) == ("12", "12") and 1 <= int(most_under_way) <= 4
    assert int(requests) > 12, "what went wrong was asked again"
    assert 0 < float(share) <= 100


def test_questions_come_in_both_orders_and_no_two_are_alike():
    questions = bench_judge.questions(3)
    assert len(questions) == 6 and len({question.first_answer for question in questions}) == 6
    for forward, backward in zip(questions[::2], questions[1::2], strict=True):
        assert (forward.first_answer, forward.second_answer) == (backward.second_answer, backward.first_answer)
