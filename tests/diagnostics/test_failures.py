from pathlib import Path

import numpy as np
import pytest

from gradfiltering.diagnostics.failures import DOUBTING_DIAGNOSTICS, FORBIDDING_DIAGNOSTICS, FailedDiagnostic
from gradfiltering.diagnostics.subset import diagnose_selection
from tests.diagnostics.test_subset import BASE_LOSSES, EVIDENCE, QUIET, scores


def test_each_diagnostic_forbids_or_casts_doubt():
    assert not FORBIDDING_DIAGNOSTICS.keys() & DOUBTING_DIAGNOSTICS.keys()
    assert all(FailedDiagnostic(name, "w").forbids_use for name in FORBIDDING_DIAGNOSTICS)
    assert not any(FailedDiagnostic(name, "w").forbids_use for name in DOUBTING_DIAGNOSTICS)
    with pytest.raises(ValueError, match="other is no known diagnostic"):
        FailedDiagnostic("other", "w")


def test_the_page_on_verdicts_names_every_diagnostic():
    text = (Path(__file__).parents[2] / "docs" / "verdict.md").read_text("utf-8")
    forbidding, doubting = text.partition("| forbids use |")[2].split("| casts doubt |")
    assert all(f"`{name}`" in forbidding for name in FORBIDDING_DIAGNOSTICS)
    assert all(f"`{name}`" in doubting for name in DOUBTING_DIAGNOSTICS)


def failed_names(score, drop, **columns):
    early = np.full(5, 10.0)
    given = scores(score, g_early=early, g_late=early - np.asarray(drop, dtype=float), **columns)
    return [failure.name for failure in diagnose_selection(EVIDENCE, [2], given, BASE_LOSSES, QUIET).failed]


def test_a_drop_of_norms_that_rose_everywhere_forbids():
    rises = [-1, -2, -3, -4, -5]
    assert failed_names([-9, -8, -7, -6, -5], rises) == ["norms_fell"]
    assert failed_names([0.2, 0.4, 0.6, 0.8, 1.0], rises, base_score=np.asarray(rises, dtype=float)) == ["norms_fell"]


@pytest.mark.parametrize(
    ("score", "drop"),
    [
        ([9, -8, -7, -6, -5], [1, -2, -3, -4, -5]),  # it fell for one row in five
        ([1, 2, 3, 4, 5], [-1, -2, -3, -4, -5]),  # an inverse variance, or a rank
    ],
)
def test_other_scores_may_do_without_a_drop(score, drop):
    assert failed_names(score, drop) == []
