"""A judge of somebody else's package: a name and replies are enough."""

from gradfiltering.judging.base import Judge, Reply
from gradfiltering.judging.pair_judging import check_judging, judge_pairs


class LongerAnswerJudge(Judge):
    """Prefers the longer answer."""

    name = "longer"

    def answer_questions(self, questions):
        lengths = [(len(question.first_answer), len(question.second_answer)) for question in questions]
        return [Reply(f"{first} {second}", (float(first), float(second))) for first, second in lengths]


def test_a_judge_needs_a_name_and_replies_only(make_prompt, make_response):
    judge, prompts = LongerAnswerJudge(), [make_prompt(None, "0"), make_prompt(None, "1")]
    check_judging(judge, prompts, ["full"], repeats=1, max_answer_tokens=8)
    responses = {
        "candidate": [make_response("a long answer", "0"), make_response("", "1")],
        "full": [make_response("short", "0"), make_response("more", "1")],
    }
    verdicts = judge_pairs(judge, prompts, responses, "candidate", repeats=1)
    assert [(verdict.judge, verdict.verdict) for verdict in verdicts] == [("longer", "win"), ("longer", "loss")]
    assert judge.list_warnings(prompts) == []
