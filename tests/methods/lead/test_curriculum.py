"""LEAD's choices: clusters of difficulty, quotas per task, the cap on uses, the budget, and going on from a state."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.methods.lead.curriculum import Curriculum, LeadSettings, Pool, cluster_by_difficulty
from gradfiltering.scorers.gsnr import GSNR
from gradfiltering.scorers.ifd import IFD
from gradfiltering.scorers.less import LESS
from tests.reference import lead as reference

IFD_SCORER = IFD("perplexity", "plain", 256, None)
USUAL = LeadSettings(IFD_SCORER, False, 3, 0.1, 0.1, 0.2, 4)
ROWS = 60
ZEROS = np.zeros(ROWS, dtype=np.int64)


@pytest.fixture
def pool():
    rng = np.random.default_rng(5)
    cluster = np.sort(rng.integers(0, 3, ROWS))
    return Pool(np.arange(ROWS) * 2 + 1, cluster, rng.integers(0, 2, ROWS), rng.uniform(1, 4, ROWS))


def is_done(curriculum):
    return curriculum.distinct_rows >= curriculum.budget


def play(pool, settings=USUAL, budget=25, rounds=None, seed=3):
    """A curriculum played to its end, or for some rounds, under made-up losses that fall with every use."""
    curriculum = Curriculum(pool, settings, budget, seed)
    while not is_done(curriculum) and (rounds is None or len(curriculum.history) < rounds):
        play_round(curriculum)
    return curriculum


def play_round(curriculum):
    row_indices = curriculum.select_round()
    losses = curriculum.pool.base_model_losses[row_indices] * 0.8 ** (curriculum.uses[row_indices] + 1)
    return row_indices, curriculum.learn_round(row_indices, losses, loss_change=-0.01 * len(curriculum.history))


@pytest.mark.parametrize(("rate", "most_uses", "budget"), [(0.2, 4, 25), (0.01, 1, 9), (1.0, 2, 41), (0.35, 4, ROWS)])
def test_every_round_is_what_the_twin_would_choose(pool, rate, most_uses, budget):
    settings = replace(USUAL, sample_rate=rate, most_uses=most_uses)
    curriculum = Curriculum(pool, settings, budget, seed=0)
    while not is_done(curriculum):
        idu, uses, left = curriculum.uncertainty.tolist(), curriculum.uses.tolist(), budget - curriculum.distinct_rows
        row_indices, entry = play_round(curriculum)
        expected = reference.picked(
            entry["cluster"],
            pool.cluster_indices.tolist(),
            pool.task_indices.tolist(),
            idu,
            uses,
            rate,
            most_uses,
            left,
        )
        assert set(row_indices.tolist()) == expected and len(row_indices) == len(expected) > 0
    assert curriculum.distinct_rows == budget and curriculum.uses.max() <= most_uses


def test_every_task_of_the_cluster_has_its_quota(pool):
    pool = replace(
        pool,
        base_model_losses=np.where(pool.task_indices == 0, 100.0, 1.0),
        cluster_indices=ZEROS,
    )
    row_indices = Curriculum(pool, replace(USUAL, sample_rate=0.1), ROWS, seed=0).select_round()
    for task in (0, 1):
        assert (pool.task_indices[row_indices] == task).sum() == round(0.1 * (pool.task_indices == task).sum())


def test_used_up_rows_and_clusters_are_not_played(pool):
    pool = replace(pool, cluster_indices=np.where(np.arange(ROWS) < 2, 0, 1), task_indices=ZEROS)
    curriculum = play(pool, replace(USUAL, most_uses=2, sample_rate=0.01), budget=ROWS)
    assert curriculum.uses.max() == 2
    counts = [entry for entry in curriculum.history if entry["cluster"] == 0]
    assert len(counts) == 4, "two rows, each once a round, twice"
    ended = counts[-1]["round"]
    assert all(entry["probability"] == [0.0, 1.0] for entry in curriculum.history[ended:])
    assert len(curriculum.history) > ended


def test_ties_go_to_the_lowest_id(pool):
    pool = replace(
        pool,
        base_model_losses=np.ones(ROWS),
        cluster_indices=ZEROS,
        task_indices=ZEROS,
    )
    assert sorted(Curriculum(pool, USUAL, ROWS, seed=0).select_round()) == list(range(12))


def test_only_trained_rows_change_their_idu(pool):
    curriculum = Curriculum(pool, USUAL, 25, seed=0)
    row_indices, entry = play_round(curriculum)
    changed = curriculum.uncertainty != pool.base_model_losses
    assert set(np.flatnonzero(changed)) == set(row_indices)
    before = pool.base_model_losses[row_indices]
    np.testing.assert_allclose(entry["idu"], reference.smoothed(entry["loss"], 0.0, before, 0.1), rtol=1e-12)
    assert entry["fall"] == pytest.approx(np.mean(before - entry["idu"]))


def test_the_bandit_learns_which_cluster_still_teaches(pool):
    """Where rows of one cluster lose more than others, it is played more than its share."""
    pool = replace(pool, cluster_indices=np.arange(ROWS) % 3, task_indices=ZEROS)
    played = []
    for seed in range(4):
        curriculum = Curriculum(pool, replace(USUAL, most_uses=1000, sample_rate=0.01), ROWS, seed)
        for _ in range(300):
            row_indices = curriculum.select_round()
            fall = 0.5 if pool.cluster_indices[row_indices[0]] == 1 else 0.0
            curriculum.learn_round(row_indices, curriculum.uncertainty[row_indices] - fall, loss_change=0.0)
        played += [entry["cluster"] for entry in curriculum.history]
    assert np.bincount(played)[1] / len(played) > 0.5


def test_the_same_seed_chooses_the_same_and_another_one_does_not(pool):
    assert play(pool).history == play(pool).history
    assert play(pool, seed=4).history != play(pool, seed=3).history


@pytest.mark.parametrize("rounds", [1, 4])
def test_restored_state_continues_with_the_same_rounds(pool, tmp_path, rounds):
    whole, begun = play(pool), play(pool, rounds=rounds)
    arrays, state = begun.export_state()
    np.savez(tmp_path / "arrays.npz", **arrays)
    resumed = Curriculum(pool, USUAL, 25, seed=3)
    resumed.restore_state(np.load(tmp_path / "arrays.npz"), json.loads(json.dumps(state)))
    assert len(resumed.history) == rounds < len(whole.history)
    while not is_done(resumed):
        play_round(resumed)
    assert resumed.history == whole.history
    np.testing.assert_array_equal(resumed.uncertainty, whole.uncertainty)


def test_clusters_are_numbered_from_the_lowest_difficulty():
    rng = np.random.default_rng(0)
    centre = rng.permutation(np.repeat([0.9, 0.1, 0.5], 20))
    found = cluster_by_difficulty(centre + rng.normal(0, 0.01, 60), USUAL, seed=0)
    np.testing.assert_array_equal(found, np.select([centre == 0.1, centre == 0.5], [0, 1], 2))


def test_logarithm_keeps_huge_ratios_from_filling_the_clusters():
    ratio = np.exp(np.random.default_rng(1).normal(0, 2.5, 300))
    plain, log = (cluster_by_difficulty(ratio, replace(USUAL, log_difficulty=log), seed=0) for log in (False, True))
    assert np.bincount(plain).max() > 0.9 * len(ratio) and np.bincount(log).max() < 0.6 * len(ratio)
    with pytest.raises(UserError, match="has no logarithm"):
        cluster_by_difficulty(-ratio, replace(USUAL, log_difficulty=True), seed=0)


def test_fewer_values_than_clusters_give_fewer_clusters():
    assert set(cluster_by_difficulty(np.full(9, 0.7), USUAL, seed=0)) == {0}
    assert cluster_by_difficulty(np.array([2.0, 1.0, 2.0]), USUAL, seed=0).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "change",
    [{"clusters": 0}, {"gamma": 0.0}, {"gamma": 1.5}, {"smoothing": 1.0}, {"sample_rate": 0.0}, {"most_uses": 0},
     {"difficulty": GSNR(1e-8, 0)}, {"difficulty": LESS((1,))}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        replace(USUAL, **change)
