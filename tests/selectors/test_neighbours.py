"""Nearest rows: exact where few are compared, nearly all of them by the index; and selection by them."""

import sys
import tracemalloc

import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.selectors import neighbours as module
from gradfiltering.selectors.facility_location import FacilityLocationSelector, unit_rows
from gradfiltering.selectors.neighbours import find_nearest
from tests.reference.greedy import facility_location, greedy


def clusters(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit_rows(rng.normal(size=(50, width))[rng.integers(50, size=count)] + 0.4 * rng.normal(size=(count, width)))


@pytest.mark.parametrize(("block_rows", "block_pairs"), [(7, 10_000), (1024, 7 * 80), (1024, 1), (1024, 10_000)])
def test_few_rows_are_compared_with_all(block_rows, block_pairs, monkeypatch):
    monkeypatch.setattr(module, "MOST_BLOCK_ROWS", block_rows)
    monkeypatch.setattr(module, "MOST_BLOCK_PAIRS", block_pairs)
    queries, rows = clusters(30, seed=1), clusters(80)
    positions, products = find_nearest(queries, rows, 5)
    expected = np.argsort(-(queries @ rows.T), axis=1)[:, :5]
    assert positions.tolist() == expected.tolist()
    np.testing.assert_allclose(products, np.take_along_axis(queries @ rows.T, expected, 1), rtol=1e-6)


def test_few_queries_among_many_rows_are_compared_in_little_memory(monkeypatch):
    rows = unit_rows(np.random.default_rng(0).standard_normal((10_000, 4), dtype=np.float32))
    monkeypatch.setattr(module, "MOST_BLOCK_PAIRS", 64 * len(rows))
    tracemalloc.start()
    positions, products = find_nearest(rows[:256], rows, 3)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert positions[:, 0].tolist() == list(range(256))
    np.testing.assert_allclose(products[:, 0], 1, rtol=1e-6)
    assert most_bytes < 0.4 * 16 * 256 * len(rows)  # products, the same negative, and an order: 16 bytes a pair


def test_the_index_finds_nearly_all_nearest_rows(monkeypatch):
    rows = clusters(2000)
    exact, _ = find_nearest(rows, rows, 10)
    monkeypatch.setattr(module, "MOST_PAIRS", 1000)
    found, products = find_nearest(rows, rows, 10)
    recall = np.mean([len(set(some) & set(others)) / 10 for some, others in zip(exact, found, strict=True)])
    assert recall > 0.95
    np.testing.assert_allclose(products[:, 0], 1, atol=1e-5)
    again, _ = find_nearest(rows, rows, 10)
    assert (again == found).all(), "the same rows gave another index"


def similarities_within(points, count):
    """Similarity of each row to all rows; beyond its `count` nearest that to the last of them."""
    whole = 1 / (1 + np.linalg.norm(points[:, None] - points[None], axis=2))
    return np.maximum(whole, np.sort(whole, axis=1)[:, [-count]])


def test_selection_is_greedy_over_the_neighbours(evidence):
    points = clusters(120, 4)
    selector = FacilityLocationSelector(None, 15, neighbours=12)
    found = selector.select(evidence(range(120), embeddings=points), 120, None)
    similarity = similarities_within(points, 12)
    order, gains = greedy(facility_location(similarity), 120, 15)
    assert found.trace["example_id"].tolist() == order
    np.testing.assert_allclose(found.trace["gain"][1:], gains[1:], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.facts["coverage"], similarity[:, order].max(1).mean(), rtol=1e-4)


def test_as_many_neighbours_as_rows_change_nothing(evidence):
    points = clusters(60, 4)
    rows = evidence(range(60), embeddings=points)
    whole, limited = (
        FacilityLocationSelector(None, 8, neighbours=count).select(rows, 60, None) for count in (None, 60)
    )
    assert whole.trace["example_id"].tolist() == limited.trace["example_id"].tolist()


@pytest.mark.parametrize("shards", [1, 4])
def test_coverage_by_an_index_comes_near_that_of_all_rows(shards, evidence, monkeypatch):
    points = clusters(800, 8)
    rows = evidence(range(800), embeddings=points)
    exact = FacilityLocationSelector(None, 40)
    monkeypatch.setattr(module, "MOST_PAIRS", 1000)
    by_index = FacilityLocationSelector(None, 40, neighbours=60, shards=shards)
    best, reached = (
        exact.coverage_of(points, points[selector.select(rows, 800, None).example_ids])
        for selector in (exact, by_index)
    )
    assert 0.95 * best <= reached <= 1.01 * best


def test_without_faiss_the_install_command_is_named(monkeypatch, evidence):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(module, "MOST_PAIRS", 1000)
    rows = evidence(range(200), embeddings=clusters(200))
    with pytest.raises(UserError, match=r"pip install 'gradfiltering\[neighbours\]'") as refused:
        FacilityLocationSelector(None, 8, neighbours=5).select(rows, 200, None)
    assert refused.value.arguments == ("neighbours",)
