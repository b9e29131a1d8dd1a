"""The cost of a run on a fleet: closed forms of time, money and bytes, by hand."""

import pytest

from gradfiltering.errors import UserError
from gradfiltering.planning.fleet import estimate_fleet_cost
from gradfiltering.planning.operations import TokenCounts
from gradfiltering.planning.plan_settings import Fleet, PlanSettings
from gradfiltering.planning.planner import plan_run
from gradfiltering.planning.run_plan import ANSWERS, FIXED, PlannedStage, PlannedWork
from gradfiltering.reports.plan_table import describe_fleet
from gradfiltering.requests import GradientLog
from tests.support.plans import plan_request

TRAINING = PlannedWork(
    "ensemble", "", TokenCounts(steps=100), 12 * 10**15, "training", step_rows=10, exchanged_bytes=10**6
)
PASS = PlannedWork("ensemble", "", TokenCounts(steps=6), 3 * 10**15, "gradients")


def cost_of(fleet, *work, disk_bytes=0):
    return estimate_fleet_cost([PlannedStage("ensemble", work, disk_bytes=disk_bytes)], fleet, lambda piece: None)


def test_rows_of_a_step_are_shared_out_unevenly():
    """Ten rows on four GPUs: one of them has three, so four take as long as 10 / 3 of them."""
    fleet = Fleet(gpus=4, peak_tflops=100.0, utilisation=0.5, latency_us=0.0, network_gbit=1e9)
    assert cost_of(fleet, TRAINING).stage_seconds["ensemble"] == pytest.approx(240 / (10 / 3))


def test_batches_of_a_pass_are_shared_out_whole():
    fleet = Fleet(gpus=4, peak_tflops=100.0, utilisation=0.5)
    assert cost_of(fleet, PASS).stage_seconds["ensemble"] == pytest.approx(60 / 3)
    assert cost_of(Fleet(gpus=8, peak_tflops=100.0, utilisation=0.5), PASS).stage_seconds["ensemble"] == 10.0


def test_an_exchange_is_a_ring_of_latencies_and_bytes():
    fleet = Fleet(gpus=4, peak_tflops=1e12, latency_us=50.0, network_gbit=8.0)
    seconds = 100 * 2 * 3 * (50e-6 + 10**6 / 4 / 1e9)
    cost = cost_of(fleet, TRAINING)
    assert cost.exchange_seconds == pytest.approx(seconds)
    assert cost.exchanged_bytes == 100 * 2 * 3 * 10**6 and cost.network_bytes == 0


def test_of_several_nodes_a_part_of_the_ring_crosses_the_network():
    cost = cost_of(Fleet(gpus=8, nodes=2, peak_tflops=100.0), TRAINING, disk_bytes=1000)
    assert cost.exchanged_bytes == 100 * 2 * 7 * 10**6
    assert cost.network_bytes == cost.exchanged_bytes * 2 // 8 + 3 * 1000


def test_one_gpu_exchanges_nothing():
    cost = cost_of(Fleet(gpus=1, peak_tflops=100.0, utilisation=0.5), TRAINING)
    assert (cost.stage_seconds["ensemble"], cost.exchanged_bytes, cost.exchange_seconds) == (240.0, 0, 0.0)


def test_all_gpus_are_paid_while_one_of_them_answers():
    answers = PlannedWork("judge", "", TokenCounts(steps=10), 36 * 10**15, ANSWERS)
    check = PlannedWork("judge", "", TokenCounts(), 0, FIXED, seconds=360.0)
    fleet = Fleet(gpus=8, peak_tflops=100.0, utilisation=0.1, price_per_gpu_hour=2.5)
    cost = cost_of(fleet, answers, check)
    assert cost.stage_seconds["ensemble"] == 3600 + 360
    assert cost.gpu_hours == pytest.approx(8.8) and cost.price == pytest.approx(22.0)
    text = describe_fleet(cost.to_json())
    assert "8.80 GPU hours, 22.00 in money at 2.5 an hour" in text and "100·10^12 operations a second each" in text


def test_what_was_not_timed_has_no_time_without_a_peak():
    cost = cost_of(Fleet(gpus=2), TRAINING)
    assert cost.stage_seconds["ensemble"] is None and cost.gpu_hours is None and cost.price is None
    assert "not timed" in describe_fleet(cost.to_json())


def test_cached_work_costs_nothing():
    reused = PlannedWork("ensemble", "", TRAINING.counts, 10**15, "training", reused=True, exchanged_bytes=10**6)
    cost = cost_of(Fleet(gpus=2, peak_tflops=1.0), reused)
    assert cost.stage_seconds["ensemble"] == 0 and cost.exchanged_bytes == 0


def test_a_plan_for_one_gpu_of_this_machine_is_that_of_the_run(context, steady_speed):
    settings = PlanSettings(fleet=Fleet(gpus=1, price_per_gpu_hour=3600.0))
    plan = plan_run(plan_request(context, GradientLog()), settings)
    assert plan.fleet["seconds"] == pytest.approx(plan.seconds) and plan.fleet["price"] == pytest.approx(plan.seconds)
    training = next(piece for piece in plan.stages[-1].work if piece.kind == "training")
    adapter_bytes = training.exchanged_bytes / context.ensemble.m
    assert training.step_rows == context.ensemble.batch_size and adapter_bytes == 4 * stacked_weights(context)


def stacked_weights(context) -> int:
    """Numbers in one adapter, of rank 2 on all four matrices of both layers of GPT-2."""
    width, rank, layers = 32, 2, context.base_model.model.config.n_layer
    return layers * rank * sum((width + 3 * width, 2 * width, width + 4 * width, 4 * width + width))


def test_gpus_that_nodes_cannot_share_evenly_are_refused():
    with pytest.raises(UserError, match="8 GPUs cannot be spread evenly over 3 nodes"):
        Fleet(gpus=8, nodes=3)
