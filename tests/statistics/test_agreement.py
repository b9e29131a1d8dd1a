"""Agreement between raters: slow twins, other libraries and published annotations."""

import json

import pytest

from gradfiltering.judging.ratings import majority_label
from gradfiltering.statistics.agreement import cohen_kappa, fleiss_kappa, measure_agreements
from tests.reference import statistics as slow


def test_kappas_agree_with_their_slow_twins():
    rows = [("a", "a", "b"), ("b", "b", "b"), ("c", "a", "c"), ("a", "a", "a"), ("b", "c", "b"), ("a", "b", "a")]
    one, other, _ = zip(*rows, strict=True)
    assert cohen_kappa(one, other) == pytest.approx(slow.cohen_kappa(one, other), abs=1e-12)
    assert fleiss_kappa(rows) == pytest.approx(slow.fleiss_kappa(rows), abs=1e-12)
    assert cohen_kappa("aa", "aa") is None and fleiss_kappa([("a", "a", "a")]) is None


def test_agreement_equals_scikit_learn_and_statsmodels(shared_data):
    """Expected: cohen_kappa_score of scikit-learn 1.9.1, fleiss_kappa of statsmodels 0.15.0."""
    rows = json.loads((shared_data / "human" / "pandalm_testset_v1.json").read_text("utf-8"))
    raters = {f"{n}": {row["idx"]: str(row[f"annotator{n}"]) for row in rows} for n in (1, 2, 3)}
    found = {one.raters: one for one in measure_agreements(raters, 500, 0.95, seed=0)}
    expected = {("1", "2"): 0.8520226785167024, ("1", "3"): 0.8789438112500384, ("2", "3"): 0.8616614540762907,
                ("1", "2", "3"): 0.864175364997549}  # fmt: skip
    assert {group: one.kappa for group, one in found.items()} == pytest.approx(expected, abs=1e-12)
    assert all(one.kappa_low < one.kappa < one.kappa_high and one.items == 999 for one in found.values())
    assert found["1", "2"].share == pytest.approx(0.9129129129129129, abs=1e-12)

    names = {"1": "first", "2": "second", "0": "tie"}
    people = {row["idx"]: majority_label([names[raters[n][row["idx"]]] for n in raters]) for row in rows}
    replies = json.loads((shared_data / "human" / "pandalm_gpt35_verdicts.json").read_text("utf-8"))
    # 25 replies of GPT-3.5 hold no verdict; they are no ties.
    labels = {"1": "first", "2": "second", "Tie": "tie"}
    machine = {row["idx"]: labels[row["gpt_result"]] for row in replies if row["gpt_result"] in labels}
    (pair,) = measure_agreements({"people": people, "gpt-3.5": machine}, 500, 0.95, seed=0)
    assert (pair.items, pair.share) == (974, pytest.approx(0.715605749486653, abs=1e-12))
    assert pair.kappa == pytest.approx(0.49286471530289244, abs=1e-12)
