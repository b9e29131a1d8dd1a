"""An ensemble that is trained on a sample of the rows, and measures all of them."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradfiltering.errors import UserError
from gradfiltering.experiment.checks import check_training_rows
from tests.support.interruption import Steps, counting
from tests.support.small_ensembles import ROWS, small_ensemble

SAMPLED = small_ensemble(train_rows=8)


def test_the_sample_depends_on_the_seed_and_grows_by_adding_rows():
    drawn = [replace(SAMPLED, train_rows=count).draw_training_rows(50, seed=3) for count in (8, 20, 50, 70)]
    assert [len(rows) for rows in drawn] == [8, 20, 50, 50]
    assert all((np.diff(rows) > 0).all() for rows in drawn)
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2]) == set(range(50))
    assert not np.array_equal(drawn[0], SAMPLED.draw_training_rows(50, seed=4))
    np.testing.assert_array_equal(small_ensemble().draw_training_rows(5, 0), np.arange(5))


def test_all_rows_are_measured_and_those_trained_on_are_listed(train, tmp_path):
    steps = Steps()
    log = train("sampled", SAMPLED, trainer=counting(steps))
    assert steps.taken == 2 * 2 and train.report.training_rows == 8
    assert log.epoch(2).grad_norm.shape == (3, ROWS)
    table = pq.read_table(tmp_path / "sampled" / "ensemble_rows.parquet").to_pandas()
    assert table["example_id"].tolist() == log.epoch(2).example_ids.tolist()
    assert np.flatnonzero(table["trained_on"]).tolist() == SAMPLED.draw_training_rows(ROWS, 0).tolist()
    trained_on = table["trained_on"].to_numpy()
    fall = log.epoch(1).loss.mean(0) - log.epoch(2).loss.mean(0)
    assert fall[trained_on].mean() > fall[~trained_on].mean() > -0.1


def test_a_sample_of_all_rows_is_the_whole(train, tmp_path):
    whole, sampled = train("whole"), train("sampled", small_ensemble(train_rows=ROWS))
    np.testing.assert_array_equal(whole.epoch(2).grad_norm, sampled.epoch(2).grad_norm)
    assert not (tmp_path / "whole" / "ensemble_rows.parquet").exists()


def test_samples_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="online"):
        small_ensemble(train_rows=8, collect="online")
    with pytest.raises(UserError, match="8 of 7 rows") as refusal:
        check_training_rows(SAMPLED, 7)
    assert refusal.value.arguments == ("train_rows",)
    check_training_rows(SAMPLED, 8)
    check_training_rows(small_ensemble(), 1)
