import pytest

from gradfiltering.judge.parse import parse_scores


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 7\nBoth are good.", (8, 7)),
        ("9 8.5", (9, 8.5)),
        ("8, 7\nWhy: 3 4", (8, 7)),
        ("8,7", (8, 7)),
        ("\n \n10  1 \r\ntext", (10, 1)),
        ("", None),
        ("\n\n", None),
        ("8", None),
        ("8 7 6", None),
        ("8/10 7/10", None),
        ("Assistant 1: 8 Assistant 2: 7", None),
        ("Both are good.\n8 7", None),
        ("nan inf", None),
        ("-1 -1", None),
        ("87", None),
        ("8. 7.", None),
    ],
)
def test_two_numbers_on_the_first_line_or_nothing(review, scores):
    assert parse_scores(review) == scores
