"""LEAD's decisions (arXiv 2505.07437): the next round's rows, and the lessons of each round."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.methods.lead.bandit import Exp3, RewardScale
from gradfiltering.methods.lead.dynamic_uncertainty import smooth_uncertainty
from gradfiltering.options import PositiveInt, Share, ShareBelowOne, model_validator, options
from gradfiltering.scorers.base import Scorer
from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.clustering import assign_clusters
from gradfiltering.statistics.rounding import share_of_count


@options
class LeadSettings:
    """Settings of LEAD, which selects rows while the target trains.

    Attributes:
        difficulty: scorer by which rows are clustered, under the base model of the target.
        log_difficulty: cluster by the logarithm. IFD is a ratio; under a weak target it spans
            orders of magnitude, and k-means then puts nearly all rows into one cluster.
        clusters: K of k-means.
        gamma: share of the bandit's play that is spread evenly over the clusters.
        smoothing: b, the weight of a row's previous IDU.
        sample_rate: share of a task's rows in the played cluster that one round trains on, at least
            one row.
        most_uses: most rounds that one row takes part in.
    """

    difficulty: Scorer
    log_difficulty: bool
    clusters: PositiveInt
    gamma: Share
    smoothing: ShareBelowOne
    sample_rate: Share
    most_uses: PositiveInt

    @model_validator(mode="after")
    def _check_difficulty(self) -> "LeadSettings":
        ensemble_requests = [type(request).__name__ for request in self.difficulty.requests if request.count_members(1)]
        if ensemble_requests:
            raise ValueError(
                f"difficulty reads {', '.join(sorted(ensemble_requests))} of an ensemble, which the target lacks; "
                "choose a scorer that trains nothing, such as ifd or loss"
            )
        return self


def cluster_by_difficulty(difficulty: np.ndarray, settings: LeadSettings, seed: int) -> np.ndarray:
    """Return the [N] cluster of each row by k-means on its difficulty, numbered from 0 for the lowest.

    There are fewer clusters than requested where fewer values differ or k-means leaves some empty.

    Args:
        difficulty: [N] float64.
        settings: number of clusters and scale.
        seed: the run's seed.

    Raises:
        UserError: logarithms are requested of values that have none.
    """
    if settings.log_difficulty:
        if not (difficulty > 0).all():
            raise UserError(
                f"the least difficulty is {difficulty.min():g}, which has no logarithm",
                settings,
                ("log_difficulty",),
            )
        difficulty = np.log(difficulty)
    cluster_count = min(settings.clusters, len(np.unique(difficulty)))
    raw_clusters = assign_clusters(difficulty[:, None], cluster_count, seed)
    cluster_ids, cluster_indices = np.unique(raw_clusters, return_inverse=True)
    cluster_means = np.asarray([difficulty[cluster_indices == index].mean() for index in range(len(cluster_ids))])
    return np.argsort(np.argsort(cluster_means))[cluster_indices]


@dataclass(frozen=True)
class Pool:
    """The N rows that can be selected, as they are before training.

    Attributes:
        example_ids: [N] int64, ascending.
        cluster_indices: [N] int64.
        task_indices: [N] int64, all equal where the data has no tasks.
        base_model_losses: [N] float64 under the base model, nats per response token.
    """

    example_ids: np.ndarray
    cluster_indices: np.ndarray
    task_indices: np.ndarray
    base_model_losses: np.ndarray

    def __len__(self) -> int:
        return len(self.example_ids)


class Curriculum:
    """Selects the rows of one round after the other, until as many different rows were used as the budget allows.

    Every random draw depends on the seed and the round's number alone.

    Args:
        pool: the rows.
        settings: of LEAD.
        budget: different rows to train on, at most as many as the pool has.
        seed: the run's seed.

    Attributes:
        uncertainty: [N] float64 IDU, the loss under the base model until a row is trained on.
        uses: [N] int64, rounds that each row took part in.
        history: a row of `rounds.parquet` for each round.
    """

    def __init__(self, pool: Pool, settings: LeadSettings, budget: int, seed: int):
        self.pool = pool
        self.settings = settings
        self.budget = budget
        self.seed = seed
        self.bandit = Exp3(int(pool.cluster_indices.max()) + 1, settings.gamma)
        self.reward_scale = RewardScale()
        self.uncertainty = pool.base_model_losses.copy()
        self.uses = np.zeros(len(pool), dtype=np.int64)
        self.history: list[dict[str, Any]] = []

    @property
    def distinct_rows(self) -> int:
        """Number of different rows that were trained on."""
        return int((self.uses > 0).sum())

    @property
    def playable_clusters(self) -> np.ndarray:
        """[K] bool: clusters with a row that may be used again."""
        usable_clusters = self.pool.cluster_indices[self.uses < self.settings.most_uses]
        return np.bincount(usable_clusters, minlength=len(self.bandit.log_weights)) > 0

    def select_round(self) -> np.ndarray:
        """Return the [n] rows of the next round in the order of training.

        They are from one cluster: of each of its tasks the rows of highest IDU, ties by example id.
        """
        probabilities = self.bandit.compute_probabilities(self.playable_clusters)
        random_generator = numpy_rng(self.seed, "lead round", len(self.history))
        cluster_index = int(random_generator.choice(len(probabilities), p=probabilities))
        cluster_rows = np.flatnonzero(self.pool.cluster_indices == cluster_index)
        selected_rows = []
        for task_index in np.unique(self.pool.task_indices[cluster_rows]):
            task_rows = cluster_rows[self.pool.task_indices[cluster_rows] == task_index]
            quota = max(1, share_of_count(self.settings.sample_rate, len(task_rows)))
            usable_rows = task_rows[self.uses[task_rows] < self.settings.most_uses]
            selected_rows.append(self._sort_by_uncertainty(usable_rows)[:quota])
        sorted_rows = self._sort_by_uncertainty(np.concatenate(selected_rows))
        is_new = self.uses[sorted_rows] == 0
        exceeds_budget = is_new & (np.cumsum(is_new) > self.budget - self.distinct_rows)
        return random_generator.permutation(sorted_rows[~exceeds_budget])

    def learn_round(self, row_indices: np.ndarray, example_losses: np.ndarray, loss_change: float) -> dict[str, Any]:
        """Take in the observations of the selected round; return its entry in the history.

        Args:
            row_indices: [n] rows of the round.
            example_losses: [n] in nats per response token, as the training step observed them.
            loss_change: ΔL that was predicted for the round.
        """
        cluster_index = int(self.pool.cluster_indices[row_indices[0]])
        playable_clusters = self.playable_clusters
        probabilities = self.bandit.compute_probabilities(playable_clusters)
        uncertainty = smooth_uncertainty(
            example_losses, loss_change, self.uncertainty[row_indices], self.settings.smoothing
        )
        mean_fall = float((self.uncertainty[row_indices] - uncertainty).mean())
        reward = self.reward_scale.rescale(mean_fall)
        self.bandit.learn(cluster_index, float(probabilities[cluster_index]), reward, int(playable_clusters.sum()))
        self.uncertainty[row_indices] = uncertainty
        self.uses[row_indices] += 1
        history_entry = {
            "round": len(self.history) + 1,
            "cluster": cluster_index,
            "probability": probabilities.tolist(),
            "fall": mean_fall,
            "reward": reward,
            "predicted_change": loss_change,
            "distinct": self.distinct_rows,
            "example_id": self.pool.example_ids[row_indices].tolist(),
            "loss": example_losses.tolist(),
            "idu": uncertainty.tolist(),
        }
        self.history.append(history_entry)
        return history_entry

    def export_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return state_arrays and JSON values from which `restore_state` continues."""
        state_arrays = {"uncertainty": self.uncertainty, "uses": self.uses, "log_weights": self.bandit.log_weights}
        return state_arrays, {"reward_scale": asdict(self.reward_scale), "history": self.history}

    def restore_state(self, state_arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Continue from an exported state."""
        self.uncertainty, self.uses = state_arrays["uncertainty"].copy(), state_arrays["uses"].copy()
        self.bandit.log_weights = state_arrays["log_weights"].copy()
        self.reward_scale = RewardScale(**state["reward_scale"])
        self.history = list(state["history"])

    def _sort_by_uncertainty(self, row_indices: np.ndarray) -> np.ndarray:
        """Sort rows by falling IDU, ties by example id."""
        return row_indices[np.lexsort((row_indices, -self.uncertainty[row_indices]))]
