"""Rows that the baselines are trained on, the models that a candidate is compared with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradfiltering.errors import UserError
from gradfiltering.seeding import derive_seed
from gradfiltering.selectors.random import RandomSelector

CANDIDATE = "candidate"
BASELINES = ("full", "random", "subset")
SAME_UPDATES = "_same_updates"
# `random` is the first draw, `random_2` the second.
_BASELINE_NAME = re.compile(rf"(?P<rows>full|random|subset)(?:_(?P<draw>[1-9]\d*))?(?P<updates>{SAME_UPDATES})?")


@dataclass(frozen=True)
class TrainingSet:
    """Rows of a model, and how long it is trained on them.

    Attributes:
        example_ids: the rows.
        update_count: updates; None for as many passes over the rows as all models make.
    """

    example_ids: Sequence[int]
    update_count: int | None = None


def check_baselines(baselines: Sequence[str]) -> None:
    """Refuse names of baselines that do not exist.

    Raises:
        UserError: an unknown name.
    """
    unknown_names = sorted({name for name in baselines if _parse_name(name) is None})
    if unknown_names:
        raise UserError(
            f"unknown baselines {unknown_names}; choose among {', '.join(BASELINES)}, further draws of the random rows "
            f"as random_2, random_3, …, and each with {SAME_UPDATES} behind for as many updates as the candidate takes"
        )


def build_baseline_sets(
    baselines: Sequence[str],
    selected_ids: Sequence[int],
    candidate_updates: int,
    example_ids: np.ndarray,
    total_rows: int,
    seed: int,
) -> dict[str, TrainingSet]:
    """Build the training set of each baseline, by the baseline's name.

    Args:
        baselines: any of `full` (all rows), `random` (as many rows as the candidate's, drawn from the seed; `random_2`,
            `random_3`, … are further draws) and `subset` (the candidate's own rows, for a candidate that selects while
            it trains). They are trained for as many passes as all models; with `_same_updates` behind, for as many
            updates as the candidate takes.
        selected_ids: rows that the candidate is trained on.
        candidate_updates: updates that the candidate takes.
        example_ids: [N] ids of the rows that can be trained on.
        total_rows: all rows of the dataset.
        seed: the run's seed.

    Raises:
        UserError: an unknown baseline.
    """
    check_baselines(baselines)
    training_sets = {}
    for name in baselines:
        parsed_name = _parse_name(name)
        assert parsed_name is not None
        training_rows: Sequence[int] = example_ids.tolist()
        if parsed_name["rows"] == "subset":
            training_rows = selected_ids
        elif parsed_name["rows"] == "random":
            draw = int(parsed_name["draw"] or 1)
            draw_seed = seed if draw == 1 else derive_seed(seed, "random draw", draw)
            training_rows = RandomSelector(None, len(selected_ids)).draw_rows(example_ids, total_rows, draw_seed)
        training_sets[name] = TrainingSet(training_rows, candidate_updates if parsed_name["updates"] else None)
    return training_sets


def _parse_name(name: str) -> re.Match[str] | None:
    parsed_name = _BASELINE_NAME.fullmatch(name)
    if parsed_name is not None and parsed_name["draw"] is not None:
        is_further_draw = parsed_name["rows"] == "random" and int(parsed_name["draw"]) > 1
        return parsed_name if is_further_draw else None
    return parsed_name
