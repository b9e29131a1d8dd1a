"""Rows that the baselines are trained on, the models that a candidate is compared with."""

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


def build_baseline_sets(
    baselines: Sequence[str], selected_count: int, example_ids: np.ndarray, total_rows: int, seed: int
) -> dict[str, list[int]]:
    """Return the example ids of each baseline's training rows, by the baseline's name.

    Args:
        baselines: any of `full` (all rows) and `random` (as many rows as the candidate's, drawn
            from the seed).
        selected_count: rows that the candidate is trained on.
        example_ids: [N] ids of the rows that can be trained on.
        total_rows: all rows of the dataset.
        seed: the run's seed.

    Raises:
        UserError: an unknown baseline.
    """
    check_baselines(baselines)
    random_ids = RandomSelector(None, selected_count).draw_rows(example_ids, total_rows, seed)
    training_sets = {"full": example_ids.tolist(), "random": random_ids}
    return {name: training_sets[name] for name in baselines}
