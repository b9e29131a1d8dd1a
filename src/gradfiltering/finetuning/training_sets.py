"""Rows that each model of a run is trained on: the candidate's subset and the baselines it is compared with."""

from collections.abc import Sequence

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.selectors.random import RandomSelector

CANDIDATE = "candidate"
BASELINES = ("full", "random")


def check_baselines(baselines: Sequence[str]) -> None:
    """Refuse names of baselines that do not exist.

    Raises:
        UserError: an unknown name.
    """
    unknown_names = sorted(set(baselines) - set(BASELINES))
    if unknown_names:
        raise UserError(f"unknown baselines {unknown_names}; choose among {', '.join(BASELINES)}")


def build_training_sets(
    selected_ids: Sequence[int], example_ids: np.ndarray, total_rows: int, baselines: Sequence[str], seed: int
) -> dict[str, list[int]]:
    """Return the example ids of each model's training rows, by the model's name.

    Args:
        selected_ids: the candidate's subset.
        example_ids: [N] ids of the rows that can be trained on.
        total_rows: all rows of the dataset.
        baselines: any of `full` (all rows) and `random` (as many rows as the subset, drawn from the seed).
        seed: the run's seed.

    Raises:
        UserError: an unknown baseline.
    """
    check_baselines(baselines)
    random_ids = RandomSelector(None, len(selected_ids)).draw_rows(example_ids, total_rows, seed)
    baseline_ids = {"full": example_ids.tolist(), "random": random_ids}
    return {CANDIDATE: list(selected_ids), **{name: baseline_ids[name] for name in baselines}}
