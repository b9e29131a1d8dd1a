"""A judge held against labelled pairs before it judges: the bundled set, files of labels, the kappa that results."""

import json
from collections import Counter
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score

from gradfiltering.errors import UserError
from gradfiltering.judging.base import Judge, PairJudge, Reply
from gradfiltering.judging.judge_check import JudgeCheck
from gradfiltering.judging.labelled_pairs import BUNDLED, read_labelled_pairs
from gradfiltering.judging.ratings import AnswerPair, RatingStore, write_sheet
from gradfiltering.judging.responses import Response, write_responses
from gradfiltering.judging.verdicts import write_verdicts


class RuleJudge(PairJudge):
    """Judges by a function of question and the two answers, which returns two scores or None."""

    name = "rule"

    def __init__(self, rule):
        self.rule = rule
        self.asked = 0

    def compare_answers(self, prompt, first_answer, second_answer):
        self.asked += 1
        return Reply("a reply", self.rule(prompt.question, first_answer, second_answer))


def check(labelled_pairs=BUNDLED, limit=None, least_kappa=0.4):
    return JudgeCheck(labelled_pairs, limit, least_kappa, resamples=500, confidence=0.95)


def knowing(labelled_pairs):
    """Knows every label, whatever the order."""
    scores = {"first": (9.0, 2.0), "second": (2.0, 9.0), "tie": (5.0, 5.0)}
    known = {(pair.prompt.question, pair.first): scores[pair.preference] for pair in labelled_pairs}

    def rule(question, first, second):
        known_scores = known.get((question, first))
        return known_scores or known[question, second][::-1]

    return rule


def test_bundled_pairs_reward_neither_place_nor_length():
    labelled = read_labelled_pairs(BUNDLED)
    assert len(labelled.pairs) == 40 and "construction" in labelled.labelled_by
    assert Counter(pair.preference for pair in labelled.pairs) == {"first": 16, "second": 16, "tie": 8}
    cells = Counter((pair.preference, len(pair.first) > len(pair.second)) for pair in labelled.pairs)
    assert cells == {
        ("first", True): 8, ("first", False): 8, ("second", True): 8, ("second", False): 8,
        ("tie", True): 4, ("tie", False): 4,
    }  # fmt: skip
    for pair in labelled.pairs:
        assert pair.prompt.question.strip() and pair.first.strip() and pair.second.strip() and pair.first != pair.second
    assert len({pair.prompt.question for pair in labelled.pairs}) == 40


def test_a_judge_that_knows_the_labels_is_usable():
    judge = RuleJudge(knowing(read_labelled_pairs(BUNDLED).pairs))
    agreement = check().measure(judge, 0)
    assert agreement.kappa == 1.0 and agreement.kappa_low > 0.8 and agreement.share == 1.0
    assert agreement.unreadable_share == agreement.contradiction_rate == 0.0
    assert agreement.usable and agreement.warnings() == [] and judge.asked == 80


@pytest.mark.parametrize(
    ("rule", "unreadable", "contradicting"),
    [
        (lambda question, first, second: None, 1.0, None),
        (lambda question, first, second: (8.0, 6.0), 0.0, 1.0),  # the answer shown first
        (lambda question, first, second: (float(len(first)), float(len(second))), 0.0, 0.0),  # the longer
        (lambda question, first, second: (7.0, 7.0), 0.0, 0.0),
    ],
    ids=["no format", "place", "length", "always a tie"],
)
def test_judges_by_format_place_or_length_have_no_kappa(rule, unreadable, contradicting):
    agreement = check().measure(RuleJudge(rule), 0)
    assert agreement.kappa == pytest.approx(0.0, abs=1e-12) and agreement.kappa_low <= 0 <= agreement.kappa_high
    assert (agreement.unreadable_share, agreement.contradiction_rate) == (unreadable, contradicting)
    assert not agreement.usable
    (warning,) = agreement.warnings()
    assert warning.startswith("the verdicts of the judge rule are unusable: on 40 pairs") and "below 0.4" in warning


def test_what_cannot_be_read_counts_against_the_judge():
    pairs = read_labelled_pairs(BUNDLED).pairs
    known, silent = knowing(pairs), {pair.prompt.question for pair in pairs[::2]}
    judge = RuleJudge(lambda question, *answers: None if question in silent else known(question, *answers))
    agreement = check().measure(judge, 0)
    labels = [pair.preference for pair in pairs]
    given = ["unparsed" if pair.prompt.question in silent else pair.preference for pair in pairs]
    assert agreement.kappa == pytest.approx(cohen_kappa_score(labels, given))
    assert agreement.unreadable_share == agreement.share == 0.5


def test_the_threshold_decides_and_a_limit_takes_pairs_of_each_kind():
    known = knowing(read_labelled_pairs(BUNDLED).pairs)
    worse = RuleJudge(lambda question, *answers: (5.0, 5.0) if len(question) % 2 else known(question, *answers))
    kappa = check().measure(worse, 0).kappa
    assert 0.2 < kappa < 0.9
    assert check(least_kappa=kappa - 0.01).measure(worse, 0).usable
    assert not check(least_kappa=kappa + 0.01).measure(worse, 0).usable
    judge = RuleJudge(known)
    limited = check(limit=10).measure(judge, 0)
    assert (limited.pairs, judge.asked, limited.kappa) == (10, 20, 1.0)


def test_a_refusing_judge_refuses_before_it_is_asked():
    class Refusing(RuleJudge):
        def check_feasible(self, prompts, questions_per_prompt, max_answer_tokens):
            raise UserError(f"{len(prompts)} prompts, {questions_per_prompt} questions each")

    judge = Refusing(None)
    with pytest.raises(UserError, match="40 prompts, 2 questions each"):
        check().measure(judge, 0)
    assert judge.asked == 0


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_plain_pairs_are_read_from_json_lines(tmp_path):
    rows = [
        {"question": "a?", "first": "x", "second": "y", "preference": "second"},
        {"instruction": "b?", "input": "more", "first": "x", "second": "y", "preference": "tie"},
    ]
    labelled = read_labelled_pairs(write_lines(tmp_path / "pairs.jsonl", rows))
    first, second = labelled.pairs
    assert (first.prompt.question, first.first, first.second, first.preference) == ("a?", "x", "y", "second")
    assert (second.prompt.instruction, second.prompt.input, second.preference) == ("b?", "more", "tie")


def test_pandalm_pairs_take_the_majority_of_annotators(tmp_path):
    row = {"idx": 7, "instruction": "a?", "input": "", "response1": "x", "response2": "y"}
    votes = [(1, 1, 2), (2, 2, 2), (0, 1, 2), (0, 0, 1)]
    rows = [{**row, **{f"annotator{number + 1}": vote for number, vote in enumerate(of_row)}} for of_row in votes]
    (tmp_path / "pandalm.json").write_text(json.dumps(rows))
    labelled = read_labelled_pairs(str(tmp_path / "pandalm.json"))
    assert [pair.preference for pair in labelled.pairs] == ["first", "second", "tie", "tie"]


def test_sheets_of_two_raters_are_taken_together_whatever_the_sides(tmp_path):
    pairs = [
        AnswerPair("s", str(number), f"Question {number}?", f"=one {number}", f"two {number}") for number in range(9)
    ]
    store = RatingStore(tmp_path / "ratings.sqlite", seed=3)
    store.add_all([(pair.pair_id, rater, "second") for pair in pairs[:8] for rater in ("ann", "bob")])
    sheets = [tmp_path / f"ratings_{rater}.csv" for rater in ("ann", "bob")]
    for sheet, rater in zip(sheets, ("ann", "bob"), strict=True):
        write_sheet(sheet, pairs, store, rater)
    store.close()
    both = tmp_path / "both.csv"
    both.write_text(sheets[0].read_text() + "".join(sheets[1].read_text().splitlines(keepends=True)[1:]))
    labelled = read_labelled_pairs(str(both))
    assert len(labelled.pairs) == 8, "the pair that nobody rated has no label"
    preferred = [pair.first if pair.preference == "first" else pair.second for pair in labelled.pairs]
    assert sorted(preferred) == [f"two {number}" for number in range(8)]


def test_two_bad_answers_of_a_sheet_are_a_tie(tmp_path):
    rows = [{"question": "q?", "left": "x", "right": "y", "choice": choice} for choice in ("Bad", "bad", "left")]
    labelled = read_labelled_pairs(write_lines(tmp_path / "sheet.jsonl", rows))
    assert [pair.preference for pair in labelled.pairs] == ["tie"]


def test_verdicts_of_a_run_are_labels_with_their_prompts(tmp_path, make_verdict):
    verdicts = [
        make_verdict((8, 2), (2, 8), prompt_id="0", judge="human"),
        make_verdict(None, None, prompt_id="1"),
        make_verdict((3, 7), (7, 3), prompt_id="2", judge="human"),
    ]
    write_verdicts(tmp_path / "verdicts.jsonl", verdicts)
    for model in ("candidate", "full"):
        answers = [
            Response("tasks", str(number), f"Q{number}", f"{model} {number}", 1, 1, "eos", False) for number in range(3)
        ]
        write_responses(tmp_path / "responses" / f"{model}.jsonl", answers)
    labelled = read_labelled_pairs(str(tmp_path / "verdicts.jsonl"))
    assert labelled.labelled_by == "judge human"
    assert [(pair.prompt.question, pair.first, pair.second, pair.preference) for pair in labelled.pairs] == [
        ("Q0", "candidate 0", "full 0", "first"), ("Q2", "candidate 2", "full 2", "second"),
    ]  # fmt: skip


GOOD = {"question": "a?", "first": "x", "second": "y", "preference": "tie"}
PANDALM = {"instruction": "a", "input": "", "response1": "x", "response2": "y", "annotator1": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**GOOD, "preference": "left"}], "line 1: preference is 'left'; expected first, second, tie"),
        ([GOOD, {**GOOD, "first": None}], "line 2: first is None; expected a text"),
        ([{"answer": "x"}], "line 1: preference is None"),
        ([{**PANDALM, "annotator1": 3}], "line 1: annotator1 is 3; expected 0 for a tie, 1 or 2"),
        ([{**PANDALM, "annotator1": True}], "line 1: annotator1 is True"),
        ([{"question": "q", "left": "a", "right": "b", "choice": "both"}], "line 1: choice is 'both'"),
        ([{"question": "q", "left": "a", "right": "b", "choice": ""}], "no pair in it has a label yet"),
        ([], "holds no pair"),
    ],
)
def test_a_bad_file_is_named_with_row_field_and_value(rows, message, tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UserError) as error:
        read_labelled_pairs(path)
    assert path in str(error.value) and message in str(error.value)


def test_labels_of_one_kind_alone_are_refused(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", [GOOD, GOOD])
    with pytest.raises(UserError, match="all 2 labels are tie, which leaves nothing to agree on beyond chance"):
        check(path).measure(RuleJudge(lambda *texts: (5.0, 5.0)), 0)
    with pytest.raises(UserError, match="no such file"):
        read_labelled_pairs(str(tmp_path / "none.jsonl"))


def test_gpt35_agrees_with_pandalms_people_moderately(shared_data: Path):
    """The published verdicts stand in for a judge; kappa as scikit-learn has it."""
    folder = shared_data / "human"
    pairs = read_labelled_pairs(str(folder / "pandalm_testset_v1.json")).pairs
    verdicts = {
        record["idx"]: record["gpt_result"]
        for record in json.loads((folder / "pandalm_gpt35_verdicts.json").read_text())
    }

    class Replaying(Judge):
        name = "gpt-3.5"

        def answer_questions(self, questions):
            scores = {"1": (9.0, 2.0), "2": (2.0, 9.0), "Tie": (5.0, 5.0)}
            replies = []
            for question in questions:
                known = scores.get(verdicts[int(question.prompt.prompt_id)])
                replies.append(Reply("", known[::-1] if known and question.order else known))
            return replies

    agreement = check(str(folder / "pandalm_testset_v1.json")).measure(Replaying(), 0)
    names = {"1": "first", "2": "second", "Tie": "tie", "garbage": "unparsed"}
    labels, given = [pair.preference for pair in pairs], [names[verdicts[number]] for number in range(len(pairs))]
    assert agreement.pairs == 999
    assert agreement.kappa == pytest.approx(cohen_kappa_score(labels, given))
    assert 0.4 < agreement.kappa_low < agreement.kappa < 0.5 and agreement.usable
