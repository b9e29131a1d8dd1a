import re
from dataclasses import replace

import numpy as np
import pytest

from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.planning import row_fitting
from gradfiltering.planning.plan_settings import PlanSettings
from gradfiltering.planning.planner import PLANNED_STAGES, plan_run
from gradfiltering.planning.row_fitting import LESS_WORK, MOST_HELDOUT_ROWS, draw_rows, fit_rows
from gradfiltering.planning.target_work import TARGET_STAGE
from gradfiltering.requests import GradientLog
from tests.support.plans import WANTED, plan_request


def test_snapshots_follow_the_rows_that_are_left(context, steady_speed):
    """Epochs that are longer than their limit are counted in updates, and are epochs again with fewer rows."""
    limit = 20  # updates, of 30 in an epoch of all rows
    limited = replace(context, snapshots=SnapshotPair(1, 2, longest_epoch=limit))
    assert context.ensemble.steps_per_epoch(len(context.examples)) == 30
    request = plan_request(limited, GradientLog())
    whole_plan = plan_run(request, WANTED)
    descriptions = [piece.description for stage in whole_plan.stages for piece in stage.work]
    assert "training of 3 members, updates 1 to 40" in descriptions
    seconds = 0.4 * whole_plan.seconds
    fitted, plan = fit_rows(request, PlanSettings(minutes=seconds / 60), lambda row_count: row_count // 10)
    assert len(fitted.context.examples) < 4 * limit and plan.seconds <= 1.02 * seconds
    descriptions = [piece.description for stage in plan.stages for piece in stage.work]
    assert "training of 3 members, epochs 1 to 2" in descriptions
    pairs = [planned.settle_snapshots().snapshots for planned in (limited, fitted.context)]
    assert pairs == [SnapshotPair(20, 40, "update"), SnapshotPair(1, 2)]


def test_rows_are_cut_to_the_time_given(context, steady_speed):
    whole = plan_run(plan_request(context, GradientLog()), WANTED)
    minutes = whole.seconds / 60 / 2
    request, plan = fit_rows(plan_request(context, GradientLog()), PlanSettings(minutes=minutes), lambda rows: rows)
    examples = request.context.examples
    assert 0.35 < len(examples) / len(context.examples) < 0.6
    assert 0.8 * minutes < plan.seconds / 60 <= 1.02 * minutes
    assert plan.rows == len(examples) == request.total_rows and plan.pool_rows == len(context.examples)
    assert np.isin(examples.example_ids, context.examples.example_ids).all()
    left_out = {example_id for example_id, reason in examples.unscored if "drawn for the time given" in reason}
    assert left_out == {*context.examples.example_ids.tolist()} - {*examples.example_ids.tolist()}
    again, _ = fit_rows(plan_request(context, GradientLog()), PlanSettings(minutes=minutes), lambda rows: rows)
    np.testing.assert_array_equal(again.context.examples.example_ids, examples.example_ids)


def test_time_enough_leaves_all_rows(context, steady_speed):
    request, plan = fit_rows(plan_request(context, GradientLog()), PlanSettings(minutes=600), lambda rows: rows)
    assert request.context is context and plan.rows == plan.pool_rows == len(context.examples) and plan.minutes == 600


def test_where_fewer_held_out_rows_are_enough_no_row_of_the_pool_is_left_out(context, steady_speed):
    heldout = draw_rows(context.examples, MOST_HELDOUT_ROWS, 0, "held-out rows")
    enough = plan_run(plan_request(replace(context, heldout=heldout), GradientLog()), WANTED)
    request = plan_request(replace(context, heldout=context.examples), GradientLog())
    assert plan_run(request, WANTED).seconds > enough.seconds
    fitted, plan = fit_rows(request, PlanSettings(minutes=enough.seconds / 60), lambda rows: rows)
    assert fitted.context.examples is context.examples and plan.seconds == enough.seconds
    np.testing.assert_array_equal(fitted.context.heldout.example_ids, heldout.example_ids)


def test_a_plan_that_stays_longer_than_the_time_given_is_told(context, steady_speed, monkeypatch, caplog):
    minutes = plan_run(plan_request(context, GradientLog()), WANTED).seconds / 60 / 2
    monkeypatch.setattr(row_fitting, "TOLERATED_EXCESS", 0.9)
    monkeypatch.setattr(row_fitting, "MAX_DRAWS", 1)
    _, plan = fit_rows(plan_request(context, GradientLog()), PlanSettings(minutes=minutes), lambda rows: rows)
    assert plan.rows < plan.pool_rows and "although its rows were cut 1 times" in caplog.text


def test_too_little_time_is_refused(context, steady_speed):
    _, whole = fit_rows(plan_request(context, GradientLog()), PlanSettings(minutes=600), lambda rows: rows)
    with pytest.raises(UserError, match="even 32 of 120 rows take longer than 1e-05 minutes") as refusal:
        fit_rows(plan_request(context, GradientLog()), PlanSettings(minutes=1e-5), lambda rows: rows)
    minutes = re.search(r"minutes, about (\d+), most of it for training the ensemble", str(refusal.value))
    assert minutes is not None and whole.seconds / 60 * 32 / 120 - 1 < int(minutes[1]) <= whole.seconds / 60 + 1
    assert "give more time, fewer members, fewer epochs, or measure the speed anew" in str(refusal.value)
    assert refusal.value.arguments == ("minutes", "fresh")


def test_advice_suits_the_stage_that_takes_longest():
    assert set(LESS_WORK) <= set(PLANNED_STAGES)
    assert "members" not in LESS_WORK[TARGET_STAGE] and "baselines" in LESS_WORK[TARGET_STAGE]


def test_drawn_rows_are_those_of_the_seed(context):
    examples = context.examples
    first, again, other = draw_rows(examples, 40, 0), draw_rows(examples, 40, 0), draw_rows(examples, 40, 1)
    np.testing.assert_array_equal(first.example_ids, again.example_ids)
    assert len(first) == 40 and (first.example_ids != other.example_ids).any()
    fewer = draw_rows(examples, 20, 0)
    assert np.isin(fewer.example_ids, first.example_ids).all(), "fewer rows are among more"
    assert len(first.unscored) == len(examples) - 40
