"""EXP3, a bandit that assumes nothing about how its rewards come about, and a scale for rewards of unknown range."""

import math
from dataclasses import dataclass

import numpy as np


class Exp3:
    r"""Plays one of K arms at a time (Auer et al., SIAM J. Comput. 2002, figure 1).

    \(p_k = (1 − γ) w_k / Σ_j w_j + γ / K\), and the arm that was played gets \(w_k ← w_k e^{γ r / (p_k K)}\), where K
    counts the arms that can still be played.

    Args:
        arms: how many there are.
        gamma: share of play that is spread evenly.

    Attributes:
        log_weights: [K] float64, ln w.
    """

    def __init__(self, arms: int, gamma: float):
        self.gamma = gamma
        self.log_weights = np.zeros(arms)

    def probabilities(self, playable: np.ndarray) -> np.ndarray:
        """[K] float64 with which each arm is played next, 0 for those that cannot be.

        Args:
            playable: [K] bool, at least one of them true.
        """
        shifted = np.exp(
            self.log_weights - self.log_weights[playable].max(), where=playable, out=np.zeros(len(playable))
        )
        return np.where(playable, (1 - self.gamma) * shifted / shifted.sum() + self.gamma / playable.sum(), 0.0)

    def learn(self, arm: int, probability: float, reward: float, arms: int) -> None:
        """Takes in what playing an arm brought.

        Args:
            arm: that was played.
            probability: with which it was.
            reward: in [−1, 1].
            arms: how many could be played.
        """
        self.log_weights[arm] += self.gamma * reward / (probability * arms)


@dataclass
class RewardScale:
    """Maps rewards to [−1, 1] by the range seen so far.

    Attributes:
        low, high: least and greatest reward seen.
    """

    low: float = math.inf
    high: float = -math.inf

    def __call__(self, reward: float) -> float:
        """The reward's place between the least and the greatest so far, itself included; 0 while all are the same."""
        self.low, self.high = min(self.low, reward), max(self.high, reward)
        return 0.0 if self.high == self.low else 2 * (reward - self.low) / (self.high - self.low) - 1
