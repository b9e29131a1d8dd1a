"""Selection in shards and then among their picks: against one round, the best subset, and the bounds that are known."""

import itertools
import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.selectors.facility_location import FacilityLocationSelector
from gradfiltering.selectors.k_center import KCenterSelector, covering_radius
from gradfiltering.selectors.spice import SpiceSelector
from gradfiltering.selectors.two_rounds import divide_rows, select_in_two_rounds
from tests.reference.greedy import best_subset, facility_location, log_volume

FREE_SPICE = SpiceSelector(None, 10, conflict=0.0)
SELECTORS = {
    "facility_location": FacilityLocationSelector(None, 10),
    "cosine": FacilityLocationSelector(None, 10, "cosine"),
    "k_center": KCenterSelector(None, 10),
    "spice": FREE_SPICE,
    "spice, diagonal": replace(FREE_SPICE, mode="diagonal"),
    "spice with conflicts": replace(FREE_SPICE, conflict=0.1),
}


def clusters(count: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(20, width))[rng.integers(20, size=count)] + 0.3 * rng.normal(size=(count, width))).astype(
        np.float32
    )


def make(evidence, points, seed=0):
    return evidence(3 * np.arange(len(points)), seed=seed, embeddings=points, projections=points[None])


def similarity(points, kind):
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    if kind == "cosine":
        return np.maximum(unit @ unit.T, 0)
    return 1 / (1 + np.linalg.norm(unit[:, None] - unit[None], axis=2))


def value_function(selector, points):
    """What the selector makes large, by its definition."""
    if isinstance(selector, FacilityLocationSelector):
        return facility_location(similarity(points, selector.similarity))
    if isinstance(selector, SpiceSelector):
        return log_volume(points, selector.alpha)
    return lambda rows: -np.linalg.norm(points[:, None] - points[None, list(rows)], axis=2).min(1).max()


def select_positions(selector, evidence, points, seed=0):
    return [row // 3 for row in selector.select(make(evidence, points, seed), len(points), None).example_ids]


@pytest.mark.parametrize("name", ["spice", "spice, diagonal", "spice with conflicts", "k_center"])
def test_only_one_shard_is_copied_at_a_time(name, evidence):
    points = clusters(100_000, 32, seed=0)
    all_rows = make(evidence, points)
    tracemalloc.start()
    selection = replace(SELECTORS[name], shards=20).select(all_rows, len(points), None)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(selection.example_ids) == 10
    assert most_bytes < points.nbytes / 2


def test_rows_are_divided_at_random_into_equal_parts():
    shards = divide_rows(103, 10, seed=0)
    assert sorted(np.concatenate(shards).tolist()) == list(range(103))
    assert {len(shard) for shard in shards} == {10, 11} and all((np.diff(shard) > 0).all() for shard in shards)
    again, other = divide_rows(103, 10, seed=0), divide_rows(103, 10, seed=1)
    assert all((first == second).all() for first, second in zip(shards, again, strict=True))
    assert any(first.tolist() != second.tolist() for first, second in zip(shards, other, strict=True))
    assert [shard.tolist() for shard in divide_rows(2, 5, seed=0)] in ([[0], [1]], [[1], [0]])


# The least share of the one-round value over five divisions, as observed and rounded down.
@pytest.mark.parametrize(
    ("name", "least_share"),
    [("facility_location", 0.97), ("cosine", 0.96), ("spice", 0.96), ("spice, diagonal", 0.93)],
)
def test_values_come_near_those_of_one_round(name, least_share, evidence):
    points, selector = clusters(400, 6, 0), SELECTORS[name]
    value = value_function(selector, points)
    in_one_round = value(select_positions(selector, evidence, points))
    shares = [
        value(select_positions(replace(selector, shards=5), evidence, points, seed)) / in_one_round for seed in range(5)
    ]
    assert min(shares) >= least_share and max(shares) <= 1.03, shares


def test_radii_come_near_those_of_one_round(evidence):
    points = clusters(400, 6, 0)
    radius = value_function(SELECTORS["k_center"], points)
    in_one_round = -radius(select_positions(SELECTORS["k_center"], evidence, points))
    for seed in range(5):
        chosen = KCenterSelector(None, 10, shards=5).select(make(evidence, points, seed), 400, None)
        observed = -radius([row // 3 for row in chosen.example_ids])
        np.testing.assert_allclose(chosen.facts["radius"], observed, rtol=1e-4)
        assert observed <= 1.35 * in_one_round


@pytest.mark.parametrize("name", ["cosine", "spice"])
def test_values_keep_the_bounds_of_the_best_subset(name, evidence):
    selector = replace(SELECTORS[name], count=3, shards=2)
    for instance in range(3):
        points = clusters(14, 3, instance)
        value = value_function(selector, points)
        best = best_subset(value, 14, 3)
        shares = [value(select_positions(selector, evidence, points, seed)) / best for seed in range(10)]
        # With few rows the sum over a sample of the rows stands for that over all, so this is looser than the theorem.
        assert min(shares) >= (1 - 1 / np.e) ** 2 / 2, shares
        assert np.mean(shares) >= (1 - 1 / np.e) / 2


def test_radii_keep_four_times_the_best(evidence):
    for instance, seed in itertools.product(range(5), range(4)):
        points = clusters(14, 2, instance)
        radius = value_function(SELECTORS["k_center"], points)
        best = min(-radius(rows) for rows in itertools.combinations(range(14), 3))
        chosen = select_positions(KCenterSelector(None, 3, shards=2), evidence, points, seed)
        assert -radius(chosen) <= 4 * best + 1e-6


@pytest.mark.parametrize("name", SELECTORS)
def test_the_budget_is_filled_and_the_rounds_are_told(name, evidence):
    points = clusters(200, 4, 1)
    selection = replace(SELECTORS[name], shards=4).select(make(evidence, points), 200, None)
    assert len(selection.example_ids) == 10 and len(set(selection.example_ids)) == 10
    assert sorted(selection.trace["example_id"].tolist()) == selection.example_ids
    assert selection.facts["shards"] == 4 and selection.facts["selected_in_shards"] == 40
    assert selection.facts["budget_in_each_shard"] is True
    again = replace(SELECTORS[name], shards=4).select(make(evidence, points), 200, None)
    assert again.example_ids == selection.example_ids


@pytest.mark.parametrize("name", SELECTORS)
def test_a_large_budget_is_filled_from_twice_as_many_rows(name, evidence):
    points = clusters(200, 4, 1)
    selection = replace(SELECTORS[name], count=60, shards=4).select(make(evidence, points), 200, None)
    assert len(set(selection.example_ids)) == 60
    assert selection.facts["selected_in_shards"] == 120 and selection.facts["budget_in_each_shard"] is False


@pytest.mark.parametrize("name", SELECTORS)
def test_a_budget_of_all_rows_takes_all(name, evidence):
    points = clusters(30, 4, 1)
    selection = replace(SELECTORS[name], count=30, shards=4).select(make(evidence, points), 30, None)
    assert selection.example_ids == [3 * row for row in range(30)]


@pytest.mark.parametrize("name", SELECTORS)
def test_one_shard_is_the_selection_of_one_round(name, evidence):
    points = clusters(120, 4, 2)
    first, second = (
        selector.select(make(evidence, points), 120, None)
        for selector in (SELECTORS[name], replace(SELECTORS[name], shards=1))
    )
    assert first.trace["example_id"].tolist() == second.trace["example_id"].tolist() and first.facts == second.facts
    assert "shards" not in first.facts


@dataclass
class Picks:
    selected: list[int]


def first_of(rows, count) -> Picks:
    return Picks(list(range(count)))


def test_the_best_shard_is_taken_where_the_union_is_worse():
    def value_of(rows, picks) -> float:
        """Rows of one shard are worth most, and those of a mixture nothing."""
        owners = {shard for shard, part in enumerate(shards) for row in rows[picks.selected] if row in part}
        return 0.0 if len(owners) > 1 else 1.0 + owners.pop()

    shards = divide_rows(40, 4, seed=3)
    outcome = select_in_two_rounds(40, 5, 4, 3, first_of, first_of, value_of)
    assert outcome.candidates.tolist() == shards[3].tolist()
    assert outcome.selected_rows.tolist() == shards[3][:5].tolist()
    without_values = select_in_two_rounds(40, 5, 4, 3, first_of, first_of, None)
    union = np.sort(np.concatenate([shard[:5] for shard in shards]))
    assert without_values.selected_rows.tolist() == union[:5].tolist()


def test_covering_radii_are_those_of_all_distances(monkeypatch):
    monkeypatch.setattr("gradfiltering.selectors.k_center.BLOCK_ROWS", 7)
    monkeypatch.setattr("gradfiltering.selectors.k_center.BLOCK_CENTRES", 2)
    points, centres = clusters(50, 3, 0), clusters(5, 3, 1)
    expected = np.linalg.norm(points[:, None] - centres[None], axis=2).min(1).max()
    np.testing.assert_allclose(covering_radius(points, centres), expected, rtol=1e-5)


def test_shards_and_pools_are_refused_together():
    with pytest.raises(UserError, match="in pools or in shards") as refused:
        SpiceSelector(None, 10, pool=50, shards=2)
    assert refused.value.arguments == ("shards", "pool")
