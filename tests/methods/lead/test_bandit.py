"""EXP3: probabilities in closed form, arms that drop out, and play that beats chance."""

import numpy as np
import pytest

from gradfiltering.methods.lead.bandit import Exp3, RewardScale

RTOL = 1e-12
ALL = np.ones(4, dtype=bool)


def test_one_reward_moves_uniform_play_as_the_formula_says():
    bandit = Exp3(4, gamma=0.1)
    np.testing.assert_allclose(bandit.compute_probabilities(ALL), 0.25, rtol=RTOL)
    bandit.learn(2, probability=0.25, reward=0.8, playable_count=4)
    weight = np.exp(0.1 * 0.8 / (0.25 * 4))
    expected = [0.9 * (weight if arm == 2 else 1) / (3 + weight) + 0.1 / 4 for arm in range(4)]
    np.testing.assert_allclose(bandit.compute_probabilities(ALL), expected, rtol=RTOL)


def test_no_arm_is_forgotten_and_no_weight_overflows():
    bandit = Exp3(4, gamma=0.1)
    bandit.log_weights[:] = [0, 5e3, -5e3, 4e3]
    found = bandit.compute_probabilities(ALL)
    assert np.isfinite(found).all() and found.min() == pytest.approx(0.1 / 4)
    assert found.sum() == pytest.approx(1)


def test_unplayable_arms_are_never_played():
    bandit = Exp3(4, gamma=0.1)
    bandit.log_weights[:] = [0, 5e3, 0, 0]
    found = bandit.compute_probabilities(np.array([True, False, True, False]))
    np.testing.assert_allclose(found, [0.5, 0, 0.5, 0], rtol=RTOL)


def play(arms: np.ndarray, rounds: int, seed: int, gamma: float) -> float:
    """Mean reward of a bandit on arms that pay 1 with a probability of their own, else −1."""
    rng, bandit, paid = np.random.default_rng(seed), Exp3(len(arms), gamma), 0.0
    playable = np.ones(len(arms), dtype=bool)
    for _ in range(rounds):
        probabilities = bandit.compute_probabilities(playable)
        arm = rng.choice(len(arms), p=probabilities)
        reward = 1.0 if rng.random() < arms[arm] else -1.0
        bandit.learn(arm, probabilities[arm], reward, len(arms))
        paid += reward
    return paid / rounds


def test_it_beats_uniform_play():
    arms = np.array([0.2, 0.3, 0.8, 0.4, 0.3])
    uniform, best = 2 * arms.mean() - 1, 2 * arms.max() - 1
    exp3 = np.mean([play(arms, 1000, seed, 0.1) for seed in range(4)])
    assert np.mean([play(arms, 1000, seed, 1.0) for seed in range(4)]) == pytest.approx(uniform, abs=0.05)
    assert exp3 > uniform + 0.5 * (best - uniform), "the bandit does not find the arm that pays"


def test_rewards_are_scaled_by_the_range_seen_so_far():
    scale = RewardScale()
    assert [scale.rescale(value) for value in (3.0, 3.0, 5.0, 3.0, 4.0, 1.0, 2.0)] == [0, 0, 1, -1, 0, -1, -0.5]
