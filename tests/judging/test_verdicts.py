import json

import pytest

from gradfiltering.errors import UserError
from gradfiltering.judging.json_lines import write_rows
from gradfiltering.judging.verdicts import decide_verdict, read_verdicts, write_verdicts


@pytest.mark.parametrize(
    ("scores", "scores_reverse", "expected"),
    [
        # scores = (candidate, against); scores_reverse = (against, candidate)
        ((9, 8), (7, 8), "win"),  # win + win
        ((9, 8), (8, 8), "win"),  # win + tie
        ((8, 8), (7, 8), "win"),  # tie + win
        ((8, 8), (8, 8), "tie"),  # tie + tie
        ((9, 8), (9, 8), "tie"),  # the first answer wins both times: win + loss
        ((1, 10), (5, 5.5), "tie"),  # loss + win: only the signs count
        ((8, 8), (9, 8), "loss"),  # tie + loss
        ((7, 8), (8, 8), "loss"),  # loss + tie
        ((7, 8), (8, 7), "loss"),  # loss + loss
        (None, (1, 10), "unparsed"),
        ((10, 1), None, "unparsed"),
        (None, None, "unparsed"),
    ],
)
def test_sign_rule(scores, scores_reverse, expected):
    assert decide_verdict(scores, scores_reverse) == expected


def test_a_verdict_that_contradicts_its_scores_is_refused(make_verdict):
    good = make_verdict((9.0, 8.0), (7.0, 8.0))
    with pytest.raises(ValueError, match="make it 'win'"):
        type(good)(**{**good.__dict__, "verdict": "tie"})


def test_round_trip(tmp_path, make_verdict):
    verdicts = [
        make_verdict((9.0, 8.5), (7.0, 8.0), prompt_id="a"),
        make_verdict(None, (7.0, 8.0), prompt_id="b", reply="no\u2028idea\n„sorry“"),
    ]
    write_verdicts(tmp_path / "run" / "verdicts.jsonl", verdicts)
    assert read_verdicts(tmp_path / "run" / "verdicts.jsonl") == verdicts
    row = json.loads((tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()[0])
    assert list(row) == [
        "candidate", "against", "judge", "repeat", "prompt_set", "prompt_id",
        "reply", "scores", "reply_reverse", "scores_reverse", "verdict",
    ]  # fmt: skip


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, make_verdict):
    path, verdict = tmp_path / "verdicts.jsonl", make_verdict((9.0, 8.0), (7.0, 8.0))
    write_rows(path, [verdict])

    def rows():
        yield verdict
        yield verdict
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, rows())
    assert read_verdicts(path) == [verdict]
    assert [file.name for file in tmp_path.iterdir()] == ["verdicts.jsonl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [9]}, "line 1: scores must be"),
        ({"scores": [9, float("nan")]}, "line 1: scores must be"),
        ({"scores": [True, False]}, "line 1: scores must be"),
        ({"verdict": "draw"}, "line 1: verdict must be one of: win, tie, loss, unparsed"),
        ({"verdict": "loss"}, "line 1: verdict is 'loss', but"),
        ({"prompt_id": 3}, "line 1: prompt_id must be text, got 3"),
        ({"repeat": -1}, "line 1: repeat must be a non-negative whole number, got -1"),
        ({"colour": "red"}, "line 1: Verdict has no argument colour"),
        ({"judge": ...}, "line 1: Verdict needs the argument judge"),
    ],
)
def test_a_bad_line_is_named(tmp_path, make_verdict, change, message):
    path = tmp_path / "verdicts.jsonl"
    row = {**make_verdict((9.0, 8.0), (7.0, 8.0)).__dict__, **change}
    path.write_text(json.dumps({name: value for name, value in row.items() if value is not ...}) + "\n")
    with pytest.raises(UserError) as error:
        read_verdicts(path)
    assert str(path) in str(error.value) and message in str(error.value)
