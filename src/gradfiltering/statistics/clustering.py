"""Clusters of points."""

import numpy as np

from gradfiltering.seeding import derive_seed

STARTS = 10  # k-means++ starts, of which the best is taken


def assign_clusters(points: np.ndarray, cluster_count: int, seed: int) -> np.ndarray:
    """Assign points to clusters by k-means.

    Args:
        points: [N, D].
        cluster_count: at most this many clusters, and at most N.
        seed: of the run.

    Returns:
        [N] int number of each point's cluster.
    """
    from sklearn.cluster import KMeans

    random_state = derive_seed(seed, "clusters") % 2**32
    cluster_count = min(cluster_count, len(points))
    k_means = KMeans(cluster_count, n_init=STARTS, random_state=random_state)
    cluster_numbers: np.ndarray = k_means.fit_predict(points.astype(np.float64))
    return cluster_numbers
