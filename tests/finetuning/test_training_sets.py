import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.finetuning.training_sets import build_training_sets


def test_baselines_are_all_rows_and_as_many_random_rows():
    example_ids = np.arange(50)
    training_sets = build_training_sets([3, 5, 8], example_ids, 50, ["full", "random"], seed=0)
    assert training_sets["candidate"] == [3, 5, 8] and training_sets["full"] == example_ids.tolist()
    assert len(training_sets["random"]) == 3
    assert training_sets == build_training_sets([3, 5, 8], example_ids, 50, ["full", "random"], seed=0)


def test_unknown_baseline_is_refused():
    with pytest.raises(UserError, match="best"):
        build_training_sets([3], np.arange(50), 50, ["best"], seed=0)
