"""Scores from the text of a review."""

import re

from gradfiltering.judge.verdicts import Scores

_NUMBER = r"(\d+(?:\.\d+)?)"
_TWO_NUMBERS = re.compile(rf"{_NUMBER}(?:\s*,\s*|\s+){_NUMBER}", flags=re.ASCII)


def parse_scores(review: str) -> Scores | None:
    """The two scores on a review's first line that is not blank; None when it holds anything else.

    The line must be two numbers, separated by spaces, a comma or both, and nothing besides: a reply that says more
    there is not understood, and guessing would turn it into a verdict nobody gave.
    """
    lines = review.strip().splitlines()
    match = _TWO_NUMBERS.fullmatch(lines[0].strip()) if lines else None
    return (float(match[1]), float(match[2])) if match else None
