"""Nearest rows of rows: by all distances where these are few enough, else by an index of faiss."""

from typing import Any

import numpy as np

from gradfiltering.errors import UserError

MOST_PAIRS = 20_000**2  # compared one by one; beyond, an index is asked
MOST_BLOCK_ROWS, MOST_BLOCK_PAIRS = 1024, 1024 * 20_000  # of queries, and of their products, that are held at once
LISTS_PER_ROOT = 4  # lists of the index, times the root of the rows
TRAINING_ROWS_PER_LIST = 64
SEARCHED_LISTS = 32


def find_nearest(queries: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows of greatest inner product with each query.

    Up to `MOST_PAIRS` pairs the answer is exact. Beyond, faiss divides the rows into lists by k-means and looks for
    each query through the lists nearest to it (Jégou et al., 2011), so that a few of its nearest rows may be missing.

    Args:
        queries: [n, D] float32.
        rows: [c, D] float32.
        count: K, at most c.

    Returns:
        [n, K] int64 positions, the nearest first, and [n, K] float32 inner products. A position of -1 stands where the
        lists that were looked through hold fewer rows than that.

    Raises:
        UserError: faiss is needed and not installed.
    """
    if len(queries) * len(rows) <= MOST_PAIRS:
        return _compare_all(queries, rows, count)
    index = _build_index(rows)
    products, positions = index.search(np.ascontiguousarray(queries, dtype=np.float32), count)
    return positions, products


def _compare_all(queries: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    positions = np.empty((len(queries), count), dtype=np.int64)
    products = np.empty((len(queries), count), dtype=np.float32)
    block_rows = min(MOST_BLOCK_ROWS, max(1, MOST_BLOCK_PAIRS // len(rows)))
    for start in range(0, len(queries), block_rows):
        block_products = queries[start : start + block_rows] @ rows.T
        nearest = np.argpartition(-block_products, count - 1, axis=1)[:, :count]
        nearest_products = np.take_along_axis(block_products, nearest, axis=1)
        order = np.argsort(-nearest_products, axis=1, kind="stable")
        positions[start : start + block_rows] = np.take_along_axis(nearest, order, axis=1)
        products[start : start + block_rows] = np.take_along_axis(nearest_products, order, axis=1)
    return positions, products


def _build_index(rows: np.ndarray) -> Any:
    """Divide rows into lists; the same rows always give the same index."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "so many rows are too many to compare all with all, and faiss, which finds near ones faster, is not "
            "installed: pip install 'gradfiltering[neighbours]'"
        ) from error
    list_count = int(LISTS_PER_ROOT * np.sqrt(len(rows)))
    quantizer = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFFlat(quantizer, rows.shape[1], list_count, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(SEARCHED_LISTS, list_count)
    index.cp.min_points_per_centroid = 1
    contiguous_rows = np.ascontiguousarray(rows, dtype=np.float32)
    index.train(contiguous_rows[:: max(1, len(rows) // (TRAINING_ROWS_PER_LIST * list_count))])
    index.add(contiguous_rows)
    return index
