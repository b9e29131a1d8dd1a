import itertools

import numpy as np

from gradfiltering.requests import Embeddings
from gradfiltering.selectors.k_center import KCenterSelector

RTOL = 1e-4  # distances of float32 vectors


def radius(points, chosen):
    return np.linalg.norm(points[:, None] - points[None, list(chosen)], axis=2).min(1).max()


def test_equals_the_naive_choice(evidence):
    points = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    found = KCenterSelector(None, 12).select(evidence(range(60), embeddings=points), 60, None)
    order = [int(np.argmin(np.linalg.norm(points - points.mean(0), axis=1)))]
    while len(order) < 12:
        order.append(int(np.argmax(np.linalg.norm(points[:, None] - points[None, order], axis=2).min(1))))
    assert found.trace["example_id"].tolist() == order
    np.testing.assert_allclose(found.facts["radius"], radius(points, order), rtol=RTOL)


def test_covers_within_twice_the_smallest_radius(evidence):
    for seed in range(5):
        points = np.random.default_rng(seed).normal(size=(10, 2))
        best = min(radius(points, some) for some in itertools.combinations(range(10), 3))
        chosen = KCenterSelector(None, 3).select(evidence(range(10), embeddings=points), 10, None).example_ids
        assert radius(points, chosen) <= 2 * best + 1e-6


def test_distances_fall_and_copies_come_last(evidence):
    points = np.asarray([[0, 0], [0, 0], [5, 0], [5, 0], [0, 9], [1, 1]])
    found = KCenterSelector(None, 6).select(evidence(range(6), embeddings=points), 6, None)
    distances = found.trace["distance"]
    assert np.isinf(distances[0]) and (np.diff(distances[1:]) <= 0).all() and distances[-1] == 0
    assert found.example_ids == list(range(6)) and found.facts["radius"] == 0
    assert KCenterSelector.requests == {Embeddings()} and not KCenterSelector.uses_scores
