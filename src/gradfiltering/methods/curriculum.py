"""LEAD's choices (arXiv 2505.07437): which rows the next round trains on, and what the round teaches about them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from gradfiltering.errors import UserError
from gradfiltering.methods.bandit import Exp3, RewardScale
from gradfiltering.methods.dynamic_uncertainty import smoothed
from gradfiltering.scorers.base import Scorer
from gradfiltering.seeding import numpy_rng
from gradfiltering.selectors.stratified import assign_clusters


@dataclass(frozen=True)
class LeadSettings:
    """How a target chooses its rows as it trains.

    Attributes:
        difficulty: scorer by which rows are clustered, under the bare target.
        log_difficulty: cluster by the logarithm. IFD is a ratio; under a weak target it spans orders of magnitude, and
            k-means then puts nearly all rows into one cluster.
        clusters: K of k-means.
        gamma: share of the bandit's play that is spread evenly over the clusters.
        smoothing: b, the weight of a row's former IDU.
        sample_rate: share of a task's rows in the chosen cluster that one round trains on, at least one row.
        most_uses: how often a row is trained on at most.
        checkpoint_minutes: what training would go on from is kept this often.
    """

    difficulty: Scorer
    log_difficulty: bool
    clusters: int
    gamma: float
    smoothing: float
    sample_rate: float
    most_uses: int
    checkpoint_minutes: float

    def __post_init__(self):
        for name in ("clusters", "most_uses"):
            if getattr(self, name) < 1:
                raise UserError(f"target.lead.{name}={getattr(self, name)}: give a positive number")
        for name in ("gamma", "sample_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"target.lead.{name}={getattr(self, name)}: give a share in (0, 1]")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"target.lead.smoothing={self.smoothing}: give a share in [0, 1)")
        unmet = [request for request in self.difficulty.requests if request.reads_ensemble]
        if unmet:
            raise UserError(
                f"target.lead.difficulty looks at {', '.join(sorted(map(str, unmet)))}, which the bare target does not "
                "have; choose a scorer that trains nothing, such as scorer@target.lead.difficulty=ifd or =loss"
            )


def cluster_by(difficulty: np.ndarray, settings: LeadSettings, seed: int) -> np.ndarray:
    """[N] number of each row's cluster by k-means on its difficulty, from 0 for the lowest.

    There are fewer clusters than asked for where fewer values differ or k-means leaves some empty.

    Args:
        difficulty: [N] float64.
        settings: how many, and on which scale.
        seed: the run's.

    Raises:
        UserError: a logarithm is asked for of values that have none.
    """
    if settings.log_difficulty:
        if not (difficulty > 0).all():
            raise UserError(
                f"target.lead.log_difficulty=true, but the least difficulty is {difficulty.min():g}; give "
                "target.lead.log_difficulty=false"
            )
        difficulty = np.log(difficulty)
    count = min(settings.clusters, len(np.unique(difficulty)))
    found = assign_clusters(difficulty[:, None], count, seed)
    names, place = np.unique(found, return_inverse=True)
    means = np.asarray([difficulty[place == one].mean() for one in range(len(names))])
    return np.argsort(np.argsort(means))[place]


@dataclass(frozen=True)
class Pool:
    """What is known of the N rows before training.

    Attributes:
        example_ids: [N] int64, ascending.
        cluster: [N] int64.
        task: [N] int64, all the same where the data has no tasks.
        loss: [N] float64 under the bare target, nats per response token.
    """

    example_ids: np.ndarray
    cluster: np.ndarray
    task: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.example_ids)


@dataclass(frozen=True)
class Round:
    """Rows to train on next.

    Attributes:
        cluster: they are from.
        probabilities: [K] with which each cluster could have been chosen.
        rows: [n] positions in the pool, in the order of training.
    """

    cluster: int
    probabilities: np.ndarray
    rows: np.ndarray


class Curriculum:
    """Chooses the rows of one round after the other, until as many different rows were used as the budget has.

    Every random draw depends on the seed and the round's number alone.

    Args:
        pool: the rows.
        settings: of LEAD.
        budget: different rows to train on, at most as many as the pool has.
        seed: the run's.

    Attributes:
        idu: [N] float64, the bare loss until a row is trained on.
        uses: [N] int64, how often each row was trained on.
        history: one entry a round: cluster, arm probabilities, rows, their losses and IDU, rewards.
    """

    def __init__(self, pool: Pool, settings: LeadSettings, budget: int, seed: int):
        self.pool = pool
        self.settings = settings
        self.budget = budget
        self.seed = seed
        self.bandit = Exp3(int(pool.cluster.max()) + 1, settings.gamma)
        self.scale = RewardScale()
        self.idu = pool.loss.copy()
        self.uses = np.zeros(len(pool), dtype=np.int64)
        self.history: list[dict[str, Any]] = []

    @property
    def distinct(self) -> int:
        """Different rows that were trained on."""
        return int((self.uses > 0).sum())

    @property
    def done(self) -> bool:
        """Whether the budget is used up."""
        return self.distinct >= self.budget

    @property
    def playable(self) -> np.ndarray:
        """[K] bool: the clusters with a row that can be trained on again."""
        still = self.pool.cluster[self.uses < self.settings.most_uses]
        return np.bincount(still, minlength=len(self.bandit.log_weights)) > 0

    def pick(self) -> Round:
        """The next round: one cluster, and of each of its tasks the rows of highest IDU, ties by example id."""
        probabilities = self.bandit.probabilities(self.playable)
        rng = numpy_rng(self.seed, "lead round", len(self.history))
        cluster = int(rng.choice(len(probabilities), p=probabilities))
        inside = np.flatnonzero(self.pool.cluster == cluster)
        picked = []
        for task in np.unique(self.pool.task[inside]):
            rows = inside[self.pool.task[inside] == task]
            quota = max(1, round(self.settings.sample_rate * len(rows)))
            picked.append(self._best(rows[self.uses[rows] < self.settings.most_uses])[:quota])
        best = self._best(np.concatenate(picked))
        beyond = np.cumsum(self.uses[best] == 0) > self.budget - self.distinct
        rows = best[~(beyond & (self.uses[best] == 0))]
        return Round(cluster, probabilities, rng.permutation(rows))

    def learn(self, chosen: Round, losses: np.ndarray, change: float) -> dict[str, Any]:
        """Takes in what a round showed; returns its entry in the history.

        Args:
            chosen: the round.
            losses: [n] of its rows in nats per response token, as the training step saw them.
            change: ΔL that was predicted for it.
        """
        rows = chosen.rows
        idu = smoothed(losses, change, self.idu[rows], self.settings.smoothing)
        fall = float((self.idu[rows] - idu).mean())
        reward = self.scale(fall)
        playable = int((chosen.probabilities > 0).sum())
        self.bandit.learn(chosen.cluster, float(chosen.probabilities[chosen.cluster]), reward, playable)
        self.idu[rows] = idu
        self.uses[rows] += 1
        entry = {
            "round": len(self.history) + 1,
            "cluster": chosen.cluster,
            "probability": chosen.probabilities.tolist(),
            "fall": fall,
            "reward": reward,
            "predicted_change": change,
            "distinct": self.distinct,
            "example_id": self.pool.example_ids[rows].tolist(),
            "loss": losses.tolist(),
            "idu": idu.tolist(),
        }
        self.history.append(entry)
        return entry

    def state(self) -> dict[str, Any]:
        """What `restore` takes: tensors, numbers and lists only."""
        arrays = {"idu": self.idu, "uses": self.uses, "log_weights": self.bandit.log_weights}
        tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
        return {**tensors, "scale": asdict(self.scale), "history": self.history}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from where `state` was taken."""
        self.idu, self.uses = state["idu"].numpy().copy(), state["uses"].numpy().copy()
        self.bandit.log_weights = state["log_weights"].numpy().copy()
        self.scale = RewardScale(**state["scale"])
        self.history = list(state["history"])

    def _best(self, rows: np.ndarray) -> np.ndarray:
        """Rows by falling IDU, ties by example id."""
        return rows[np.lexsort((rows, -self.idu[rows]))]
