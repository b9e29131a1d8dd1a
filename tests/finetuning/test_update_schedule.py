"""Epochs as an update schedule: every row once an epoch, and the same order after a restart."""

import numpy as np
import pytest

from gradfiltering.finetuning.update_schedule import EpochSchedule, RoundReport

ROW_COUNT = 21


def play(schedule, round_count):
    """Rows of the next updates, each reported as trained."""
    row_indices = []
    for _ in range(round_count):
        (update_rows,) = schedule.plan_round()
        row_indices.append(update_rows.tolist())
        schedule.record_round(RoundReport(update_rows, np.zeros(len(update_rows)), None, 0.1, len(row_indices)))
    return row_indices


def test_every_row_is_taken_once_an_epoch():
    schedule = EpochSchedule(ROW_COUNT, epochs=2, batch_size=6, seed=0)
    assert schedule.length == schedule.remaining_rounds == 8
    first_epoch, second_epoch = play(schedule, 4), play(schedule, 4)
    for epoch in (first_epoch, second_epoch):
        assert sorted(row for rows in epoch for row in rows) == list(range(ROW_COUNT))
        assert [len(rows) for rows in epoch] == [6, 6, 6, 3]
    assert first_epoch != second_epoch
    assert schedule.progress == schedule.length and schedule.remaining_rounds == 0


def test_planning_changes_nothing_and_the_state_restores_the_order():
    whole = play(EpochSchedule(ROW_COUNT, 2, 6, seed=3), 8)
    schedule, resumed = EpochSchedule(ROW_COUNT, 2, 6, seed=3), EpochSchedule(ROW_COUNT, 2, 6, seed=3)
    assert play(schedule, 3) == whole[:3]
    schedule.plan_round()
    resumed.restore_state(*schedule.export_state())
    assert play(resumed, 5) == whole[3:]


@pytest.mark.parametrize("update_count", [1, 4, 5, 11])
def test_a_number_of_updates_takes_the_place_of_epochs(update_count):
    schedule = EpochSchedule(ROW_COUNT, epochs=2, batch_size=6, seed=3, update_count=update_count)
    assert schedule.length == schedule.remaining_rounds == update_count
    whole = play(EpochSchedule(ROW_COUNT, 3, 6, seed=3), 12)
    assert play(schedule, update_count) == whole[:update_count], "the same rows in the same order"
