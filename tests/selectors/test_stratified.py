import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradfiltering.errors import UserError
from gradfiltering.requests import Embeddings
from gradfiltering.scorers.base import Scores
from gradfiltering.selectors.stratified import StratifiedSelector, share_out
from gradfiltering.selectors.top import TopSelector


@pytest.mark.parametrize("how", ["proportional", "equal"])
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), share=st.floats(0, 1))
def test_quotas_are_the_budget_and_no_more_than_there_is(how, sizes, share):
    sizes = np.asarray(sizes)
    budget = int(share * sizes.sum())
    quotas = share_out(budget, sizes, how)
    assert quotas.sum() == budget and (quotas <= sizes).all() and (quotas >= 0).all()
    if how == "proportional" and sizes.sum():
        assert (np.abs(quotas - budget * sizes / sizes.sum()) < 1).all()
    if how == "equal":
        assert all(one >= quotas.max() - 1 or one == size for one, size in zip(quotas, sizes, strict=True))


def test_the_best_of_each_source(ids, scores, evidence):
    sources = np.asarray(["a" if n < 20 else "b" for n in ids.tolist()])
    given = evidence(ids, sources=sources)
    found = StratifiedSelector(None, 6, "source", 1, "equal").select(given, 25, scores)
    for name in "ab":
        inside = sources == name
        best = ids[inside][np.argsort(-scores.score[inside])[:3]]
        assert set(best) <= set(found.example_ids)
    assert found.facts["strata"] == {"a": {"rows": 17, "selected": 3}, "b": {"rows": 4, "selected": 3}}


def test_one_stratum_is_the_top(ids, scores, evidence):
    given = evidence(ids, response_tokens=np.full(len(ids), 3))
    found = StratifiedSelector(0.2, None, "length", 5, "proportional").select(given, 25, scores)
    assert found.example_ids == TopSelector(0.2, None).select(given, 25, scores).example_ids


def test_length_bins_each_give_their_share(evidence):
    lengths = np.random.default_rng(0).permutation(100)
    given = evidence(range(100), response_tokens=lengths)
    by_length = Scores(np.arange(100), lengths.astype(float))  # the top alone would hold long rows only
    found = StratifiedSelector(0.2, None, "length", 10, "proportional").select(given, 100, by_length)
    assert np.bincount(lengths[found.example_ids] // 10).tolist() == [2] * 10


def test_each_cluster_gives_its_share(evidence):
    points = np.repeat([[0.0, 0], [50, 0], [0, 50]], 10, axis=0) + np.random.default_rng(1).normal(size=(30, 2))
    selector = StratifiedSelector(None, 6, "cluster", 3, "equal")
    chosen = selector.select(evidence(range(30), embeddings=points), 30, Scores(np.arange(30), np.arange(30.0)))
    assert np.bincount(np.asarray(chosen.example_ids) // 10).tolist() == [2, 2, 2]


def test_rows_without_a_score_are_not_chosen(evidence):
    given = evidence(range(10), sources=np.asarray(["a", "b"] * 5))
    some = Scores(np.asarray([0, 1, 2, 4]), np.asarray([1.0, 2.0, 3.0, 4.0]))
    assert StratifiedSelector(None, 4, "source", 1, "equal").select(given, 10, some).example_ids == [0, 1, 2, 4]


def test_settings_and_needs(ids, scores, evidence):
    assert StratifiedSelector(0.1, None, "cluster", 3, "equal").requests == {Embeddings()}
    assert StratifiedSelector(0.1, None, "length", 3, "equal").requests == frozenset()
    assert StratifiedSelector.uses_scores
    with pytest.raises(UserError, match="by must be one of"):
        StratifiedSelector(0.1, None, "colour", 3, "equal")
    with pytest.raises(UserError, match="quota must be one of"):
        StratifiedSelector(0.1, None, "length", 3, "fair")
    with pytest.raises(UserError, match="strata must be"):
        StratifiedSelector(0.1, None, "length", 0, "equal")
    with pytest.raises(UserError, match="no column 'source'"):
        StratifiedSelector(0.1, None, "source", 3, "equal").select(evidence(ids), 25, scores)
