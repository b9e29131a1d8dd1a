import json

import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.judging.stored_reviews import read_reviews
from gradfiltering.judging.verdict_summary import (
    answer_lengths,
    read_outcomes,
    summarize_bias,
    summarize_steadiness,
    tally_verdicts,
    warn_of_unreadable_verdicts,
)
from gradfiltering.judging.verdicts import write_verdicts
from gradfiltering.statistics.length_control import RIDGE
from gradfiltering.statistics.winning_score import PWS, pairwise_winning_score
from tests.reference import statistics as slow
from tests.reference.bootstrap import bootstrap_interval

RESAMPLES = 4000
# Standard error of a 2.5 % quantile from RESAMPLES draws is about 1.6 % of the interval's width; the grid is 1/judged.
INTERVAL_TOLERANCE = 0.02
FIT_TOLERANCE = 1e-4  # of the general minimiser


@pytest.mark.parametrize("counts", [(30, 10, 20, 0), (5, 40, 5, 7), (70, 3, 2, 1)])
def test_interval_agrees_with_resampling_prompts(counts):
    verdicts = [name for name, n in zip(("win", "tie", "loss", "unparsed"), counts, strict=True) for _ in range(n)]
    score = pairwise_winning_score(verdicts, RESAMPLES, 0.95, seed=1)
    low, high = bootstrap_interval(verdicts, RESAMPLES, 0.95, seed=2)
    assert score.value == pytest.approx((counts[0] - counts[2]) / sum(counts[:3]) + 1, abs=1e-12)
    assert (score.low, score.high) == pytest.approx((low, high), abs=INTERVAL_TOLERANCE)


def test_unparsed_is_counted_apart():
    with_unparsed = pairwise_winning_score(["win", "loss", "win", "unparsed"], 500, 0.9, seed=3)
    without = pairwise_winning_score(["win", "loss", "win"], 500, 0.9, seed=3)
    assert (with_unparsed.value, with_unparsed.low, with_unparsed.high) == (without.value, without.low, without.high)
    assert with_unparsed.unparsed == 1


@pytest.mark.parametrize("verdicts", [[], ["unparsed", "unparsed"]])
def test_nothing_judged_has_no_score(verdicts):
    assert pairwise_winning_score(verdicts, 10, 0.9, 0) == PWS(None, None, None, 0, 0, 0, len(verdicts))


def test_all_wins_and_all_losses_are_the_ends_of_the_scale():
    surely = 2 * 0.5**9
    low = pytest.approx(2 * 0.025 ** (1 / 9))  # Clopper and Pearson: of nine wins, a share of 0.66 is possible
    high = pytest.approx(2 - 2 * 0.025 ** (1 / 9))
    best = pairwise_winning_score(["win"] * 9, 100, 0.95, 0)
    assert best == PWS(2.0, low, 2.0, 9, 0, 0, 0, bca_low=low, bca_high=2.0, sign_p=surely, detectable=None)
    worst = pairwise_winning_score(["loss"] * 9, 100, 0.95, 0)
    assert worst == PWS(0.0, 0.0, high, 0, 0, 9, 0, bca_low=0.0, bca_high=high, sign_p=surely, detectable=None)


@pytest.mark.parametrize(
    ("verdicts", "resamples", "confidence", "message"),
    [
        (["draw"], 10, 0.9, "unknown verdict 'draw'"),
        (["win"], 0, 0.9, "resamples is 0"),
        (["win"], 10, 1.0, "confidence is 1.0"),
    ],
)
def test_bad_options_are_refused(verdicts, resamples, confidence, message):
    with pytest.raises(ValueError, match=message):
        pairwise_winning_score(verdicts, resamples, confidence, 0)


def test_tally_keeps_baselines_and_sets_apart_and_ignores_repeats(make_verdict):
    win, loss = ((9.0, 1.0), (1.0, 9.0)), ((1.0, 9.0), (9.0, 1.0))
    verdicts = [
        make_verdict(*win, against="full", prompt_set="vicuna", prompt_id="1"),
        make_verdict(*win, against="full", prompt_set="vicuna", prompt_id="1", repeat=1),
        make_verdict(*loss, against="full", prompt_set="koala", prompt_id="1"),
        make_verdict(None, None, against="random", prompt_set="vicuna", prompt_id="1"),
    ]
    table = tally_verdicts(verdicts, 50, 0.95, seed=0)
    assert {against: list(sets) for against, sets in table.items()} == {
        "full": ["vicuna", "koala", "all"],
        "random": ["vicuna", "all"],
    }
    assert (table["full"]["vicuna"].wins, table["full"]["koala"].losses) == (1, 1)
    assert (table["full"]["all"].wins, table["full"]["all"].losses, table["full"]["all"].value) == (1, 1, 1.0)
    assert table["random"]["all"] == PWS(None, None, None, 0, 0, 0, 1)
    # A set's interval depends on its own name only, not on what else is judged.
    assert tally_verdicts(verdicts[:1], 50, 0.95, seed=0)["full"]["vicuna"] == table["full"]["vicuna"]


def test_bias_by_hand(make_verdict, make_response):
    verdicts = [
        make_verdict((9.0, 1.0), (1.0, 9.0), prompt_id="0"),  # win of the longer
        make_verdict((1.0, 9.0), (9.0, 1.0), prompt_id="1"),  # loss, and the winner is shorter
        make_verdict((9.0, 1.0), (9.0, 1.0), prompt_id="2"),  # the orders contradict each other
        make_verdict(None, (9.0, 1.0), prompt_id="3"),
    ]
    answers = {"candidate": ["long answer"] * 4, "full": ["short"] * 4}
    responses = {
        model: [make_response(text, prompt_id=str(index)) for index, text in enumerate(texts)]
        for model, texts in answers.items()
    }
    bias = summarize_bias(verdicts, answer_lengths(verdicts, responses), 100, 0.95, seed=0)
    assert (bias.judged, bias.decided) == (3, 2)
    assert bias.contradiction_rate == pytest.approx(1 / 3)
    assert bias.longer_wins_share == 0.5
    # The win and the loss each go to either slot once; the contradiction goes to the first slot twice.
    assert bias.first_slot_share == pytest.approx(4 / 6)
    assert (bias.candidate_mean_length, bias.against_mean_length) == (11, 5)
    assert summarize_bias(verdicts, None, 100, 0.95, 0).longer_wins_share is None
    assert summarize_bias([], None, 100, 0.95, 0).contradiction_rate is None


def test_published_counts_and_bias(shared_data, review_files):
    published = json.loads((shared_data / "judge" / "published_counts_gpt4.json").read_text())["gpt4"]
    reviews = [review for file in review_files for review in read_reviews(file)]
    table = tally_verdicts([review.verdict for review in reviews], 1000, 0.95, seed=0)["answer2"]
    counts = {name: [score.wins, score.ties, score.losses] for name, score in table.items() if name != "all"}
    assert counts == published
    lengths = [(len(review.answers[0]), len(review.answers[1])) for review in reviews]
    bias = summarize_bias([review.verdict for review in reviews], lengths, 200, 0.95, seed=0)
    assert bias.judged == 1030
    assert bias.contradiction_rate == pytest.approx(0.141, abs=0.0005)
    assert bias.longer_wins_share == pytest.approx(0.71, abs=0.005)


def test_published_reviews_under_length_control(review_files):
    reviews = [review for file in review_files for review in read_reviews(file)]
    lengths = [(len(review.answers[0]), len(review.answers[1])) for review in reviews]
    bias = summarize_bias([review.verdict for review in reviews], lengths, 1000, 0.95, seed=0)
    points = np.array([{"win": 1, "tie": 0.5, "loss": 0}[review.verdict.verdict] for review in reviews])
    differences = np.array([one - other for one, other in lengths])
    ratios = np.array([np.log((1 + one) / (1 + other)) for one, other in lengths])
    sets = np.array([review.verdict.prompt_set for review in reviews])
    for pull, controlled in (
        (np.tanh(differences / differences.std()), bias.length_controlled),
        (ratios, bias.length_controlled_log_ratio),
    ):
        *intercepts, phi = slow.logistic(points, pull, RIDGE, sets)
        shares = np.unique(sets, return_counts=True)[1] / len(sets)
        expected = sum(share * 2 / (1 + np.exp(-theta)) for share, theta in zip(shares, intercepts, strict=True))
        assert controlled.value == pytest.approx(expected, abs=FIT_TOLERANCE)
        assert controlled.length_effect == pytest.approx(phi, abs=1e-3)
        assert controlled.value < 1.203, "the longer answer wins 71 %, and the candidate writes longer ones"


WIN, TIE, LOSS = ((9.0, 1.0), (1.0, 9.0)), ((5.0, 5.0), (5.0, 5.0)), ((1.0, 9.0), (9.0, 1.0))


def test_repeats_by_hand(make_verdict):
    rows = [[WIN, WIN], [WIN, LOSS], [TIE, TIE], [LOSS, TIE], [(None, None), WIN]]
    verdicts = [
        make_verdict(*scores, prompt_id=str(prompt), repeat=repeat)
        for prompt, row in enumerate(rows)
        for repeat, scores in enumerate(row)
    ]
    steady = summarize_steadiness(verdicts)
    assert (steady.repeats, steady.prompts, steady.same_verdict_share) == (2, 4, 0.5)
    assert steady.pws == pytest.approx([1.25, 1.0]) and steady.pws_deviation == pytest.approx(0.25 / np.sqrt(2))
    assert steady.judge_variance == pytest.approx((0 + 2 + 0 + 0.5) / 4)
    assert steady.pair_variance == pytest.approx(np.var([1, 1, 1, -1, 0, 0, -1, 0]))
    assert summarize_steadiness(verdicts[::2]) is None and summarize_steadiness([]) is None


def test_outcomes_are_read_from_runs(tmp_path, make_verdict):
    verdicts = [
        make_verdict(*WIN), make_verdict(*LOSS, prompt_id="1"), make_verdict(None, None, prompt_id="2"),
        make_verdict(*LOSS, repeat=1), make_verdict(*LOSS, against="random"),
    ]  # fmt: skip
    write_verdicts(tmp_path / "verdicts.jsonl", verdicts)
    assert read_outcomes({"a": tmp_path / "verdicts.jsonl"}, "full") == {"a": {("tasks", "0"): 1, ("tasks", "1"): -1}}
    with pytest.raises(UserError, match=r"against 'lead' \(baselines: full, random\)"):
        read_outcomes({"a": tmp_path / "verdicts.jsonl"}, "lead")


def test_a_baseline_without_a_readable_verdict_is_named():
    scores = {
        "full": {"vicuna": {"value": None, "unparsed": 3}, "all": {"value": None, "unparsed": 3}},
        "random": {"vicuna": {"value": None, "unparsed": 3}, "all": {"value": 1.5, "unparsed": 3}},
    }
    (warning,) = warn_of_unreadable_verdicts(scores)
    assert warning.startswith("no verdict against full could be read (3 of them)") and "another judge" in warning
