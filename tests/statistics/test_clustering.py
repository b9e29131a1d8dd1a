import numpy as np

from gradfiltering.statistics.clustering import assign_clusters


def test_finds_separate_groups_and_depends_on_the_seed_alone():
    centres = np.repeat([[0.0, 0], [50, 0], [0, 50]], 10, axis=0)
    points = centres + np.random.default_rng(1).normal(size=(30, 2))
    clusters = assign_clusters(points, 3, seed=0)
    assert [len(set(clusters[start : start + 10])) for start in (0, 10, 20)] == [1, 1, 1]
    assert len(set(clusters)) == 3
    assert np.array_equal(clusters, assign_clusters(points, 3, seed=0))


def test_there_are_no_more_clusters_than_points():
    assert sorted(assign_clusters(np.asarray([[0.0], [5.0]]), 7, seed=0)) == [0, 1]
