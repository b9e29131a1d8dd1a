"""Cutting the rows of a run so that it takes no longer than the time given."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gradfiltering.data.examples import Examples
from gradfiltering.errors import UserError
from gradfiltering.evidence.heldout_member import HELDOUT_MEMBER_STAGE
from gradfiltering.evidence.measurers import ENSEMBLE_STAGE, TASK_GRADIENT_STAGE
from gradfiltering.planning.plan_request import PlanRequest
from gradfiltering.planning.plan_settings import PlanSettings
from gradfiltering.planning.planner import plan_run
from gradfiltering.planning.run_plan import RunPlan
from gradfiltering.planning.target_work import JUDGE_STAGE, TARGET_STAGE
from gradfiltering.runs.screen_words import describe_duration, describe_stage
from gradfiltering.seeding import numpy_rng

logger = logging.getLogger(__name__)

MIN_ROWS = 32  # the fewest rows that a run is cut to
MAX_DRAWS = 4
TOLERATED_EXCESS = 1.02  # times the time given; no plan is more exact than that
MOST_HELDOUT_ROWS = 100  # that are measured where the time is short
# Stage -> what makes it shorter whatever the rows.
LESS_WORK = {
    ENSEMBLE_STAGE: "fewer members, fewer epochs",
    HELDOUT_MEMBER_STAGE: "fewer epochs, no extra member",
    TASK_GRADIENT_STAGE: "fewer members, fewer checkpoints",
    TARGET_STAGE: "fewer baselines, fewer epochs of the target, an earlier last stage",
    JUDGE_STAGE: "fewer prompts, shorter answers, an earlier last stage",
}


def draw_rows(examples: Examples, row_count: int, seed: int, stream: str = "rows") -> Examples:
    """Draw rows by the seed; the others are listed as unscored, with the reason.

    Args:
        examples: of the pool, or the held-out ones.
        row_count: rows to draw.
        seed: of the run.
        stream: of random numbers.
    """
    total_rows = len(examples)
    drawn_positions = numpy_rng(seed, "plan", stream).permutation(total_rows)[:row_count]
    drawn_examples = examples.select(examples.example_ids[drawn_positions].tolist())
    left_out_ids = np.setdiff1d(examples.example_ids, drawn_examples.example_ids)
    reason = f"not among the {row_count:,} of {total_rows:,} rows drawn for the time given"
    unscored = sorted([*examples.unscored, *((example_id, reason) for example_id in left_out_ids.tolist())])
    return replace(drawn_examples, unscored=unscored, not_shown=examples.not_shown)


def fit_rows(
    request: PlanRequest, settings: PlanSettings, select_budget: Callable[[int], int]
) -> tuple[PlanRequest, RunPlan]:
    """Cut the rows until the planned time is at most `TOLERATED_EXCESS` times the time given.

    Held-out rows are cut first, to a hundred, then those of the pool; the ensemble stays as it is. If the plan is
    still longer after `MAX_DRAWS` draws, the last one is taken and the log says so.

    Args:
        request: of all rows.
        settings: with `minutes`, or None for all rows.
        select_budget: rows of the pool -> rows of the candidate.

    Returns:
        The request with the rows that are taken, and its plan.

    Raises:
        UserError: even a few rows take longer.
    """
    plan = plan_run(request, settings)
    all_examples, seed, heldout = request.context.examples, request.context.seed, request.context.heldout
    if settings.minutes is None or plan.seconds is None:
        return request, replace(plan, minutes=settings.minutes, seed=seed)
    allowed_seconds = 60 * settings.minutes
    if plan.seconds > allowed_seconds and heldout is not None and len(heldout) > MOST_HELDOUT_ROWS:
        heldout = draw_rows(heldout, MOST_HELDOUT_ROWS, seed, "held-out rows")
        request = replace(request, context=replace(request.context, heldout=heldout))
        plan = plan_run(request, settings)
    assert plan.seconds is not None, "the plan of all held-out rows was timed"
    if plan.seconds <= allowed_seconds:
        return request, replace(plan, minutes=settings.minutes, seed=seed)
    row_count = len(all_examples)
    fitted_request, fitted_plan, planned_seconds = request, plan, plan.seconds
    for _ in range(MAX_DRAWS):
        planned_rows, row_count = row_count, _rows_for(fitted_plan, row_count, allowed_seconds)
        if row_count < MIN_ROWS:
            raise _too_little_time(fitted_plan, planned_rows, len(all_examples), settings)
        examples = draw_rows(all_examples, row_count, seed)
        target = request.target
        if target is not None:
            target = replace(target, selected_rows=select_budget(row_count))
        fitted_request = replace(
            request, context=replace(request.context, examples=examples), total_rows=row_count, target=target
        )
        fitted_plan = plan_run(fitted_request, settings)
        assert fitted_plan.seconds is not None, "the plan of all rows was timed"
        planned_seconds = fitted_plan.seconds
        if planned_seconds <= TOLERATED_EXCESS * allowed_seconds:
            break
    else:
        logger.warning(
            "the run is planned to take %s, longer than the %g minutes given, although its rows were cut %d times",
            describe_duration(planned_seconds),
            settings.minutes,
            MAX_DRAWS,
        )
    return fitted_request, replace(fitted_plan, minutes=settings.minutes, seed=seed, pool_rows=len(all_examples))


def _too_little_time(plan: RunPlan, planned_rows: int, total_rows: int, settings: PlanSettings) -> UserError:
    """Say how long the fewest rows take, and which stage takes most of it.

    Args:
        plan: of `planned_rows` rows.
        planned_rows: rows of the plan.
        total_rows: all rows of the pool.
        settings: with `minutes`.
    """
    fixed_seconds, growing_seconds = _split_seconds(plan)
    least_seconds = fixed_seconds + growing_seconds * min(1.0, MIN_ROWS / planned_rows)
    longest_stage = max(plan.stages, key=lambda stage: stage.seconds or 0.0)
    return UserError(
        f"even {MIN_ROWS} of {total_rows:,} rows take longer than {settings.minutes:g} minutes, about "
        f"{math.ceil(least_seconds / 60)}, most of it for {describe_stage(longest_stage.name)}; give "
        f"more time, {LESS_WORK.get(longest_stage.name, 'a smaller model')}, or measure the speed anew when "
        "less else is running",
        owner=settings,
        arguments=("minutes", "fresh"),
    )


def _rows_for(plan: RunPlan, row_count: int, allowed_seconds: float) -> int:
    """Return how many of `row_count` rows take the time, by the work that grows with them."""
    fixed_seconds, growing_seconds = _split_seconds(plan)
    share = (allowed_seconds - fixed_seconds) / growing_seconds if growing_seconds else 1.0
    return max(0, min(row_count - 1, math.floor(row_count * share)))


def _split_seconds(plan: RunPlan) -> tuple[float, float]:
    """Seconds of the work that any number of rows costs, and of the work that grows with the rows."""
    all_work = [piece for stage in plan.stages for piece in stage.work]
    growing_seconds = sum(piece.seconds or 0.0 for piece in all_work if piece.is_per_row)
    return sum(piece.seconds or 0.0 for piece in all_work if not piece.is_per_row), growing_seconds
