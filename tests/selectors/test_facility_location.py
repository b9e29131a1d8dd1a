import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import Embeddings
from gradfiltering.selectors.facility_location import FacilityLocationSelector, unit_rows
from tests.reference.greedy import best_subset, facility_location, greedy

RTOL = 1e-5  # similarities are float32


def similarity_by_definition(points, kind):
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    if kind == "cosine":
        return np.maximum(unit @ unit.T, 0)
    return 1 / (1 + np.linalg.norm(unit[:, None] - unit[None], axis=2))


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lazy_greedy_equals_naive_greedy(similarity, seed, evidence):
    points = np.random.default_rng(seed).normal(size=(150, 6))
    ids = np.arange(150) * 2
    found = FacilityLocationSelector(None, 20, similarity).select(evidence(ids, embeddings=points), 300, None)
    order, gains = greedy(facility_location(similarity_by_definition(points, similarity)), 150, 20)
    assert found.trace["example_id"].tolist() == ids[order].tolist()
    np.testing.assert_allclose(found.trace["gain"], gains, rtol=RTOL, atol=1e-4)
    assert found.example_ids == sorted(ids[order].tolist())


def test_reaches_the_bound_of_the_best_subset(evidence):
    for seed in range(5):
        points = np.random.default_rng(seed).normal(size=(11, 3))
        value = facility_location(similarity_by_definition(points, "cosine"))
        chosen = FacilityLocationSelector(None, 3, "cosine").select(evidence(range(11), embeddings=points), 11, None)
        assert value(chosen.example_ids) >= (1 - 1 / np.e) * best_subset(value, 11, 3)


def test_gains_only_fall_and_copies_add_nothing(evidence):
    points = np.repeat(np.random.default_rng(3).normal(size=(5, 4)), 4, axis=0)
    found = FacilityLocationSelector(None, 8, "euclidean").select(evidence(range(20), embeddings=points), 20, None)
    gains = found.trace["gain"]
    assert (np.diff(gains) <= 1e-4).all()
    assert len(set(found.trace["example_id"][:5] // 4)) == 5, "one of each group before any copy"
    np.testing.assert_allclose(gains[5:], 0, atol=1e-4)


def test_length_of_the_vectors_does_not_matter(evidence):
    points = np.random.default_rng(4).normal(size=(40, 5))
    stretched = points * np.random.default_rng(5).uniform(0.5, 2, (40, 1))
    selector = FacilityLocationSelector(0.2, None, "cosine")
    first, second = (selector.select(evidence(range(40), embeddings=some), 40, None) for some in (points, stretched))
    assert first.example_ids == second.example_ids


def test_a_zero_vector_stays_one():
    assert unit_rows(np.zeros((1, 3), dtype=np.float32)).tolist() == [[0, 0, 0]]


def test_settings_and_need():
    assert FacilityLocationSelector.requests == {Embeddings()} and not FacilityLocationSelector.uses_scores
    with pytest.raises(UserError, match="similarity must be one of: euclidean, cosine"):
        FacilityLocationSelector(0.1, None, "dot")
