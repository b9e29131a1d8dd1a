import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.finetuning.training_sets import build_baseline_sets, check_baselines
from gradfiltering.selectors.random import RandomSelector

EXAMPLE_IDS = np.arange(50)


def baseline_sets(*names):
    return build_baseline_sets(names, [4, 7, 9], 5, EXAMPLE_IDS, 50, seed=0)


def test_baselines_are_all_rows_and_as_many_random_rows():
    training_sets = baseline_sets("full", "random", "subset")
    assert training_sets["full"].example_ids == EXAMPLE_IDS.tolist()
    assert training_sets["random"].example_ids == RandomSelector(None, 3).draw_rows(EXAMPLE_IDS, 50, 0)
    assert training_sets["subset"].example_ids == [4, 7, 9]
    assert {training_set.update_count for training_set in training_sets.values()} == {None}
    assert training_sets == baseline_sets("full", "random", "subset")


def test_further_draws_are_other_rows_and_each_its_own():
    training_sets = baseline_sets("random", "random_2", "random_3")
    draws = {tuple(training_set.example_ids) for training_set in training_sets.values()}
    assert len(draws) == 3 and {len(draw) for draw in draws} == {3}
    assert baseline_sets("random_3") == {"random_3": training_sets["random_3"]}, "whatever else is drawn"


def test_same_updates_takes_the_candidates_number_of_them():
    training_sets = baseline_sets("full", "full_same_updates", "random_2", "random_2_same_updates")
    assert [training_set.update_count for training_set in training_sets.values()] == [None, 5, None, 5]
    assert training_sets["full_same_updates"].example_ids == training_sets["full"].example_ids
    assert training_sets["random_2_same_updates"].example_ids == training_sets["random_2"].example_ids


@pytest.mark.parametrize("name", ["best", "random_1", "random_02", "full_2", "same_updates", "random_2_3", "full_", ""])
def test_unknown_baseline_is_refused(name):
    with pytest.raises(UserError, match="unknown baselines"):
        baseline_sets("full", name)
    check_baselines(["full", "random", "random_12_same_updates"])
