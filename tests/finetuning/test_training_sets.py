import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.finetuning.training_sets import build_baseline_sets


def test_baselines_are_all_rows_and_as_many_random_rows():
    example_ids = np.arange(50)
    training_sets = build_baseline_sets(["full", "random"], 3, example_ids, 50, seed=0)
    assert training_sets["full"] == example_ids.tolist() and len(training_sets["random"]) == 3
    assert training_sets == build_baseline_sets(["full", "random"], 3, example_ids, 50, seed=0)


def test_unknown_baseline_is_refused():
    with pytest.raises(UserError, match="best"):
        build_baseline_sets(["best"], 1, np.arange(50), 50, seed=0)
