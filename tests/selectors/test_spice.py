import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.requests import Projections
from gradfiltering.selectors import information
from gradfiltering.selectors.spice import EARLY_STOP, SpiceSelector
from tests.reference.greedy import best_subset, greedy, log_volume

RTOL = 1e-6  # float32 gradients, float64 sums
SETTINGS = {
    "fraction": None, "count": 8, "alpha": 1.0, "conflict": 0.0, "mode": "full", "members": "first", "pool": None,
    "quota": None, "stop_below": None,
}  # fmt: skip


def spice(**changed):
    return SpiceSelector(**{**SETTINGS, **changed})


def draw(count, width, seed=0, members=1):
    return np.random.default_rng(seed).normal(size=(members, count, width)).astype(np.float32)


def penalised_greedy(gradients, size, alpha, conflict, value=None):
    """Every candidate's gain as a difference of dense determinants, at every step."""
    value = value or log_volume(gradients, alpha)
    chosen = []
    for _ in range(size):
        mean = gradients[chosen].astype(float).mean(0) if chosen else np.zeros(gradients.shape[1])
        best, best_value = -1, -np.inf
        for one in range(len(gradients)):
            if one in chosen:
                continue
            own = gradients[one].astype(float)
            cosine = own @ mean / (np.linalg.norm(own) * np.linalg.norm(mean)) if chosen else 0.0
            found = value([*chosen, one]) - value(chosen) - conflict * max(0.0, -cosine)
            if found > best_value:
                best, best_value = one, found
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("alpha", "width"), [(1.0, 6), (0.1, 20), (10.0, 3)])
def test_equals_greedy_with_dense_determinants(alpha, width, seed, evidence):
    gradients = draw(40, width, seed)
    found = spice(alpha=alpha, count=15).select(evidence(range(40), projections=gradients), 40, None)
    order, gains = greedy(log_volume(gradients[0], alpha), 40, 15)
    assert found.trace["example_id"].tolist() == order
    np.testing.assert_allclose(found.trace["gain"], gains, rtol=RTOL)
    np.testing.assert_allclose(found.facts["log_determinant"], log_volume(gradients[0], alpha)(order), rtol=RTOL)


@pytest.mark.parametrize("conflict", [0.1, 1.0, 5.0])
def test_equals_penalised_greedy_with_dense_determinants(conflict, evidence):
    for seed in range(3):
        gradients = draw(40, 5, seed)
        found = spice(conflict=conflict, count=12).select(evidence(range(40), projections=gradients), 40, None)
        assert found.trace["example_id"].tolist() == penalised_greedy(gradients[0], 12, 1.0, conflict)


def test_reaches_the_bound_of_the_best_subset(evidence):
    for seed in range(6):
        gradients = draw(11, 4, seed)
        value = log_volume(gradients[0], 1.0)
        chosen = spice(count=4).select(evidence(range(11), projections=gradients), 11, None).example_ids
        assert value(chosen) >= (1 - 1 / np.e) * best_subset(value, 11, 4)


def test_gain_curve_falls_and_holds_over_many_updates(evidence, monkeypatch):
    monkeypatch.setattr(information, "REFRESH_STEPS", 7)
    gradients = draw(300, 10, 2)
    found = spice(count=200).select(evidence(range(300), projections=gradients), 300, None)
    assert (np.diff(found.trace["gain"]) <= 1e-9).all()
    exact = log_volume(gradients[0], 1.0)(found.example_ids)
    np.testing.assert_allclose(found.facts["log_determinant"], exact, rtol=RTOL)
    assert (found.trace["epsilon"] <= 1e-9).all() and found.trace["epsilon"][0] == 0


def test_large_gradients_keep_their_digits(evidence):
    gradients = draw(200, 8, 3) * 1e3
    found = spice(count=100).select(evidence(range(200), projections=gradients), 200, None)
    exact = log_volume(gradients[0], 1.0)(found.example_ids)
    np.testing.assert_allclose(found.facts["log_determinant"], exact, rtol=1e-5)


def test_diagonal_mode_follows_its_definition(evidence):
    gradients = draw(30, 6, 4)[0]
    found = spice(mode="diagonal", count=10).select(evidence(range(30), projections=gradients[None]), 30, None)
    chosen, diagonal = [], np.ones(6)
    for gain in found.trace["gain"]:
        gains = np.log1p((gradients.astype(float) ** 2 / diagonal).sum(1))
        gains[chosen] = -np.inf
        chosen.append(int(np.argmax(gains)))
        np.testing.assert_allclose(gain, gains.max(), rtol=RTOL)
        diagonal += gradients[chosen[-1]].astype(float) ** 2
    assert found.trace["example_id"].tolist() == chosen


def test_on_axes_the_diagonal_is_the_whole(evidence):
    gradients = (np.eye(5)[np.arange(20) % 5] * np.linspace(1, 3, 20)[:, None])[None]
    given = evidence(range(20), projections=gradients)
    full, diagonal = (spice(mode=mode).select(given, 20, None) for mode in ("full", "diagonal"))
    assert full.trace["example_id"].tolist() == diagonal.trace["example_id"].tolist()
    np.testing.assert_allclose(full.trace["gain"], diagonal.trace["gain"], rtol=RTOL)


@pytest.mark.parametrize("mode", ["full", "diagonal"])
def test_each_pool_gives_its_quota_and_what_was_chosen_before_counts(mode, evidence):
    gradients = draw(50, 6, 5)
    given = evidence(range(50), projections=gradients)
    selector = spice(pool=10, quota=3, count=12, mode=mode)
    pools = [rows for rows, _ in selector.draw_pools(50, 12, given.seed)]
    found = selector.select(given, 50, None).trace["example_id"].reshape(4, 3)
    assert all(set(three) <= set(rows.tolist()) for three, rows in zip(found.tolist(), pools, strict=False))
    if mode == "full":
        value = log_volume(gradients[0], 1.0)
        gains = [value([*found[0], one]) - value(found[0].tolist()) for one in pools[1]]
        assert found[1][0] == pools[1][int(np.argmax(gains))]


def test_pools_share_the_budget(evidence):
    given = evidence(range(53), projections=draw(53, 4))
    pools = spice(pool=10, count=17).draw_pools(53, 17, given.seed)
    assert sum(quota for _, quota in pools) == 17 and sorted(np.concatenate([r for r, _ in pools])) == list(range(53))
    assert len(spice(pool=10, count=17).select(given, 53, None).example_ids) == 17


def test_stops_early_and_says_so(evidence):
    given = evidence(range(40), projections=draw(40, 3, 6))
    whole = spice(count=20).select(given, 40, None)
    found = spice(count=20, stop_below=0.3).select(given, 40, None)
    gains = whole.trace["gain"]
    assert len(found.example_ids) == int((gains >= 0.3 * gains[0]).sum()) < 20 and found.stopped == EARLY_STOP
    assert whole.stopped is None


def test_gradients_of_the_first_member_or_the_mean(evidence):
    gradients = draw(30, 5, 7, members=3)
    given = evidence(range(30), projections=gradients)
    first = spice().select(evidence(range(30), projections=gradients[:1]), 30, None)
    mean = spice().select(evidence(range(30), projections=gradients.mean(0)[None]), 30, None)
    assert spice().select(given, 30, None).example_ids == first.example_ids
    assert spice(members="mean").select(given, 30, None).example_ids == mean.example_ids != first.example_ids


def test_conflict_is_reported(evidence):
    gradients = np.asarray([[[2.0, 0], [-1.9, 0], [0, 1.0]]])
    found = spice(count=3, conflict=0.0).select(evidence(range(3), projections=gradients), 3, None)
    against = found.trace["cosine"] < 0
    assert found.facts["conflict_share"] == against.mean() > 0
    np.testing.assert_allclose(found.facts["mean_conflict"], found.trace["cosine"][against].mean())


def test_a_zero_gradient_adds_nothing(evidence):
    gradients = np.zeros((1, 4, 3))
    gradients[0, 2] = 1
    found = spice(count=4, conflict=0.5).select(evidence(range(4), projections=gradients), 4, None)
    assert found.trace["example_id"].tolist() == [2, 0, 1, 3] and found.trace["gain"][1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"alpha": 0.0}, "alpha must be"), ({"mode": "half"}, "mode must be one of: full, diagonal"),
     ({"members": "last"}, "members must be one of"), ({"quota": 5}, "a quota is at most"),
     ({"pool": 4, "quota": 5}, "a quota is at most"), ({"pool": 0}, "pool must be"),
     ({"stop_below": 1.5}, "stop_below must be")],
)  # fmt: skip
def test_settings_out_of_range(changed, message):
    with pytest.raises(UserError, match=message):
        spice(**changed)


def test_needs_projections_of_the_members_that_it_reads():
    assert spice().requests == {Projections(members=1)} and not SpiceSelector.uses_scores
    assert spice(members="mean").requests == {Projections()}
