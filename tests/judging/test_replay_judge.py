import json

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from gradfiltering.errors import UserError
from gradfiltering.judging.pair_judging import judge_pairs
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.replay_judge import ReplayJudge
from gradfiltering.judging.responses import write_responses
from gradfiltering.judging.stored_reviews import read_reviews
from gradfiltering.judging.verdicts import write_verdicts

RECORD = {
    "text": "Why?",
    "Answer1": "Because.",
    "Answer2": "Therefore.",
    "review": "9 8\nGood.",
    "scores": "[9.0, 8.0]",
    "review_reverse": "7, 7.5\nGood.",
    "scores_reverse": "[7.0, 7.5]",
}


@pytest.fixture
def write_reviews(tmp_path):
    def write(*records, about=None):
        path = tmp_path / "reviews.json"
        path.write_text(json.dumps({"Meta_Info": about or {"dataset_name": "vicuna"}, "data": list(records)}))
        return path

    return write


def test_a_pair_is_found_in_either_order(write_reviews):
    judge = ReplayJudge([str(write_reviews(RECORD))])
    prompt = Prompt("any", "0", "Why?", "", None)
    assert judge.compare_answers(prompt, "Because.", "Therefore.").scores == (9.0, 8.0)
    assert judge.compare_answers(prompt, "Therefore.", "Because.").scores == (7.0, 7.5)
    missing = judge.compare_answers(prompt, "Because.", "Else.")
    assert missing.scores is None and "not found" in missing.text
    assert judge.compare_answers(Prompt("any", "0", "How?", "", None), "Because.", "Therefore.").scores is None


def test_published_verdicts_come_back_through_the_pipeline(review_files, make_response):
    judge = ReplayJudge([str(file) for file in review_files])
    file = next(file for file in review_files if "vicuna" in file.name)
    reviews = read_reviews(file)
    prompts = [Prompt("vicuna", str(n), review.question, "", None) for n, review in enumerate(reviews)]
    candidate, against = (
        [make_response(review.answers[side], str(n), "vicuna") for n, review in enumerate(reviews)] for side in (0, 1)
    )
    outcomes = [
        v.verdict for v in judge_pairs(judge, prompts, {"candidate": candidate, "full": against}, "candidate", 1)
    ]
    assert outcomes == [review.verdict.verdict for review in reviews]
    assert [outcomes.count(name) for name in ("win", "tie", "loss", "unparsed")] == [44, 15, 21, 0]


def test_own_verdicts_are_replayed_from_the_run_folder(tmp_path, make_verdict, make_response):
    verdict = make_verdict((9.0, 8.0), (7.0, 8.0))
    write_verdicts(tmp_path / "verdicts.jsonl", [verdict])
    with pytest.raises(UserError, match=r"responses.candidate\.jsonl: no such file"):
        ReplayJudge([str(tmp_path / "verdicts.jsonl")])
    write_responses(tmp_path / "responses" / "candidate.jsonl", [make_response("mine")])
    write_responses(tmp_path / "responses" / "full.jsonl", [make_response("theirs")])
    judge = ReplayJudge([str(tmp_path / "verdicts.jsonl")])
    prompt = Prompt("tasks", "0", "whatever", "", None)
    assert judge.compare_answers(prompt, "mine", "theirs").scores == (9.0, 8.0)
    assert judge.compare_answers(prompt, "theirs", "mine").scores == (7.0, 8.0)
    assert judge.compare_answers(Prompt("tasks", "1", "whatever", "", None), "mine", "theirs").scores is None


def test_a_reply_without_scores_is_unparsed_not_a_tie(write_reviews):
    sentinel = {**RECORD, "review": "I cannot say.", "scores": "[-1, -1]"}
    bare = {name: value for name, value in RECORD.items() if not name.startswith("scores")}
    verdicts = [review.verdict for review in read_reviews(write_reviews(sentinel, bare))]
    assert [verdict.verdict for verdict in verdicts] == ["unparsed", "win"]
    assert verdicts[0].scores is None and verdicts[0].reply == "I cannot say."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": "[8.0, 9.0]"}, "record 1: scores is [8.0, 9.0], but the first line of review holds 9 8"),
        ({"review": "Both fine."}, "record 1: scores is [9.0, 8.0], but the first line of review holds no two scores"),
        ({"scores_reverse": "[1]"}, "record 1: scores_reverse is [1]"),
        ({"scores_reverse": "seven"}, "record 1: scores_reverse, 'seven', is not valid JSON"),
        ({"Answer2": None}, "record 1: Answer2 is None"),
        ({"text": None}, "record 1: no question under any of"),
    ],
)
def test_a_bad_record_is_named(write_reviews, change, message):
    path = write_reviews(RECORD, {**RECORD, **change})
    with pytest.raises(UserError) as error:
        read_reviews(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_the_configuration_builds_it(conf_folder, write_reviews):
    config = OmegaConf.create({"judge": OmegaConf.load(conf_folder / "judge" / "replay.yaml")})
    assert OmegaConf.is_missing(config.judge, "files")
    config.judge.files = [str(write_reviews(RECORD))]
    assert isinstance(instantiate(config.judge.judge), ReplayJudge)
    with pytest.raises(UserError, match="needs a list of files"):
        ReplayJudge([])
