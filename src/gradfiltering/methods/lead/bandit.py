"""EXP3, a bandit for rewards of unknown origin, and a scale for rewards of unknown range."""

import math
from dataclasses import dataclass

import numpy as np


class Exp3:
    r"""Plays one of K arms at a time (Auer et al., SIAM J. Comput. 2002, figure 1).

    \(p_k = (1 − γ) w_k / Σ_j w_j + γ / K\), and the played arm gets \(w_k ← w_k e^{γ r / (p_k
    K)}\), where K counts the arms that can still be played.

    Args:
        arm_count: number of arms.
        gamma: share of play that is spread evenly.

    Attributes:
        log_weights: [K] float64, ln w.
    """

    def __init__(self, arm_count: int, gamma: float):
        self.gamma = gamma
        self.log_weights = np.zeros(arm_count)

    def compute_probabilities(self, playable_arms: np.ndarray) -> np.ndarray:
        """Return the [K] float64 probability of playing each arm next, 0 for those that cannot be played.

        Args:
            playable_arms: [K] bool, at least one of them true.
        """
        shifted_weights = np.exp(
            self.log_weights - self.log_weights[playable_arms].max(),
            where=playable_arms,
            out=np.zeros(len(playable_arms)),
        )
        exploitation = (1 - self.gamma) * shifted_weights / shifted_weights.sum()
        return np.where(playable_arms, exploitation + self.gamma / playable_arms.sum(), 0.0)

    def learn(self, played_arm: int, probability: float, reward: float, playable_count: int) -> None:
        """Take in the reward of the arm that was played.

        Args:
            played_arm: the arm.
            probability: with which it was played.
            reward: in [−1, 1].
            playable_count: number of arms that could have been played.
        """
        self.log_weights[played_arm] += self.gamma * reward / (probability * playable_count)


@dataclass
class RewardScale:
    """Maps rewards to [−1, 1] by the range seen so far.

    Attributes:
        low, high: least and greatest reward so far.
    """

    low: float = math.inf
    high: float = -math.inf

    def rescale(self, reward: float) -> float:
        """Return the reward's position between the extremes so far, itself included; 0 while all are equal."""
        self.low, self.high = min(self.low, reward), max(self.high, reward)
        return 0.0 if self.high == self.low else 2 * (reward - self.low) / (self.high - self.low) - 1
