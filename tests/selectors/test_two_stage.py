from dataclasses import replace

import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import Embeddings
from gradfiltering.selectors.facility_location import FacilityLocationSelector
from gradfiltering.selectors.random import RandomSelector
from gradfiltering.selectors.stratified import StratifiedSelector
from gradfiltering.selectors.top import TopSelector
from gradfiltering.selectors.two_stage import TwoStageSelector


def make(fraction=0.2, first=0.5, second=None):
    return TwoStageSelector(
        fraction, None, TopSelector(first, None), second or FacilityLocationSelector(fraction, None, "euclidean")
    )


def test_the_second_chooses_among_what_the_first_chose(ids, scores, evidence):
    points = np.random.default_rng(0).normal(size=(len(ids), 3))
    found = make().select(evidence(ids, embeddings=points), 25, scores)
    wide = TopSelector(0.5, None).select(evidence(ids), len(ids), scores).example_ids
    rows = np.searchsorted(ids, wide)
    narrow = FacilityLocationSelector(0.2, None, "euclidean").select(evidence(wide, embeddings=points[rows]), 25, None)
    assert found.example_ids == narrow.example_ids and set(found.example_ids) <= set(wide)
    assert found.facts["first_selected"] == len(wide) == 11 and len(found.example_ids) == 5


@pytest.mark.parametrize("others", [0, 5, 50])
def test_the_first_cut_is_a_share_of_the_rows_that_can_be_selected(ids, scores, evidence, others):
    filtered = TwoStageSelector(None, 4, TopSelector(0.6, None), RandomSelector(None, 4))
    found = filtered.select(evidence(ids), len(ids) + others, scores)
    best = TopSelector(0.6, None).select(evidence(ids), len(ids), scores).example_ids
    assert found.facts["first_selected"] == len(best) == 13
    assert set(found.example_ids) <= set(best) and len(found.example_ids) == 4


def test_facts_of_both_cuts_are_kept(ids, scores, evidence):
    by_length = StratifiedSelector(0.5, None, "length", 2, "equal")
    selector = replace(make(second=replace(by_length, fraction=0.2)), first=by_length)
    found = selector.select(evidence(ids, response_tokens=np.arange(len(ids))), 25, scores)
    selected = [
        sum(stratum["selected"] for stratum in found.facts[name].values()) for name in ("first_strata", "strata")
    ]
    assert selected == [found.facts["first_selected"], len(found.example_ids)] == [11, 5]


def test_a_first_cut_that_leaves_fewer_rows_than_the_budget_says_so(ids, scores, evidence):
    selector = TwoStageSelector(0.5, None, TopSelector(0.5, None), RandomSelector(0.5, None))
    found = selector.select(evidence(ids), 25, scores)
    assert len(found.example_ids) == 11 and selector.budget_rows(25) == 13
    assert found.stopped == "the first cut leaves 11 rows; raise its budget"
    assert selector.select(evidence(ids), len(ids), scores).stopped is None


def test_needs_are_those_of_both():
    assert make().requests == {Embeddings()} and make().uses_scores


def test_stages_that_choose_alike_are_one(ids, scores, evidence):
    chosen = make(second=TopSelector(0.2, None)).select(evidence(ids), 25, scores).example_ids
    assert chosen == TopSelector(0.2, None).select(evidence(ids), 25, scores).example_ids


def test_budgets_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="first cut leaves 50 of 500 rows, and 100 are to be selected"):
        make(first=0.1).budget_rows(500)
    with pytest.raises(UserError, match="second is to select 50 rows and the whole 100"):
        make(second=RandomSelector(0.1, None)).budget_rows(500)
    assert make().budget_rows(500) == 100
